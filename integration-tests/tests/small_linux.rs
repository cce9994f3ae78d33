//! A small Linux (`lab/build-small-kernel`) with busybox, to a shell that answers and a clean end, where no hardware runs
//! a guest's kernel mode: on the software CPU, and on a KVM that emulates kernel mode and needs the fallback for what its
//! emulator doesn't know.

use std::time::Duration;
use umbra_integration_tests::console::Console;
use umbra_integration_tests::lab::host::Host;
use umbra_integration_tests::lab::initramfs;
use umbra_integration_tests::lab::plan::small_kernel;
use umbra_integration_tests::matrix::{self, Backend};

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// Until the kernel has come to its `/init`; KVM's emulator does two million instructions in a second.
const BOOT: Duration = Duration::from_secs(400);
/// Until the shell answers or the machine ends.
const ANSWER: Duration = Duration::from_secs(200);

/// What the boot needs that may be missing, which is said. `None`: skip.
fn files() -> Result<Option<(String, tempfile::NamedTempFile)>, Box<dyn std::error::Error>> {
    if std::env::var_os("UMBRA_SMALL_LINUX").is_none() {
        println!("skipped: UMBRA_SMALL_LINUX is not set, and this takes a minute");
        return Ok(None);
    }
    let kernel = match small_kernel() {
        Ok(directory) => directory.join("vmlinux").display().to_string(),
        Err(error) => {
            println!("skipped: {error}");
            return Ok(None);
        }
    };
    let host = match Host::find() {
        Ok(host) => host,
        Err(missing) => {
            println!("skipped: {missing}");
            return Ok(None);
        }
    };
    let initrd = tempfile::NamedTempFile::new()?;
    let archive = initramfs::build_guest(&host, include_bytes!("../lab/guest-init"))?;
    std::fs::write(initrd.path(), archive)?;
    Ok(Some((kernel, initrd)))
}

/// Boots, talks with the shell, and has the guest power off.
fn boots(backend: Backend) -> TestResult {
    if let Some(why) = backend.why_not() {
        println!("skipped: backend {}: {why}", backend.name());
        return Ok(());
    }
    let Some((kernel, initrd)) = files()? else {
        return Ok(());
    };
    let initrd = initrd.path().display().to_string();
    // An optimised one, if there is one: on a KVM that emulates kernel code most of the guest is executed in software.
    let vmm = match std::env::var_os("UMBRA_OPTIMISED_VMM") {
        Some(path) => path.into(),
        None => matrix::vmm()?,
    };
    let mut console = Console::start(
        &vmm,
        &[
            "run",
            &kernel,
            "--initrd",
            &initrd,
            "--backend",
            backend.name(),
            "--memory",
            "96M",
            "--no-reboot",
            "--stats",
            "--cmdline",
            "console=ttyS0 panic=-1",
        ],
    )?;
    console.expect("GUEST ", BOOT)?;
    console.expect("guest# ", ANSWER)?;
    // Computed, so that the echo of what was typed is no answer.
    console.say("echo answer $((6 * 7)) of $(grep -c ^processor /proc/cpuinfo)")?;
    console.expect("answer 42 of 1", ANSWER)?;
    console.say("poweroff -f")?;
    let ended = console.end(ANSWER)?;
    let said = console.tail();
    assert_eq!(ended.code(), Some(0), "{said}");
    println!("{said}");
    Ok(())
}

#[test]
fn small_linux_on_the_software_cpu_answers_and_powers_off() -> TestResult {
    boots(Backend::Soft)
}

#[test]
fn small_linux_on_this_kvm_answers_and_powers_off() -> TestResult {
    boots(Backend::Kvm)
}
