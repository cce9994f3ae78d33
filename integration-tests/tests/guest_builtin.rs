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
    // Left to itself the vmm says why there is no KVM, and runs the guest in software.
    for (flags, code) in [(&[][..], 0), (&["--backend", "kvm"][..], 4)] {
        let arguments = [flags, &["--kvm-device", "/nonexistent/kvm"]].concat();
        let mut console = Console::start(&matrix::vmm()?, &arguments)?;
        let status = console.end(LIMIT)?;
        let said = console.tail();
        assert_eq!(status.code(), Some(code), "{flags:?}: {said}");
        let lines = said.lines().filter(|line| line.contains("/nonexistent/kvm"));
        assert_eq!(lines.count(), 1, "{flags:?}: {said}");
        assert!(!said.contains("panicked"), "{flags:?}: {said}");
    }
    Ok(())
}
