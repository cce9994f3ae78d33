//! The lab, run as part of `cargo test`: whatever needs a stock KVM passes on one, with nested and with shadow paging.

use std::sync::{Mutex, PoisonError};
use umbra_integration_tests::lab::host::Host;
use umbra_integration_tests::lab::qemu::Machine;
use umbra_integration_tests::lab::{plan, run};

/// One lab at a time: each takes two CPUs, and their limits assume that they have them.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The error says what could not be run; what failed in the lab is a panic with the lab's report.
type TestResult = Result<(), Box<dyn std::error::Error>>;

fn lab_is_good(npt: bool) -> TestResult {
    let host = match Host::find() {
        Ok(host) => host,
        Err(missing) => {
            println!("skipped: {missing}");
            return Ok(());
        }
    };
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let programs = plan::kvm_tests()?;
    let name = format!("tests-npt{}", u8::from(npt));
    let run = run(&host, &name, &Machine::for_tests(npt), &programs, &[])?;
    assert!(run.is_good(), "{run}");
    println!("{run}");
    Ok(())
}

#[test]
fn kvm_tests_nested_paging_pass() -> TestResult {
    lab_is_good(true)
}

#[test]
fn kvm_tests_shadow_paging_pass() -> TestResult {
    lab_is_good(false)
}
