//! Markdown: one table per panel.

use crate::suite::{Panel, Suite};
use std::fmt::Write;

/// The panel as a heading, a table (nanoseconds, median) with the ratio to the baseline, and its plot.
pub fn markdown(suite: &Suite, panel: &Panel, plot: &str) -> String {
    let mut out = String::new();
    let title = if panel.title.is_empty() {
        suite.name.to_owned()
    } else {
        panel.title.join(", ")
    };
    let names: Vec<&String> = panel.series.keys().collect();
    let ratio = panel.series.contains_key(suite.ours) && panel.series.contains_key(suite.baseline);
    let _ = writeln!(
        out,
        "\n#### {title}\n\n![{} over {}: {title}](img/{plot})\n",
        suite.name, suite.axis_label
    );
    let _ = write!(out, "| {} |", suite.axis_label);
    for name in &names {
        let _ = write!(out, " {} |", name.replace('_', " "));
    }
    let _ = writeln!(
        out,
        "{}",
        if ratio {
            format!(" {} |", suite.ratio_label)
        } else {
            String::new()
        }
    );
    let _ = writeln!(out, "|{}", "--:|".repeat(1 + names.len() + usize::from(ratio)));
    for x in panel.axis() {
        let _ = write!(out, "| {x} |");
        for name in &names {
            let cell = panel.series[*name]
                .get(&x)
                .map_or_else(|| "–".to_owned(), |ns| nanoseconds(*ns));
            let _ = write!(out, " {cell} |");
        }
        if ratio {
            let of = |name: &str| panel.series[name].get(&x).copied();
            let cell = of(suite.ours)
                .zip(of(suite.baseline))
                .map_or_else(|| "–".to_owned(), |(a, b)| format!("{:.2}", a / b));
            let _ = write!(out, " {cell} |");
        }
        out.push('\n');
    }
    out
}

/// Three significant digits are all that a shared machine supports.
fn nanoseconds(ns: f64) -> String {
    if ns < 10.0 {
        format!("{ns:.2}")
    } else if ns < 100.0 {
        format!("{ns:.1}")
    } else {
        format!("{ns:.0}")
    }
}
