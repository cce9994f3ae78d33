//! A multiboot kernel on every backend of this machine: the same console, the same end.

use std::io::Write;
use std::process::Command;
use umbra_integration_tests::matrix::{self, Backend};
use umbra_integration_tests::multiboot::{self, Class};

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// What the kernel writes to the debug-exit port is 5.
const STATUS: i32 = 11;

fn same_on_every_backend(class: Class) -> TestResult {
    let mut image = tempfile::NamedTempFile::new()?;
    image.write_all(&multiboot::kernel(class)?)?;
    for backend in Backend::usable() {
        let output = Command::new(matrix::vmm()?)
            .arg("run")
            .arg(image.path())
            .args(["--memory", "64M", "--cmdline", "one two", "--backend", backend.name()])
            .output()?;
        let console = String::from_utf8_lossy(&output.stdout);
        let told = format!("{}: {output:?}", backend.name());
        assert!(
            console.starts_with("multiboot kernel: magic ok, command line: "),
            "{told}"
        );
        assert!(console.trim_end().ends_with("one two"), "{told}");
        assert_eq!(output.status.code(), Some(STATUS), "{told}");
    }
    Ok(())
}

#[test]
fn multiboot_elf32_is_the_same_on_every_backend() -> TestResult {
    same_on_every_backend(Class::Elf32)
}

#[test]
fn multiboot_elf64_is_the_same_on_every_backend() -> TestResult {
    same_on_every_backend(Class::Elf64)
}
