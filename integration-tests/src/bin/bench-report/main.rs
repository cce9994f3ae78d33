//! Turns Criterion's results into the tables and plots of `docs/benchmarks.md`.
//!
//! `cargo run -p umbra-integration-tests --bin bench-report` after `cargo bench` rewrites the parts of that page that
//! stand between `<!-- begin NAME -->` and `<!-- end NAME -->`, and the SVG files beside it. The prose is left alone.

mod collect;
mod plot;
mod suite;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use umbra_integration_tests::page;

fn main() -> ExitCode {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    match run(&root) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-report: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reads all results, then rewrites the page and the plots. Returns a line that says what was done.
fn run(root: &std::path::Path) -> Result<String, Box<dyn std::error::Error>> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let results = target.join("criterion");
    let measurements = collect::measurements(&results)
        .map_err(|error| format!("no results in {} ({error}); run `cargo bench` first", results.display()))?;
    let page = page::path();
    let mut text = std::fs::read_to_string(&page)?;
    let mut written = 0;
    for suite in suite::SUITES {
        let panels = suite.panels(&measurements);
        if panels.is_empty() {
            continue;
        }
        let mut body = String::new();
        for panel in &panels {
            let file = format!("{}-{}.svg", suite.name, panel.slug());
            std::fs::write(root.join("docs/img").join(&file), plot::draw(suite, panel)?)?;
            body.push_str(&table::markdown(suite, panel, &file));
        }
        text = page::replace_section(&text, suite.name, &body)?;
        written += panels.len();
    }
    std::fs::write(&page, text)?;
    Ok(format!(
        "{} measurements, {written} tables written to docs/benchmarks.md",
        measurements.len()
    ))
}
