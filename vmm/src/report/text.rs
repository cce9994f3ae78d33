//! The statistics as a table for people.

use super::RunReport;
use crate::style::Style;
use std::collections::BTreeMap;
use std::fmt::Write;
use umbra_vcpu::soft::SoftRun;
use umbra_vcpu::stats::BusStats;
use umbra_vcpu::turns::TraceSummary;

/// The whole report, with a final newline.
pub fn render(report: &RunReport, style: Style) -> String {
    let mut out = String::new();
    let stats = &report.stats;
    let heading = format!(
        "{} exits in {:.3} s on {} ({})",
        grouped(stats.total_exits()),
        report.wall.as_secs_f64(),
        report.backend,
        counted(report.vcpus.into(), "vCPU"),
    );
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(out, "{}", style.bold(&heading));
    let _ = writeln!(
        out,
        "  {:<22} {:>14} {:>14} {:>14}",
        "exit", "count", "ns each", "longest ns"
    );
    let mut exits = stats.exits.clone();
    exits.sort_by_key(|(_, exit)| std::cmp::Reverse(exit.count));
    for (kind, exit) in exits {
        let timed = |ns: u64| {
            if stats.guest_ns == 0 {
                "–".to_owned()
            } else {
                grouped(ns)
            }
        };
        let (count, each) = (grouped(exit.count), timed(exit.handling_ns / exit.count.max(1)));
        let longest = timed(exit.longest_ns);
        let _ = writeln!(out, "  {:<22} {count:>14} {each:>14} {longest:>14}", kind.name());
    }
    if let Some(trace) = &report.deterministic {
        deterministic(&mut out, trace);
    }
    bus(&mut out, "MMIO device", &stats.mmio_bus);
    bus(&mut out, "port device", &stats.port_bus);
    let mmio = &stats.mmio;
    if mmio.accesses() > 0 {
        let _ = writeln!(
            out,
            "  MMIO recognised by cache {}{}, by SPTE {}{}, by search {}{}; {} after a stale SPTE",
            grouped(mmio.cache_hits),
            each(mmio.times.cache_ns, mmio.cache_hits),
            grouped(mmio.spte_hits),
            each(mmio.times.spte_ns, mmio.spte_hits),
            grouped(mmio.searches),
            each(mmio.times.search_ns, mmio.searches),
            grouped(mmio.stale),
        );
        let _ = writeln!(
            out,
            "  searches avoided {}; SPTEs made {}, went to memory after all {}, writes to read-only memory {}",
            grouped(mmio.searches_avoided()),
            grouped(mmio.created),
            grouped(mmio.went_to_memory),
            grouped(mmio.read_only_writes),
        );
        let _ = writeln!(
            out,
            "  slot generation {}; {} in use",
            report.slot_generation,
            counted(report.page_tables.into(), "page table"),
        );
        let hottest: Vec<_> = stats
            .hot_pages
            .iter()
            .take(4)
            .map(|page| format!("{:#x} {}", page.gfn, grouped(page.accesses)))
            .collect();
        if !hottest.is_empty() {
            let _ = writeln!(out, "  hottest MMIO pages by gfn: {}", hottest.join(", "));
        }
    }
    if !stats.in_software.is_empty() {
        let mut counts: Vec<_> = stats.in_software.iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let each: Vec<_> = counts
            .iter()
            .map(|(mnemonic, count)| format!("{mnemonic} {}", grouped(**count)))
            .collect();
        let total = grouped(stats.in_software.values().sum());
        let _ = writeln!(out, "  the backend could not execute {total}: {}", each.join(", "));
        let stretches = &stats.stretches;
        let _ = writeln!(
            out,
            "  executed in software {} in {} (longest {}); page tables forgotten {}",
            counted(stretches.instructions, "instruction"),
            counted(stretches.count, "stretch"),
            grouped(stretches.longest),
            counted(stretches.table_resets, "time"),
        );
    }
    software_cpu(&mut out, &stats.software_cpu);
    if report.resets > 0 {
        let _ = writeln!(out, "  {}", counted(report.resets.into(), "reset"));
    }
    out
}

/// Rows of the table of mnemonics.
const MNEMONICS: usize = 12;

/// What a software CPU executed. Nothing, if there is none.
fn software_cpu(out: &mut String, run: &SoftRun) {
    if run.instructions == 0 {
        return;
    }
    let core = run.core_instructions();
    let share = |part: u64| part as f64 * 100.0 / run.instructions.max(1) as f64;
    let _ = writeln!(out, "  {:<22} {:>14}", "instructions", grouped(run.instructions));
    let mut row = |name: &str, count: u64| {
        let _ = writeln!(out, "  {name:<22} {:>14} {:>12.2} %", grouped(count), share(count));
    };
    row("by instruction core", core);
    let ranked = |counts: &BTreeMap<String, u64>| {
        let mut ranked: Vec<_> = counts.iter().map(|(name, count)| (name.clone(), *count)).collect();
        ranked.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        ranked
    };
    let by_core = ranked(&run.by_core);
    for (name, count) in by_core.iter().take(MNEMONICS) {
        row(&format!("  {name}"), *count);
    }
    let rest: u64 = by_core.iter().skip(MNEMONICS).map(|(_, count)| count).sum();
    if rest > 0 {
        let kinds = by_core.len() - MNEMONICS;
        row(&format!("  {} more", grouped(kinds as u64)), rest);
    }
    if !run.undefined.is_empty() {
        let each: Vec<_> = ranked(&run.undefined)
            .iter()
            .map(|(mnemonic, count)| format!("{mnemonic} {}", grouped(*count)))
            .collect();
        let _ = writeln!(out, "  not implemented, #UD: {}", each.join(", "));
    }
}

/// ` (12 ns each)` if time was taken.
fn each(total_ns: u64, count: u64) -> String {
    if total_ns == 0 || count == 0 {
        return String::new();
    }
    format!(" ({} ns each)", grouped(total_ns / count))
}

/// What two runs have in common if they are the same.
fn deterministic(out: &mut String, trace: &TraceSummary) {
    let total = grouped(trace.total());
    let seconds = trace.time.as_secs_f64();
    let _ = writeln!(
        out,
        "  executed {total} instructions; it was {seconds:.9} s for the guest"
    );
    if trace.instructions.len() > 1 {
        let each: Vec<_> = (0..)
            .zip(&trace.instructions)
            .map(|(vcpu, count): (u32, _)| format!("vCPU {vcpu} {}", grouped(*count)))
            .collect();
        let _ = writeln!(out, "    {}", each.join(", "));
    }
    let _ = writeln!(
        out,
        "  trace of {}, digest {}",
        counted(trace.events, "event"),
        digest(trace.digest)
    );
}

/// A digest as people compare it.
pub fn digest(digest: u64) -> String {
    format!("{digest:016x}")
}

fn bus(out: &mut String, heading: &str, bus: &BusStats) {
    let BusStats {
        unclaimed_reads,
        unclaimed_writes,
        refused,
        regions,
        ..
    } = bus;
    if regions.is_empty() && unclaimed_reads + unclaimed_writes == 0 {
        return;
    }
    let mut row = |name: &str, first: &str, second: &str| {
        let _ = writeln!(out, "  {name:<22} {first:>14} {second:>14}");
    };
    row(heading, "reads", "writes");
    for region in regions {
        row(&region.name, &grouped(region.reads), &grouped(region.writes));
    }
    if unclaimed_reads + unclaimed_writes > 0 {
        row("(nobody)", &grouped(*unclaimed_reads), &grouped(*unclaimed_writes));
    }
    if *refused > 0 {
        row("(refused by it)", &grouped(*refused), "");
    }
}

/// A number with its digits in groups of three: `24 576`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// `1 reset`, `2 resets`, `3 accesses`.
pub fn counted(number: u64, noun: &str) -> String {
    let plural = match (number, noun.ends_with('s') || noun.ends_with("ch")) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{} {noun}{plural}", grouped(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use umbra_vcpu::stats::{ExitKind, ExitStat, MmioStats, RegionUse, VcpuStats};

    fn example() -> RunReport {
        let exit = ExitStat {
            count: 1_234_567,
            handling_ns: 2 * 1_234_567,
            longest_ns: 9000,
        };
        let region = RegionUse {
            name: "scratch".to_owned(),
            reads: 5,
            writes: 7,
        };
        RunReport {
            slot_generation: 5,
            page_tables: 3,
            backend: "kvm",
            vcpus: 1,
            wall: Duration::from_millis(1500),
            resets: 1,
            stats: VcpuStats {
                exits: vec![(ExitKind::MmioRead, exit)],
                mmio: MmioStats {
                    cache_hits: 1000,
                    spte_hits: 20,
                    searches: 3,
                    ..MmioStats::default()
                },
                guest_ns: 1,
                mmio_bus: BusStats {
                    regions: vec![region],
                    ..BusStats::default()
                },
                ..VcpuStats::default()
            },
            deterministic: None,
        }
    }

    #[test]
    fn text_has_counts_times_and_devices() {
        let text = render(&example(), Style::Plain);
        assert!(
            text.starts_with("1 234 567 exits in 1.500 s on kvm (1 vCPU)\n"),
            "{text}"
        );
        assert!(
            text.contains("scratch") && text.contains("by cache 1 000, by SPTE 20, by search 3"),
            "{text}"
        );
        assert!(
            text.contains("searches avoided 1 020") && text.contains("1 reset\n"),
            "{text}"
        );
        assert!(!text.contains("port device"), "what wasn't used is left out: {text}");
    }

    #[test]
    fn software_cpu_has_a_table_of_what_the_core_executed() {
        let mut report = example();
        report.stats.mmio.times.spte_ns = 20 * 21;
        report.stats.software_cpu = SoftRun {
            instructions: 2_000_000,
            by_core: (0..14u64).map(|n| (format!("op{n:02}"), 1000 * (n + 1))).collect(),
            undefined: BTreeMap::from([("vaddps".to_owned(), 3)]),
        };
        let text = render(&report, Style::Plain);
        for part in [
            "2 000 000\n",
            "105 000         5.25 %",
            "op13",
            "14 000",
            "2 more",
            "#UD: vaddps 3",
            "by SPTE 20 (21 ns each)",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("op01"), "only the commonest: {text}");
        assert!(!render(&example(), Style::Plain).contains("instruction core"));
    }

    #[test]
    fn runs_before_and_after_a_reset_add_up() {
        let both = example().after_reset(&example());
        assert_eq!((both.resets, both.wall), (3, Duration::from_secs(3)));
        assert_eq!(both.stats.total_exits(), 2 * 1_234_567);
    }

    #[test]
    fn deterministic_run_tells_what_can_be_compared() {
        let report = RunReport {
            deterministic: Some(TraceSummary {
                instructions: vec![1_000_000, 5],
                time: Duration::from_nanos(1_000_001_007),
                events: 1,
                digest: 0xab,
            }),
            ..example()
        };
        let text = render(&example().after_reset(&report), Style::Plain);
        for part in [
            "executed 1 000 005 instructions; it was 1.000001007 s for the guest\n",
            "vCPU 0 1 000 000, vCPU 1 5\n",
            "trace of 1 event, digest 00000000000000ab\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let value: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(value["deterministic"]["instructions"], 1_000_005);
        assert_eq!(value["deterministic"]["digest"], "00000000000000ab");
    }

    #[test]
    fn json_is_one_line_with_the_same_numbers() {
        let json = example().to_json();
        assert_eq!(json.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["exits"]["mmio-read"]["count"], 1_234_567);
        assert_eq!(value["mmio"]["cache_hits"], 1000);
        assert_eq!(value["searches_avoided"], 1020);
        assert_eq!(value["wall_seconds"], 1.5);
    }

    #[test]
    fn numbers_are_grouped_and_counted() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1 000");
        assert_eq!(grouped(12_345_678), "12 345 678");
        assert_eq!(counted(1, "access"), "1 access");
        assert_eq!(counted(2, "access"), "2 accesses");
        assert_eq!(counted(0, "reset"), "0 resets");
    }
}
