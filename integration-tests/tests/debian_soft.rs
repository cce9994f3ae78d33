//! Debian's stock kernel on the software CPU, with one CPU and with several, to a shell that answers and a clean end: local
//! APICs, I/O APIC and ACPI tables as an ordinary operating system uses them.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use umbra_integration_tests::console::Console;
use umbra_integration_tests::lab::host::Host;
use umbra_integration_tests::lab::initramfs;

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// Until the kernel has come to its `/init`, on a machine with other things to do.
const BOOT: Duration = Duration::from_secs(300);
/// Until the shell answers or the machine ends.
const ANSWER: Duration = Duration::from_secs(60);

/// One at a time: each wants all of this machine's CPUs.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn boots(cpus: u32) -> TestResult {
    // Without optimisation it takes ten times as long.
    let Some(vmm) = std::env::var_os("UMBRA_OPTIMISED_VMM").map(PathBuf::from) else {
        println!("skipped: UMBRA_OPTIMISED_VMM does not name a vmm that was built with --release");
        return Ok(());
    };
    let host = match Host::find() {
        Ok(host) => host,
        Err(missing) => {
            println!("skipped: {missing}");
            return Ok(());
        }
    };
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let initrd = tempfile::NamedTempFile::new()?;
    let archive = initramfs::build_guest(&host, include_bytes!("../lab/guest-init"))?;
    std::fs::write(initrd.path(), archive)?;
    let (kernel, initrd) = (host.kernel.display().to_string(), initrd.path().display().to_string());
    let cpus_text = cpus.to_string();
    let arguments = [
        "run",
        &kernel,
        "--initrd",
        &initrd,
        "--backend",
        "soft",
        "--cpus",
        &cpus_text,
    ];
    let mut console = Console::start(&vmm, &arguments)?;
    console.expect(&format!("cpus={cpus}"), BOOT)?;
    console.expect("guest# ", ANSWER)?;
    // Computed, so that the echo of what was typed is no answer.
    console.say("echo answer $((6 * 7)) of $(grep -c ^processor /proc/cpuinfo)")?;
    console.expect(&format!("answer 42 of {cpus}"), ANSWER)?;
    console.say("grep -w ttyS0 /proc/interrupts")?;
    console.expect("IO-APIC", ANSWER)?;
    console.say("poweroff -f")?;
    let ended = console.end(ANSWER)?;
    assert_eq!(ended.code(), Some(0), "{}", console.tail());
    Ok(())
}

#[test]
fn debian_on_one_software_cpu_answers_and_powers_off() -> TestResult {
    boots(1)
}

#[test]
fn debian_on_four_software_cpus_answers_and_powers_off() -> TestResult {
    boots(4)
}
