//! Counts by mnemonic and mode, and the disagreements found.

use super::machine::End;
use super::mode::Mode;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Report {
    pub failures: Vec<String>,
    programs: BTreeMap<Mode, [u64; 4]>,
    /// Executions, by mnemonic and mode in which the program began.
    coverage: BTreeMap<String, BTreeMap<Mode, u64>>,
    exceptions: u64,
    deviations: BTreeMap<&'static str, u64>,
}

const EQUAL: usize = 0;
const SHUT_DOWN: usize = 1;
const LEFT_OUT: usize = 2;
const DEVIATED: usize = 3;

impl Report {
    pub fn equal(&mut self, mode: Mode, trace: &[String], end: End) {
        self.count(mode, trace);
        let counts = self.programs.entry(mode).or_default();
        counts[EQUAL] += 1;
        counts[SHUT_DOWN] += u64::from(end == End::ShutDown);
    }

    pub fn deviates(&mut self, mode: Mode, trace: &[String], deviation: &'static str) {
        self.count(mode, trace);
        self.programs.entry(mode).or_default()[DEVIATED] += 1;
        *self.deviations.entry(deviation).or_default() += 1;
    }

    pub fn left_out(&mut self, mode: Mode) {
        self.programs.entry(mode).or_default()[LEFT_OUT] += 1;
    }

    pub fn fail(&mut self, mode: Mode, index: u64, differences: &[String], trace: &[String]) {
        let text = format!(
            "case {index}, {}:\n    {}\n  after\n    {}",
            mode.name(),
            differences.join("\n    "),
            trace.join("\n    ")
        );
        // At once: the machine under the test may not outlive the next program.
        println!("{text}");
        self.failures.push(text);
    }

    /// The modes in which less than two thirds of the programs were equal on both sides.
    pub fn thin(&self) -> Vec<&'static str> {
        let thin = |counts: &[u64; 4]| {
            let [equal, _, left_out, deviated] = counts;
            3 * equal < 2 * (equal + left_out + deviated)
        };
        let modes = self.programs.iter().filter(|(_, counts)| thin(counts));
        modes.map(|(mode, _)| mode.name()).collect()
    }

    fn count(&mut self, mode: Mode, trace: &[String]) {
        for line in trace {
            let mnemonic = line.split(' ').next().unwrap_or_default();
            if mnemonic == "exception" {
                self.exceptions += 1;
            } else {
                *self
                    .coverage
                    .entry(mnemonic.to_lowercase())
                    .or_default()
                    .entry(mode)
                    .or_default() += 1;
            }
        }
    }

    /// Prints the coverage as `docs/instructions.md` has it.
    pub fn print(&self) {
        for (mode, [equal, shut_down, left_out, deviated]) in &self.programs {
            println!(
                "{}: {equal} programs equal, {shut_down} of them shut down; {deviated} deviated, {left_out} left out",
                mode.name()
            );
        }
        println!("{} exceptions delivered", self.exceptions);
        for (deviation, count) in &self.deviations {
            println!("deviation: {deviation}: {count}");
        }
        println!("| Mnemonic | {} |", Mode::ALL.map(Mode::name).join(" | "));
        println!("| --- |{}", " --: |".repeat(Mode::ALL.len()));
        for (mnemonic, modes) in &self.coverage {
            let cells = Mode::ALL.map(|mode| modes.get(&mode).map_or(String::new(), u64::to_string));
            println!("| `{mnemonic}` | {} |", cells.join(" | "));
        }
    }
}
