//! The small Linux (`integration-tests/lab/build-small-kernel`) on the software CPU, to its first program and its reset.
#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

mod support;

use iced_x86::code_asm::{CodeAssembler, eax, edi, edx, esi, ptr, rsi};
use std::io::Write;
use std::path::PathBuf;
use support::{file, run, vmm};

const SAYS: &str = "umbra: a program runs\n";
/// Where the program is loaded, behind its headers.
const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;
/// System calls and magic numbers of Linux (`syscall_64.tbl`, `reboot(2)`).
const SYS_WRITE: u32 = 1;
const SYS_REBOOT: u32 = 169;
const REBOOT_MAGIC: (u32, u32) = (0xfee1_dead, 0x2812_1969);
const REBOOT_RESTART: u32 = 0x0123_4567;

fn kernel() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let kernel = cache.join("umbra/small-kernel/vmlinux");
    kernel.exists().then_some(kernel)
}

/// An ELF program that says something and resets the machine.
fn program() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut text = a.create_label();
    a.mov(eax, SYS_WRITE).unwrap();
    a.mov(edi, 1u32).unwrap();
    a.lea(rsi, ptr(text)).unwrap();
    a.mov(edx, u32::try_from(SAYS.len()).unwrap()).unwrap();
    a.syscall().unwrap();
    a.mov(eax, SYS_REBOOT).unwrap();
    a.mov(edi, REBOOT_MAGIC.0).unwrap();
    a.mov(esi, REBOOT_MAGIC.1).unwrap();
    a.mov(edx, REBOOT_RESTART).unwrap();
    a.syscall().unwrap();
    a.ud2().unwrap();
    a.set_label(&mut text).unwrap();
    a.db(SAYS.as_bytes()).unwrap();
    let code = a.assemble(BASE + HEADERS).unwrap();
    let size = HEADERS + code.len() as u64;
    // ELF64, little-endian, executable, x86-64; one segment that is read and executed.
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    image.extend([BASE + HEADERS, 64, 0].map(u64::to_le_bytes).as_flattened());
    image.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    image.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    image.extend([0, BASE, BASE, size, size, 0x1000].map(u64::to_le_bytes).as_flattened());
    image.extend(code);
    image
}

/// An initramfs (`newc`): the console's device node and `/init`.
fn initramfs() -> Vec<u8> {
    const DIRECTORY: u32 = 0o040_755;
    const CHARACTERS: u32 = 0o020_600;
    const PROGRAM: u32 = 0o100_755;
    let mut archive = Vec::new();
    let mut add = |name: &str, mode: u32, device: (u32, u32), data: &[u8]| {
        let pad = |archive: &mut Vec<u8>| archive.resize(archive.len().next_multiple_of(4), 0);
        let (size, name_size) = (data.len(), name.len() + 1);
        let (major, minor) = device;
        write!(
            archive,
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{major:08x}{minor:08x}{name_size:08x}{:08x}{name}\0",
            0, 0, 0, 1, 0, 0, 0, 0
        )
        .unwrap();
        pad(&mut archive);
        archive.extend(data);
        pad(&mut archive);
    };
    add("dev", DIRECTORY, (0, 0), &[]);
    add("dev/console", CHARACTERS, (5, 1), &[]);
    add("init", PROGRAM, (0, 0), &program());
    add("TRAILER!!!", 0, (0, 0), &[]);
    archive
}

#[test]
fn small_linux_runs_a_program_and_resets_on_the_software_cpu() {
    // Half a minute without optimisation.
    if cfg!(debug_assertions) && std::env::var_os("UMBRA_SOFT_LINUX").is_none() {
        println!("skipped: UMBRA_SOFT_LINUX is not set, and this is not optimised");
        return;
    }
    let Some(kernel) = kernel() else {
        println!("skipped: no small kernel (integration-tests/lab/build-small-kernel makes one)");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let initrd = file(&directory, "initrd", &initramfs());
    let ended = run(&mut vmm(&[
        "run",
        kernel.to_str().unwrap(),
        "--initrd",
        initrd.to_str().unwrap(),
        "--backend",
        "soft",
        "--memory",
        "64M",
        "--no-reboot",
        "--cmdline",
        "console=ttyS0 lpj=1000000 panic=-1",
    ]));
    assert!(ended.stdout.contains(SAYS.trim_end()), "{ended:?}");
    const RESET_REFUSED: i32 = 12;
    assert_eq!(ended.status, Some(RESET_REFUSED), "{ended:?}");
}
