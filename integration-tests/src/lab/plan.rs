//! What runs in the lab.

use super::LabError;
use super::build;
use super::initramfs::Program;

/// Seconds one test executable may take in the lab: the emulated machine is some fifty times slower than this one.
const TESTS_LIMIT: u32 = 300;

/// Every test executable that has something to say about KVM.
///
/// # Errors
/// They can't be built.
pub fn kvm_tests() -> Result<Vec<Program>, LabError> {
    let executables = build::test_executables(&["umbra-vcpu", "umbra-integration-tests"])?;
    let wanted = |executable: &&build::Executable| match executable.package.as_str() {
        "umbra-integration-tests" => executable.target.starts_with("guest_"),
        _ => true,
    };
    Ok(executables
        .iter()
        .filter(wanted)
        .map(|executable| Program::tests(&executable.target, &executable.path, TESTS_LIMIT))
        .collect())
}
