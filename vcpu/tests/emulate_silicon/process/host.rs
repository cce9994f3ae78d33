//! What is asked of Linux: memory at fixed places, and a local descriptor table.

use super::super::layout::{CODE, READ_ONLY_END};
use super::super::segments::Spec;

/// Maps memory at a fixed place where there is none.
pub(super) fn map(start: u64, end: u64, protection: libc::c_int) -> Result<(), String> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
    let length = (end - start) as usize;
    // SAFETY: a new mapping in a place where there is none.
    let at = unsafe { libc::mmap(start as *mut _, length, protection, flags, -1, 0) };
    if at as u64 == start {
        Ok(())
    } else {
        Err(format!("memory at {start:#x}: {}", std::io::Error::last_os_error()))
    }
}

/// Makes memory read-only.
pub(super) fn protect(start: u64, end: u64) -> Result<(), String> {
    // SAFETY: part of our own mapping, which nothing else uses.
    let result = unsafe { libc::mprotect(start as *mut _, (end - start) as usize, libc::PROT_READ) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error().to_string())
    }
}

/// Cases may reach all of the lowest 4 GiB.
pub(super) fn alone_below_4_gib() -> Result<(), String> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|error| error.to_string())?;
    let strangers = maps
        .lines()
        .filter_map(|line| u64::from_str_radix(line.split('-').next()?, 16).ok())
        .filter(|start| *start < 1 << 32 && !(CODE..READ_ONLY_END).contains(start));
    match strangers.count() {
        0 => Ok(()),
        count => Err(format!("{count} other mappings below 4 GiB")),
    }
}

/// The kernel's `struct user_desc`.
#[repr(C)]
struct UserDescriptor {
    number: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

/// Fills an entry of this process's local descriptor table.
pub(super) fn set_descriptor(index: usize, spec: Spec) -> Result<(), String> {
    let flag = |value: bool, bit: u32| u32::from(value) << bit;
    let descriptor = UserDescriptor {
        number: index as u32,
        base: spec.base as u32,
        limit: spec.limit,
        flags: flag(spec.wide, 0)
            | u32::from(spec.contents) << 1
            | flag(spec.restricted, 3)
            | flag(spec.pages, 4)
            | flag(spec.absent, 5),
    };
    const WRITE: libc::c_int = 0x11;
    // SAFETY: the kernel reads the structure, whose size it is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_modify_ldt,
            WRITE,
            &raw const descriptor,
            size_of_val(&descriptor),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(format!("modify_ldt: {}", std::io::Error::last_os_error()))
    }
}
