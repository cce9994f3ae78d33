//! Counts by mnemonic and the disagreements found.

use super::generate::Case;
use super::machine::{Ended, How};
use iced_x86::Code;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

/// Enough to work with.
const MANY: usize = 40;

#[derive(Default)]
pub struct Report {
    pub cases: u64,
    pub failures: Vec<String>,
    /// Batches that were run twice.
    repeated: u64,
    failed_codes: BTreeMap<String, usize>,
    coverage: BTreeMap<String, Row>,
}

#[derive(Default)]
struct Row {
    forms: BTreeSet<String>,
    cases: u64,
    faults: u64,
}

impl Report {
    pub fn worth_going_on(&self) -> bool {
        self.failures.len() < MANY
    }

    /// Whether a batch may be run once more, which is counted: at most one in 50 000 cases, and two.
    pub fn may_repeat(&mut self) -> bool {
        let may = self.repeated < 2 + self.cases / 50_000;
        self.repeated += u64::from(may);
        may
    }

    pub fn note(&mut self, case: &Case, silicon: &Ended, differences: &[String]) {
        self.cases += 1;
        let row = self
            .coverage
            .entry(format!("{:?}", case.insn.mnemonic()).to_lowercase())
            .or_default();
        row.cases += 1;
        row.faults += u64::from(matches!(silicon.how, How::Fault { .. }));
        let form = format!("{:?}", case.insn.code());
        if !row.forms.contains(&form) {
            row.forms.insert(form);
        }
        if !differences.is_empty() {
            self.fail(case, differences);
        }
    }

    pub fn fail(&mut self, case: &Case, differences: &[String]) {
        let seen = self.failed_codes.entry(format!("{:?}", case.insn.code())).or_default();
        *seen += 1;
        if *seen > 2 {
            return;
        }
        let mut text = format!("{:?} {} {:02x?}\n", case.insn.code(), case.insn, case.bytes);
        for (number, value) in case.input.gpr.iter().enumerate() {
            let _ = write!(text, " r{number}={value:x}");
        }
        let _ = write!(
            text,
            " flags={:x} segments={:x?}",
            case.input.rflags, case.input.segments
        );
        let fx = &case.input.fx;
        let number = |at: usize, length: usize| {
            let bytes = fx[at..at + length].iter().rev();
            bytes.map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let _ = write!(
            text,
            "\n mxcsr={} fcw={} fsw={}",
            number(24, 4),
            number(0, 2),
            number(2, 2)
        );
        for register in 0..8 {
            let _ = write!(text, " st{register}={}", number(32 + 16 * register, 10));
        }
        for register in 0..16 {
            let _ = write!(text, " xmm{register}={}", number(160 + 16 * register, 16));
        }
        for difference in differences {
            let _ = write!(text, "\n    {difference}");
        }
        self.failures.push(text);
    }

    pub fn broken(&mut self, why: &str) {
        self.failures.push(why.to_owned());
    }

    pub fn print(&self) {
        let faults: u64 = self.coverage.values().map(|row| row.faults).sum();
        let forms: usize = self.coverage.values().map(|row| row.forms.len()).sum();
        println!(
            "{} cases, {} mnemonics, {forms} forms, {faults} faults",
            self.cases,
            self.coverage.len()
        );
        if self.repeated > 0 {
            println!("{} batches run twice, for a #UD that only KVM knows of", self.repeated);
        }
        for failure in &self.failures {
            println!("{failure}");
        }
        for (code, count) in &self.failed_codes {
            println!("  {code}: {count}");
        }
    }

    /// Those of `forms` that no case had.
    pub fn missing(&self, forms: &[Code]) -> Vec<Code> {
        let seen = |code: &Code| {
            self.coverage
                .values()
                .any(|row| row.forms.contains(&format!("{code:?}")))
        };
        forms.iter().copied().filter(|code| !seen(code)).collect()
    }

    fn cells(&self, mnemonic: &str) -> String {
        self.coverage.get(mnemonic).map_or_else(
            || "| | | ".to_owned(),
            |row| format!("| {} | {} | {} ", row.forms.len(), row.cases, row.faults),
        )
    }
}

/// Writes coverage by modes between two marks in `docs/instructions.md`.
pub fn write_table(mark: &str, modes: &[(&str, &Report)]) {
    // Two tests write, each its own table.
    static PAGE: Mutex<()> = Mutex::new(());
    let _guard = PAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/instructions.md");
    let page = std::fs::read_to_string(path).expect("docs/instructions.md");
    let (start, end) = (format!("<!-- {mark} -->"), format!("<!-- end of {mark} -->"));
    let head = page.split(&start).next().expect("start mark");
    let tail = page.split(&end).nth(1).expect("end mark");
    let counts: Vec<String> = modes
        .iter()
        .map(|(name, report)| format!("{name} code: {} cases.", report.cases))
        .collect();
    let mut table = format!("{}\n\n| Mnemonic ", counts.join(" "));
    for (name, _) in modes {
        let _ = write!(table, "| Forms, {name} | Cases | of them faults ");
    }
    let _ = writeln!(table, "|\n| --- {}|", "| --: | --: | --: ".repeat(modes.len()));
    let mnemonics: BTreeSet<&String> = modes.iter().flat_map(|(_, report)| report.coverage.keys()).collect();
    for mnemonic in mnemonics {
        let _ = write!(table, "| `{mnemonic}` ");
        for (_, report) in modes {
            table.push_str(&report.cells(mnemonic));
        }
        table.push_str("|\n");
    }
    std::fs::write(path, format!("{head}{start}\n{table}{end}{tail}")).expect("docs/instructions.md is writable");
}
