//! The silicon as oracle: random instructions with random operands, executed at CPL 3 in long mode by the real CPU and
//! by the instruction core. Registers, defined flags, x87/SSE state, memory and faults must be equal.
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
#[expect(unsafe_code, reason = "maps guest memory into a KVM virtual machine")]
mod machine;
mod model;
mod numbers;
mod report;
mod rng;

use batch::Batch;
use report::Report;
use rng::Rng;

const DEFAULT_CASES: u64 = 300_000;
const DEFAULT_SEED: u64 = 0x756d_6272_615f_6361;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| {
            text.trim_start_matches("0x")
                .parse()
                .or(u64::from_str_radix(text.trim_start_matches("0x"), 16))
                .ok()
        })
        .unwrap_or(default)
}

#[test]
fn silicon_and_core_agree_on_random_instructions() {
    let mut machine = match machine::Machine::new() {
        Ok(machine) => machine,
        Err(why) => {
            println!("skipped: no usable KVM ({why})");
            return;
        }
    };
    let cases = number("UMBRA_SILICON_CASES", DEFAULT_CASES);
    let seed = number("UMBRA_SILICON_SEED", DEFAULT_SEED);
    println!("seed {seed:#x}, {cases} cases");
    let generator = generate::Generator::new(std::env::var("UMBRA_SILICON_ONLY").ok().as_deref());
    let mut rng = Rng::new(seed);
    let mut report = Report::default();
    while report.cases < cases && report.worth_going_on() {
        let batch = Batch::build(&generator, &mut rng, machine::SLOTS);
        batch.run(&mut machine, &mut report);
    }
    report.print();
    if std::env::var_os("UMBRA_SILICON_TABLE").is_some() {
        report.write_table();
    }
    assert!(
        report.failures.is_empty(),
        "{} disagreements (seed {seed:#x})",
        report.failures.len()
    );
}
