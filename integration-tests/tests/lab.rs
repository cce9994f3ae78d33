//! The lab, run as part of `cargo test`: whatever needs a stock KVM passes on one, with nested and with shadow paging.

use std::sync::{Mutex, PoisonError};
use umbra_integration_tests::lab::plan::{self, Suite};
use umbra_integration_tests::lab::qemu::{Ending, Machine};
use umbra_integration_tests::lab::{self, host::Host};

/// One lab at a time: their limits assume that a CPU is free.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The error says what could not be run; what failed in the lab is a panic with the lab's report.
type TestResult = Result<(), Box<dyn std::error::Error>>;

fn lab_is_good(suite: Suite, npt: bool) -> TestResult {
    let host = match Host::find() {
        Ok(host) => host,
        Err(missing) => {
            println!("skipped: {missing}");
            return Ok(());
        }
    };
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let plan = plan::build(&host, suite)?;
    let name = format!("{}-npt{}", suite.name(), u8::from(npt));
    let mut run = lab::run(&host, &name, &Machine::single(npt), &plan)?;
    // Each test ends by itself, so silence is the lab's: an emulator that froze. Once may be chance.
    if run.console.ending == Ending::Silent {
        println!("the lab froze and is started again:\n{run}");
        run = lab::run(&host, &name, &Machine::single(npt), &plan)?;
    }
    assert!(run.is_good(), "{run}");
    println!("{run}");
    Ok(())
}

#[test]
fn kvm_nested_paging_passes() -> TestResult {
    lab_is_good(Suite::Kvm, true)
}

#[test]
fn kvm_shadow_paging_passes() -> TestResult {
    lab_is_good(Suite::Kvm, false)
}

#[test]
fn trace_nested_paging_passes() -> TestResult {
    lab_is_good(Suite::Trace, true)
}

#[test]
fn trace_shadow_paging_passes() -> TestResult {
    lab_is_good(Suite::Trace, false)
}

#[test]
fn boot_nested_paging_passes() -> TestResult {
    lab_is_good(Suite::Boot, true)
}

#[test]
fn boot_shadow_paging_passes() -> TestResult {
    lab_is_good(Suite::Boot, false)
}
