//! Reads what the lab said on its console: which program ran, how its tests ended, what was skipped and why.
//!
//! `/init` brackets each program with `LAB BEGIN <name>` and `LAB END <name> <status>` and ends with
//! `LAB RESULT <programs that failed>`; between the brackets stands the output of Rust's test harness.

use std::fmt;

/// How one program went.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Program {
    /// Its name in the plan.
    pub name: String,
    /// Tests that passed, by libtest's own count.
    pub passed: u32,
    /// Tests that failed, by libtest's own count.
    pub failed: u32,
    /// Tests marked `#[ignore]`.
    pub ignored: u32,
    /// The reasons of tests that said `skipped: …`.
    pub skipped: Vec<String>,
    /// Names of the tests that failed.
    pub failures: Vec<String>,
    /// Exit status; `None` while it has not ended. 124 or 143 is a timeout.
    pub status: Option<i32>,
    /// Everything it printed.
    pub output: String,
}

impl Program {
    /// Ended with status 0 and no failed test.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.status == Some(0) && self.failed == 0
    }
}

/// What the lab reported.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The programs in the order they ran.
    pub programs: Vec<Program>,
    /// The number on the `LAB RESULT` line; `None` if the lab died before it.
    pub result: Option<u32>,
    /// Complaints of the lab's own kernel (panic, oops, warning): a guest must never cause one.
    pub kernel: Vec<String>,
}

/// What the lab's kernel says when something is wrong with it.
const KERNEL_COMPLAINTS: [&str; 6] = [
    "Kernel panic",
    "Oops:",
    "BUG: ",
    "WARNING: CPU",
    "general protection fault",
    "Out of memory:",
];

impl Report {
    /// Reads a console log. Lines may end in CR LF.
    #[must_use]
    pub fn parse(console: &str) -> Self {
        let mut report = Self::default();
        let mut current: Option<Program> = None;
        for line in console.lines().map(|line| line.trim_end_matches('\r')) {
            if line.starts_with('[') && KERNEL_COMPLAINTS.iter().any(|words| line.contains(words)) {
                report.kernel.push(line.to_owned());
            }
            if let Some(name) = after(line, "LAB BEGIN ") {
                report.programs.extend(current.take());
                current = Some(Program {
                    name: name.to_owned(),
                    ..Program::default()
                });
            } else if let Some(end) = after(line, "LAB END ") {
                if let Some(mut program) = current.take() {
                    program.status = end.rsplit(' ').next().and_then(|status| status.parse().ok());
                    report.programs.push(program);
                }
            } else if let Some(number) = after(line, "LAB RESULT ") {
                report.result = number.trim().parse().ok();
            } else if let Some(program) = &mut current {
                read_line(program, line);
            }
        }
        report.programs.extend(current);
        report
    }

    /// The lab came to its end, every program was good, and its kernel had nothing to complain of.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.result == Some(0) && self.kernel.is_empty() && self.programs.iter().all(Program::is_good)
    }

    /// Tests that passed, in all programs.
    #[must_use]
    pub fn passed(&self) -> u32 {
        self.programs.iter().map(|program| program.passed).sum()
    }
}

/// What follows `marker`, which may stand behind an unfinished line of somebody else's.
fn after<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    line.find(marker).map(|at| &line[at + marker.len()..])
}

fn read_line(program: &mut Program, line: &str) {
    program.output.push_str(line);
    program.output.push('\n');
    if let Some(reason) = after(line, "skipped: ") {
        program.skipped.push(reason.to_owned());
    } else if let Some(counts) = after(line, "test result: ") {
        let count = |what: &str| {
            counts
                .split([';', '.'])
                .filter_map(|part| part.trim().strip_suffix(what)?.trim().parse::<u32>().ok())
                .sum::<u32>()
        };
        program.passed += count("passed");
        program.failed += count("failed");
        program.ignored += count("ignored");
    } else if let Some(name) = line
        .strip_prefix("test ")
        .and_then(|rest| rest.strip_suffix(" ... FAILED"))
    {
        program.failures.push(name.to_owned());
    }
}

impl fmt::Display for Report {
    /// One line per program, the failures with their output, and a total.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for program in &self.programs {
            let verdict = if program.is_good() { "ok" } else { "FAILED" };
            write!(f, "{:<40} {verdict:<6} {} passed", program.name, program.passed)?;
            if program.failed > 0 {
                write!(f, ", {} failed", program.failed)?;
            }
            if program.ignored > 0 {
                write!(f, ", {} ignored", program.ignored)?;
            }
            match program.status {
                Some(0) => {}
                Some(status @ (124 | 143)) => write!(f, ", timed out (status {status})")?,
                Some(status) => write!(f, ", exit status {status}")?,
                None => write!(f, ", never ended")?,
            }
            writeln!(f)?;
            for reason in &program.skipped {
                writeln!(f, "    skipped: {reason}")?;
            }
            for name in &program.failures {
                writeln!(f, "    failed: {name}")?;
            }
            if !program.is_good() {
                for line in program.output.lines() {
                    writeln!(f, "    | {line}")?;
                }
            }
        }
        for line in &self.kernel {
            writeln!(f, "the lab's kernel complained: {line}")?;
        }
        let failed: u32 = self.programs.iter().map(|program| program.failed).sum();
        let skipped: usize = self.programs.iter().map(|program| program.skipped.len()).sum();
        write!(
            f,
            "total: {} programs, {} tests passed, {failed} failed, {skipped} skipped; ",
            self.programs.len(),
            self.passed()
        )?;
        match self.result {
            Some(number) => write!(f, "LAB RESULT {number}"),
            None => write!(f, "the lab died before its LAB RESULT line"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Linux version\r
LAB BEGIN kvm_smoke\r
running 2 tests\r
test one ... ok\r
test two ... ok\r
\r
successes:\r
---- two stdout ----\r
skipped: no huge pages\r
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.05s\r
LAB END kvm_smoke 0\r
LAB RESULT 0\r
";

    #[test]
    fn parse_good_run_is_counted() {
        let report = Report::parse(GOOD);
        assert!(report.is_good(), "{report}");
        assert_eq!((report.passed(), report.programs[0].ignored), (2, 1));
        assert_eq!(report.programs[0].skipped, ["no huge pages"]);
        assert!(
            report
                .to_string()
                .ends_with("1 programs, 2 tests passed, 0 failed, 1 skipped; LAB RESULT 0")
        );
    }

    #[test]
    fn parse_failed_test_is_named_and_shown() {
        let log = GOOD
            .replace("test two ... ok", "test two ... FAILED")
            .replace("ok. 2 passed; 0 failed", "FAILED. 1 passed; 1 failed")
            .replace("kvm_smoke 0", "kvm_smoke 101")
            .replace("RESULT 0", "RESULT 1");
        let report = Report::parse(&log);
        assert!(!report.is_good());
        assert_eq!(report.programs[0].failures, ["two"]);
        assert!(report.to_string().contains("exit status 101"), "{report}");
        assert!(report.to_string().contains("| running 2 tests"), "{report}");
    }

    #[test]
    fn parse_lab_that_dies_is_not_good() {
        let cut = GOOD.split("LAB END").next().expect("split gives one");
        let report = Report::parse(&format!(
            "{cut}[    3.1] Kernel panic - not syncing: Attempted to kill init!\n"
        ));
        assert!(!report.is_good());
        assert_eq!(report.kernel.len(), 1);
        assert!(report.to_string().contains("never ended"), "{report}");
        assert!(
            report.to_string().ends_with("died before its LAB RESULT line"),
            "{report}"
        );
    }

    #[test]
    fn parse_timeout_is_said() {
        let report = Report::parse(&GOOD.replace("kvm_smoke 0", "kvm_smoke 143"));
        assert!(report.to_string().contains("timed out"), "{report}");
    }
}
