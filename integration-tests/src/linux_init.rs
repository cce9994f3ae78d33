//! The smallest `/init` for a Linux guest: says that it runs, then rests. One ELF64 file of our own, so that what is
//! measured is the way to `/init` and not a shell's start.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, eax, edi, edx, esi, ptr, rdi, rsi};

/// What it says, with a log level before and a newline behind.
///
/// It goes to the kernel's log if that is at [`LOG`] (to standard output otherwise): from there level 0 brings it to the
/// serial line at once, even if the kernel is `quiet` or can't find the line's interrupt.
pub const GREETING: &str = "umbra: init runs";
/// Where the initramfs has the device node of `/dev/kmsg`: character device 1, 11.
pub const LOG: &str = "kmsg";

const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;
/// System calls (`arch/x86/entry/syscalls/syscall_64.tbl`).
const SYS_WRITE: i32 = 1;
const SYS_OPEN: i32 = 2;
const SYS_PAUSE: i32 = 34;

/// The program as a file.
///
/// # Errors
/// None in practice: the code is fixed.
pub fn program() -> Result<Vec<u8>, IcedError> {
    let text = format!("<0>{GREETING}\n");
    let mut a = CodeAssembler::new(64)?;
    let mut greeting = a.create_label();
    let mut log = a.create_label();
    let mut opened = a.create_label();
    let mut rest = a.create_label();
    a.mov(eax, SYS_OPEN)?;
    a.lea(rdi, ptr(log))?;
    // O_WRONLY
    a.mov(esi, 1)?;
    a.syscall()?;
    a.mov(edi, eax)?;
    a.test(eax, eax)?;
    a.jns(opened)?;
    a.mov(edi, 1)?;
    a.set_label(&mut opened)?;
    a.mov(eax, SYS_WRITE)?;
    a.lea(rsi, ptr(greeting))?;
    a.mov(edx, i32::try_from(text.len()).unwrap_or_default())?;
    a.syscall()?;
    a.set_label(&mut rest)?;
    a.mov(eax, SYS_PAUSE)?;
    a.syscall()?;
    a.jmp(rest)?;
    a.set_label(&mut greeting)?;
    a.db(text.as_bytes())?;
    a.set_label(&mut log)?;
    a.db(format!("/{LOG}\0").as_bytes())?;
    let code = a.assemble(BASE + HEADERS)?;

    let size = HEADERS + code.len() as u64;
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // e_type ET_EXEC, e_machine x86-64, e_version
    image.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [BASE + HEADERS, 64, 0] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    // e_flags; e_ehsize, e_phentsize, e_phnum, no sections
    image.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // p_type PT_LOAD, p_flags R+X
    image.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, BASE, BASE, size, size, 0x1000] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    image.extend_from_slice(&code);
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Console;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    #[test]
    fn program_run_here_says_that_it_runs() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("init");
        std::fs::write(&file, program().expect("assembles")).expect("write");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let mut console = Console::start(&file, &[]).expect("an ELF file for this machine");
        console.expect(GREETING, Duration::from_secs(30)).expect("says so");
        assert!(console.end(Duration::from_millis(100)).is_err(), "and rests");
    }
}
