//! The figures as a Markdown table.

use super::boot::Figures;
use std::fmt::Write;

/// One row for each kernel and way.
pub fn render(rows: &[(&str, bool, Figures)]) -> String {
    let mut out = String::from(
        "\n| kernel | MMIO | accesses | by cache | by SPTE | by search | ns each: cache | SPTE | search | all | ms in all |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (kernel, remembers, figures) in rows {
        let remembered = if *remembers { "remembered" } else { "looked up" };
        let accesses: u64 = figures.accesses.iter().sum();
        let [cache, spte, search] = figures.accesses;
        let each: Vec<_> = figures
            .ns
            .iter()
            .zip(figures.accesses)
            .map(|(ns, count)| average(*ns, count))
            .collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {kernel} | {remembered} | {accesses} | {cache} | {spte} | {search} | {} | {} | {:.2} |",
            each.join(" | "),
            average(figures.total_ns(), accesses),
            figures.total_ns() as f64 / 1e6,
        );
    }
    out
}

fn average(ns: u64, count: u64) -> String {
    if count == 0 {
        return "–".to_owned();
    }
    format!("{:.0}", ns as f64 / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_counts_and_averages() {
        let figures = Figures {
            accesses: [300, 100, 0],
            ns: [3000, 2000, 0],
            guest_ns: 1,
        };
        let table = render(&[("small", true, figures)]);
        let row = table.lines().last().unwrap();
        assert_eq!(
            row,
            "| small | remembered | 400 | 300 | 100 | 0 | 10 | 20 | – | 12 | 0.01 |"
        );
    }
}
