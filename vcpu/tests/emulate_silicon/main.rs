//! The silicon as oracle: random instructions with random operands, executed at CPL 3 by the real CPU and by the
//! instruction core. Registers, defined flags, x87/SSE state, memory and faults must be equal. 64-bit code runs in a KVM
//! virtual machine (`machine`), code of compatibility mode in this process (`process`).
//!
//! `UMBRA_SILICON_CASES` sets the number of cases, `UMBRA_SILICON_SEED` the seed, `UMBRA_SILICON_ONLY` a mnemonic (`f*` for
//! all that begin so);
//! `UMBRA_SILICON_TABLE=1` writes the coverage into `docs/instructions.md`.
#![cfg(target_arch = "x86_64")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "a test that draws numbers and cuts them to size"
)]

mod approximate;
mod batch;
mod compare;
mod generate;
mod layout;
#[expect(unsafe_code, reason = "maps guest memory into a KVM virtual machine")]
mod machine;
mod mode;
mod model;
mod numbers;
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "runs code of compatibility mode and catches its faults")]
mod process;
mod report;
mod rng;
mod segments;
mod vendor;

use batch::{Batch, Silicon};
use generate::Generator;
use mode::Mode;
use report::Report;
use rng::Rng;
use std::sync::{Mutex, PoisonError};

/// One at a time: a pagetable-VM KVM that runs a guest on one thread of a process leaves the processor without the local
/// descriptor table that the other threads' 16- and 32-bit segments are in.
static TURN: Mutex<()> = Mutex::new(());

const DEFAULT_CASES: u64 = 500_000;
const DEFAULT_SEED: u64 = 0x756d_6272_615f_6361;

/// A number, hexadecimal behind `0x`.
fn parse(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| match parse(&text) {
        Some(number) => number,
        None => panic!("{name}: {text:?} is no number"),
    })
}

/// Of a hundred cases, how many fall to a mode: 64-bit mode has the most forms, and all of SSE twice as many registers.
const fn share(mode: Mode) -> u64 {
    match mode {
        Mode::Long => 50,
        Mode::Compat32 => 30,
        Mode::Compat16 => 20,
    }
}

/// Runs the cases of a mode. Everything must be equal, and every form must have had its turn.
fn run(mode: Mode, silicon: &mut dyn Silicon) -> Report {
    let cases = number("UMBRA_SILICON_CASES", DEFAULT_CASES) * share(mode) / 100;
    let seed = number("UMBRA_SILICON_SEED", DEFAULT_SEED);
    println!("{mode:?}: seed {seed:#x}, {cases} cases");
    let only = std::env::var("UMBRA_SILICON_ONLY").ok();
    let mut report = Report::default();
    let Some(generator) = Generator::new(mode, only.as_deref()) else {
        println!("skipped: no form of this instruction in this mode");
        return report;
    };
    let mut rng = Rng::new(seed ^ u64::from(mode.bits()));
    while report.cases < cases && report.worth_going_on() {
        let batch = Batch::build(&generator, &mut rng, layout::SLOTS);
        batch.run(silicon, &mut report);
    }
    report.print();
    assert!(
        report.failures.is_empty(),
        "{} disagreements (seed {seed:#x})",
        report.failures.len()
    );
    // Forms are drawn evenly.
    if cases > 30 * generator.forms().len() as u64 {
        assert_eq!(report.missing(generator.forms()), [], "forms without a case");
    }
    report
}

#[test]
fn numbers_have_the_base_that_their_prefix_says() {
    assert_eq!(
        ["1234", "0x1234", "0x", "12g"].map(parse),
        [Some(1234), Some(0x1234), None, None]
    );
}

#[test]
fn silicon_and_core_agree_on_random_instructions() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut machine = match machine::Machine::new() {
        Ok(machine) => machine,
        Err(why) => {
            println!("skipped: no usable KVM ({why})");
            return;
        }
    };
    let report = run(Mode::Long, &mut machine);
    if std::env::var_os("UMBRA_SILICON_TABLE").is_some() {
        report::write_table("coverage", &[("64-bit", &report)]);
    }
}

#[test]
#[cfg(target_env = "gnu")]
fn silicon_and_core_agree_in_compatibility_mode() {
    // What vendors do differently in these modes (`vendor`) was found on Intel's processors.
    if !vendor::is_intel() && std::env::var_os("UMBRA_SILICON_ANY_VENDOR").is_none() {
        println!("skipped: an Intel processor (UMBRA_SILICON_ANY_VENDOR=1 compares on any)");
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut reports = Vec::new();
    for mode in [Mode::Compat32, Mode::Compat16] {
        let mut process = match process::Process::new(mode) {
            Ok(process) => process,
            Err(why) => {
                println!("skipped: no compatibility mode ({why})");
                return;
            }
        };
        reports.push(run(mode, &mut process));
    }
    if std::env::var_os("UMBRA_SILICON_TABLE").is_some() {
        report::write_table(
            "compatibility coverage",
            &[("32-bit", &reports[0]), ("16-bit", &reports[1])],
        );
    }
}
