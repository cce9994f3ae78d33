//! `vmm run` boots real kernels on a stock KVM. Runs in the lab, where the files are; elsewhere it says so.

use std::path::Path;
use std::time::Duration;
use umbra_integration_tests::console::{Console, TalkError};
use umbra_integration_tests::guest_files;

/// Until a kernel in a guest in the lab says something: everything is emulated twice over.
const BOOT: Duration = Duration::from_secs(150);
/// Until a shell answers or a machine ends.
const ANSWER: Duration = Duration::from_secs(100);

/// Starts the vmm, or says why not.
fn vmm(arguments: &[&str]) -> Option<Result<Console, TalkError>> {
    for file in [guest_files::VMM, guest_files::BZIMAGE] {
        if !Path::new(file).exists() {
            println!("skipped: no {file}: this runs in the lab");
            return None;
        }
    }
    Some(Console::start(Path::new(guest_files::VMM), arguments))
}

/// The shell computes something that isn't in what was typed.
fn shell_answers(console: &mut Console, cpus: u32) -> Result<(), TalkError> {
    console.expect(&format!("cpus={cpus}"), BOOT)?;
    console.expect("guest# ", ANSWER)?;
    console.say("echo answer $((6 * 7)) of $(grep -c ^processor /proc/cpuinfo)")?;
    console.expect(&format!("answer 42 of {cpus}"), ANSWER)?;
    Ok(())
}

fn debian(cpus: u32, irqchip: &str) -> Option<Result<Console, TalkError>> {
    let cpus = cpus.to_string();
    vmm(&[
        "run",
        guest_files::BZIMAGE,
        "--initrd",
        guest_files::INITRD,
        "--memory",
        "512M",
        "--cpus",
        &cpus,
        "--irqchip",
        irqchip,
    ])
}

#[test]
fn debian_one_cpu_answers_reboots_and_powers_off() -> Result<(), TalkError> {
    let Some(console) = debian(1, "kernel") else {
        return Ok(());
    };
    let mut console = console?;
    shell_answers(&mut console, 1)?;
    console.say("reboot -f")?;
    // The same machine, from the start.
    shell_answers(&mut console, 1)?;
    console.say("poweroff -f")?;
    let status = console.end(ANSWER)?;
    assert_eq!(status.code(), Some(0), "{}", console.tail());
    Ok(())
}

#[test]
fn debian_four_cpus_answers_and_powers_off() -> Result<(), TalkError> {
    let Some(console) = debian(4, "kernel") else {
        return Ok(());
    };
    let mut console = console?;
    shell_answers(&mut console, 4)?;
    console.say("poweroff -f")?;
    let status = console.end(ANSWER)?;
    assert_eq!(status.code(), Some(0), "{}", console.tail());
    Ok(())
}

/// The console's interrupts come by way of an I/O APIC of ours.
#[test]
fn debian_two_cpus_with_split_irqchip_answers_and_powers_off() -> Result<(), TalkError> {
    let Some(console) = debian(2, "split") else {
        return Ok(());
    };
    let mut console = console?;
    shell_answers(&mut console, 2)?;
    console.say("grep -w ttyS0 /proc/interrupts")?;
    console.expect("IO-APIC", ANSWER)?;
    console.say("poweroff -f")?;
    let status = console.end(ANSWER)?;
    assert_eq!(status.code(), Some(0), "{}", console.tail());
    Ok(())
}

/// Starts an ELF kernel far enough to know that it reads its memory map and command line.
fn vmlinux_starts(file: &str) -> Result<(), TalkError> {
    let cmdline = "console=ttyS0 earlyprintk=serial,ttyS0,115200 umbra.mark";
    let Some(console) = vmm(&["run", file, "--memory", "256M", "--cmdline", cmdline]) else {
        return Ok(());
    };
    let mut console = console?;
    console.expect("Linux version", BOOT)?;
    console.expect("umbra.mark", ANSWER)?;
    console.expect("Memory:", ANSWER)?;
    Ok(())
}

#[test]
fn vmlinux_pvh_starts() -> Result<(), TalkError> {
    vmlinux_starts(guest_files::VMLINUX)
}

#[test]
fn vmlinux_64_bit_boot_protocol_starts() -> Result<(), TalkError> {
    vmlinux_starts(guest_files::VMLINUX_64)
}

/// The kernel prints what it was given and powers off.
fn multiboot_starts(file: &str) -> Result<(), TalkError> {
    let Some(console) = vmm(&["run", file, "--memory", "64M", "--cmdline", "one two"]) else {
        return Ok(());
    };
    let mut console = console?;
    console.expect("multiboot kernel: magic ok, command line: ", BOOT)?;
    console.expect("one two", ANSWER)?;
    let status = console.end(ANSWER)?;
    // 5 written to the debug-exit port.
    assert_eq!(status.code(), Some(11), "{}", console.tail());
    Ok(())
}

#[test]
fn multiboot_elf32_starts() -> Result<(), TalkError> {
    multiboot_starts(guest_files::MULTIBOOT_32)
}

#[test]
fn multiboot_elf64_starts() -> Result<(), TalkError> {
    multiboot_starts(guest_files::MULTIBOOT_64)
}
