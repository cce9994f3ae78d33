//! What is shown after the built-in guest: the first thing anyone sees of Umbra.

use super::plan::{self, Answers};
use crate::report::RunReport;
use crate::report::text::grouped;
use crate::style::Style;
use std::fmt::Write;
use umbra_vcpu::stats::MmioStats;

/// Cells of the longest bar.
const BAR: usize = 28;

/// Everything the summary tells.
#[derive(Clone, Debug)]
pub struct Summary<'a> {
    /// What ran it, for people: `KVM on AMD SVM`.
    pub backend: &'a str,
    /// The run's numbers.
    pub report: &'a RunReport,
    /// How the vmm's side of an MMIO access went, in nanoseconds each, by how it was recognised.
    pub ns_each: NsEach,
    /// What the guest found.
    pub answers: Answers,
    /// The generation of the memory slots before and after.
    pub generations: (u64, u64),
    /// Whether MMIO was remembered at all.
    pub mmio_cache: bool,
}

/// Nanoseconds to recognise an access, by how.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NsEach {
    /// By the vCPU's cache.
    pub cache: Option<u64>,
    /// By an MMIO SPTE.
    pub spte: Option<u64>,
    /// By search.
    pub search: Option<u64>,
}

impl NsEach {
    /// What was taken during the run, on shadow tables; `None` where nobody took it.
    pub fn of_run(mmio: &MmioStats) -> Option<Self> {
        let each = |ns: u64, count: u64| (count > 0 && ns > 0).then(|| ns / count);
        let times = &mmio.times;
        let taken = times.cache_ns + times.spte_ns + times.search_ns > 0;
        taken.then(|| Self {
            cache: each(times.cache_ns, mmio.cache_hits),
            spte: each(times.spte_ns, mmio.spte_hits),
            search: each(times.search_ns, mmio.searches),
        })
    }
}

impl Summary<'_> {
    /// Whether the guest did what it should.
    pub fn is_right(&self) -> bool {
        self.answers == Answers::expected() && self.slots_moved()
    }

    /// Whether the slots' generation advanced with each change: one step for RAM that comes, two for RAM that goes.
    fn slots_moved(&self) -> bool {
        let (before, after) = self.generations;
        after.saturating_sub(before) >= 3 * u64::from(plan::SLOT_ROUNDS)
    }

    /// The text, with a final newline.
    pub fn render(&self, style: Style) -> String {
        let mut out = String::new();
        self.heading(&mut out, style);
        self.checks(&mut out, style);
        self.mmio(&mut out, style);
        self.meaning(&mut out, style);
        out
    }

    fn heading(&self, out: &mut String, style: Style) {
        let _ = writeln!(
            out,
            "\n{}  {}",
            style.bold("Umbra"),
            style.dim(&format!(
                "the built-in guest on {}, {:.2} s, {} exits",
                self.backend,
                self.report.wall.as_secs_f64(),
                grouped(self.report.stats.total_exits())
            ))
        );
    }

    fn checks(&self, out: &mut String, style: Style) {
        let expected = Answers::expected();
        let mut check = |right: bool, text: String| {
            let mark = if right { style.good("✓") } else { style.bad("✗") };
            let _ = writeln!(out, "  {mark} {text}");
        };
        let found = &self.answers;
        check(
            (found.primes, found.sum) == (expected.primes, expected.sum),
            format!(
                "{} primes below {}, as the vmm counts them too",
                grouped(found.primes),
                grouped(plan::SIEVE_LIMIT.into())
            ),
        );
        check(
            found.wrong_reads == 0,
            match found.wrong_reads {
                0 => "each read of the device gave what was written there".to_owned(),
                wrong => format!(
                    "{} reads of the device gave something else than was written",
                    grouped(wrong)
                ),
            },
        );
        check(
            found.slot_rounds == expected.slot_rounds && self.slots_moved(),
            format!(
                "RAM came over the device's page and went {} times, seen at once (slot generation {} → {})",
                found.slot_rounds, self.generations.0, self.generations.1
            ),
        );
    }

    fn mmio(&self, out: &mut String, style: Style) {
        let mmio = &self.report.stats.mmio;
        let total = mmio.accesses();
        let _ = writeln!(
            out,
            "\n  {} {}",
            style.bold(&format!("{:<30} {:>8}", "MMIO accesses, recognised by", grouped(total))),
            style.dim(&format!("{:width$} ns each", "", width = BAR + 8))
        );
        let rows = [
            ("the vCPU's cache", mmio.cache_hits, self.ns_each.cache),
            ("an MMIO SPTE", mmio.spte_hits, self.ns_each.spte),
            ("searching the slots", mmio.searches, self.ns_each.search),
        ];
        for (name, count, ns) in rows {
            let ns = ns.map_or_else(|| "–".to_owned(), grouped);
            let _ = writeln!(
                out,
                "    {name:<28} {:>8}  {} {:>5.1} % {ns:>7}",
                grouped(count),
                style.accent(&format!("{:<width$}", bar(count, total), width = BAR)),
                percent(count, total),
            );
        }
        if mmio.stale > 0 {
            let _ = writeln!(
                out,
                "    {}",
                style.dim(&format!(
                    "{} of the searches because a slot change had made the SPTE stale",
                    grouped(mmio.stale)
                ))
            );
        }
    }

    fn meaning(&self, out: &mut String, style: Style) {
        let mmio = &self.report.stats.mmio;
        let text = if self.mmio_cache {
            format!(
                "{:.1} % of the accesses were known to be MMIO without searching memory slots, and no slot change was \
                 missed.",
                percent(mmio.searches_avoided(), mmio.accesses())
            )
        } else {
            "Nothing was remembered (--no-mmio-cache): each access searched the memory slots.".to_owned()
        };
        let _ = writeln!(out, "\n  {text}");
        let next = "Next: `vmm run KERNEL` boots your own, `vmm doctor` says what this host can do.";
        let _ = writeln!(out, "  {}", style.dim(next));
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 * 100.0 / whole as f64
    }
}

/// A bar of eighth blocks; something that is there at all is never shown as nothing.
fn bar(part: u64, whole: u64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = if whole == 0 {
        0
    } else {
        (part * BAR as u64 * 8).div_ceil(whole)
    };
    let full = usize::try_from(eighths / 8).unwrap_or_default();
    let rest = EIGHTHS.get(usize::try_from(eighths % 8).unwrap_or_default());
    "█".repeat(full) + rest.unwrap_or(&"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_vcpu::stats::VcpuStats;

    fn render(report: &RunReport, answers: Answers) -> String {
        let summary = Summary {
            backend: "KVM",
            report,
            ns_each: NsEach {
                cache: Some(12),
                spte: Some(40),
                search: None,
            },
            answers,
            generations: (1, 49),
            mmio_cache: true,
        };
        summary.render(Style::Plain)
    }

    fn report() -> RunReport {
        let mmio = MmioStats {
            cache_hits: 16_384,
            spte_hits: 8_192,
            searches: 66,
            stale: 30,
            ..MmioStats::default()
        };
        RunReport {
            stats: VcpuStats {
                mmio,
                ..VcpuStats::default()
            },
            ..RunReport::default()
        }
    }

    #[test]
    fn right_run_is_shown_with_all_its_numbers() {
        let text = render(&report(), Answers::expected());
        assert_eq!(text.matches('✓').count(), 3, "{text}");
        for part in [
            "24 642",
            "16 384",
            "66.5 %",
            "8 192",
            "12",
            "40",
            "99.7 %",
            "30 of the searches",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn columns_are_aligned() {
        let text = render(&report(), Answers::expected());
        let widths: Vec<_> = text
            .lines()
            .filter(|line| line.contains(" % ") && line.starts_with("    "))
            .map(|line| line.chars().count())
            .collect();
        assert_eq!(widths.len(), 3, "{text}");
        assert!(widths.iter().all(|width| *width == widths[0]), "{widths:?}\n{text}");
    }

    #[test]
    fn wrong_answers_are_marked() {
        let answers = Answers {
            wrong_reads: 2,
            ..Answers::expected()
        };
        let text = render(&report(), answers);
        assert_eq!(text.matches('✗').count(), 1);
        assert!(text.contains("2 reads of the device gave something else"));
    }

    #[test]
    fn run_without_accesses_divides_by_nothing() {
        let text = render(&RunReport::default(), Answers::expected());
        assert!(text.contains("0.0 %"));
    }

    #[test]
    fn bars_are_proportional_and_never_hide_something() {
        assert_eq!(bar(1, 1).chars().count(), BAR);
        assert_eq!(bar(1, 1_000_000), "▏");
        assert_eq!(bar(0, 5), "");
        assert_eq!(bar(1, 2).chars().count(), BAR / 2);
    }
}
