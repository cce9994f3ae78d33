//! Markdown.

use crate::linux;
use crate::measure::{Choice, Column, Results};
use crate::median::Times;
use std::fmt::Write as _;
use umbra_integration_tests::speed::rows::{Measure, Row};

/// The table of the loops, and what else some of them count.
pub fn rows(results: &Results) -> String {
    let mut out = String::new();
    let passes = results.work.passes.saturating_sub(1) * results.rounds;
    let _ = writeln!(
        out,
        "{}. Millions of guest instructions in a second, medians of {passes}.\n",
        processor()
    );
    head(&mut out, "loop", results);
    for row in Row::ALL.into_iter().filter(|row| results.work.rows.contains(row)) {
        let instructions = results.work.instructions(row) as f64;
        line(&mut out, row.title(), results, |column| {
            Some(instructions / column.times.get(&row)?.median / 1e6)
        });
    }
    let measured: Vec<(Row, Measure)> = Row::ALL
        .into_iter()
        .filter(|row| results.work.rows.contains(row))
        .filter_map(|row| Some((row, row.measure()?)))
        .collect();
    if measured.is_empty() {
        return out;
    }
    let _ = writeln!(out, "\nThe same runs in other measures:\n");
    head(&mut out, "measure", results);
    for (row, measure) in measured {
        let rounds = f64::from(results.work.rounds(row));
        let each_second = |column: &Column| Some(rounds / column.times.get(&row)?.median);
        match measure {
            Measure::Bytes(bytes) => line(&mut out, "string, GiB/s", results, |column| {
                Some(each_second(column)? * f64::from(bytes) / f64::from(1 << 30))
            }),
            Measure::Events(events, name) => {
                line(&mut out, &format!("{name}, millions in a second"), results, |column| {
                    Some(each_second(column)? * f64::from(events) / 1e6)
                });
            }
        }
    }
    out
}

/// The two lines a table begins with.
fn head(out: &mut String, first: &str, results: &Results) {
    let _ = write!(out, "| {first} |");
    for column in &results.columns {
        let _ = write!(out, " {} |", column.title);
    }
    let peers = || results.columns.iter().filter(|column| column.choice != Choice::Umbra);
    for peer in peers() {
        let _ = write!(out, " Umbra / {} |", word(&peer.title));
    }
    let _ = writeln!(out, "\n|---|{}", "--:|".repeat(results.columns.len() + peers().count()));
}

/// One line: what `value` says of each machine, and Umbra's over each other one's.
fn line(out: &mut String, title: &str, results: &Results, value: impl Fn(&Column) -> Option<f64>) {
    let _ = write!(out, "| {title} |");
    for column in &results.columns {
        let _ = write!(out, " {} |", value(column).map_or_else(|| "–".to_owned(), number));
    }
    let umbra = results.columns.iter().find(|column| column.choice == Choice::Umbra);
    let umbra = umbra.and_then(&value);
    for peer in results.columns.iter().filter(|column| column.choice != Choice::Umbra) {
        let ratio = umbra.zip(value(peer)).map(|(umbra, peer)| umbra / peer);
        let _ = write!(out, " {} |", ratio.map_or_else(|| "–".to_owned(), number));
    }
    out.push('\n');
}

/// The table of the boots.
pub fn linux(results: &linux::Results) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{}. Seconds, median of {} (shortest to longest); `{}`.\n",
        processor(),
        results.runs,
        results.cmdline
    );
    let _ = write!(out, "| kernel | Umbra, `--backend soft` |");
    if let Some(qemu) = &results.qemu {
        let _ = write!(out, " {qemu}, `-M {} -cpu max` | Umbra / QEMU |", linux::QEMU_MACHINE);
    }
    let _ = writeln!(
        out,
        "\n|---|--:|{}",
        if results.qemu.is_some() { "--:|--:|" } else { "" }
    );
    for boot in &results.boots {
        let _ = write!(
            out,
            "| {}, {} MiB | {} |",
            boot.kernel,
            boot.memory,
            seconds(&boot.umbra)
        );
        if let Some(qemu) = &boot.qemu {
            let ratio = boot.umbra.median / qemu.median;
            let _ = write!(out, " {} | {} |", seconds(qemu), number(ratio));
        }
        out.push('\n');
    }
    out
}

fn seconds(times: &Times) -> String {
    format!("{:.2} ({:.2} to {:.2})", times.median, times.least, times.most)
}

/// Three significant digits are all that a shared machine supports.
fn number(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.2}")
    } else if value < 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

fn word(title: &str) -> &str {
    title.split_whitespace().next().unwrap_or(title)
}

/// This computer's, and how many.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, model)| model)
        .collect();
    let model = models.first().copied().unwrap_or("An unknown processor");
    format!("{model}, {} CPUs", models.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_integration_tests::speed::guest::Work;

    fn column(choice: Choice, title: &str, median: f64) -> Column {
        let times = Times {
            median,
            least: median,
            most: median,
        };
        Column {
            choice,
            title: title.to_owned(),
            times: [(Row::Memory, times), (Row::Pages, times)].into(),
        }
    }

    #[test]
    fn rows_have_speeds_and_ratios() {
        let mut work = Work::all(3, 1);
        work.rows = vec![Row::Memory, Row::Pages, Row::Branch];
        let results = Results {
            work,
            rounds: 2,
            columns: vec![
                column(Choice::Umbra, "Umbra, `--backend soft`", 0.5),
                column(Choice::Bochs, "Bochs 2.7", 2.0),
            ],
        };
        let text = rows(&results);
        assert!(text.contains("medians of 4."), "{text}");
        assert!(
            text.contains("| loop | Umbra, `--backend soft` | Bochs 2.7 | Umbra / Bochs |\n|---|--:|--:|--:|\n"),
            "{text}"
        );
        let million = results.work.instructions(Row::Memory) as f64 / 1e6;
        let memory = format!("| {} | {} | 4.00 |", number(million * 2.0), number(million / 2.0));
        assert!(text.contains(&memory), "{text}");
        assert!(text.contains("| string, GiB/s |"), "{text}");
        let branch = text.lines().find(|line| line.starts_with("| branch"));
        assert!(branch.is_some_and(|line| line.ends_with("| – | – | – |")), "{text}");
    }

    #[test]
    fn linux_without_qemu_has_two_columns() {
        let times = Times {
            median: 1.0,
            least: 0.5,
            most: 2.0,
        };
        let mut results = linux::Results {
            runs: 3,
            cmdline: "quiet".to_owned(),
            qemu: None,
            boots: vec![linux::Boot {
                kernel: "small".to_owned(),
                memory: 256,
                umbra: times,
                qemu: None,
            }],
        };
        assert!(linux(&results).ends_with("|---|--:|\n| small, 256 MiB | 1.00 (0.50 to 2.00) |\n"));
        results.qemu = Some("QEMU 7.2".to_owned());
        results.boots[0].qemu = Some(Times { median: 2.0, ..times });
        assert!(linux(&results).ends_with("| 1.00 (0.50 to 2.00) | 2.00 (0.50 to 2.00) | 0.50 |\n"));
    }
}
