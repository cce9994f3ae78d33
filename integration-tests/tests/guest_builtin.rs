//! A bare `vmm` runs the built-in guest and ends with status 0, on each backend that this machine has.

use std::time::Duration;
use umbra_integration_tests::console::Console;
use umbra_integration_tests::matrix::{self, Backend};

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// Long enough for a machine that emulates everything.
const LIMIT: Duration = Duration::from_secs(200);

#[test]
fn builtin_guest_each_backend_ends_well() -> TestResult {
    for backend in Backend::usable() {
        let mut console = Console::start(&matrix::vmm()?, &["--backend", backend.name()])?;
        let status = console.end(LIMIT)?;
        assert_eq!(status.code(), Some(0), "{}", console.tail());
        println!("{}", console.tail());
    }
    Ok(())
}

#[test]
fn builtin_guest_no_kvm_device_is_one_clear_line() -> TestResult {
    let mut console = Console::start(&matrix::vmm()?, &["--kvm-device", "/nonexistent/kvm"])?;
    let status = console.end(LIMIT)?;
    let said = console.tail();
    assert_eq!(status.code(), Some(4), "{said}");
    assert!(said.contains("/nonexistent/kvm"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    Ok(())
}
