//! Accesses to guest RAM by host address: what is behind a lookup in the TLB.
//!
//! Other threads, or the guest's devices, may access the same bytes at any time. On x86 hosts an access is the one
//! instruction that the guest's would be, so that the host's memory gives the guest the order and the atomicity that the
//! guest's architecture promises, for unaligned addresses as well. It is written in assembly since the language has no
//! such access. Elsewhere aligned accesses are atomic and others volatile, byte by byte.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m128i;
#[cfg(not(target_arch = "x86_64"))]
use std::ptr;
#[cfg(not(target_arch = "x86_64"))]
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Reads `W` bits at once, as the guest's own instruction would: where they lie is of no matter.
///
/// # Safety
/// `at` is the address of `W` bits in a page of guest RAM that is mapped.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn load<const W: u32>(at: *mut u8) -> u64 {
    macro_rules! by {
        ($instruction:literal) => {{
            let value: u64;
            // SAFETY: the caller promises that the bytes are mapped; what is read is no Rust object, and only a register is
            // written.
            unsafe {
                std::arch::asm!($instruction, out(reg) value, in(reg) at, options(nostack, preserves_flags, readonly));
            }
            value
        }};
    }
    match W {
        8 => by!("movzx {0:e}, byte ptr [{1}]"),
        16 => by!("movzx {0:e}, word ptr [{1}]"),
        32 => by!("mov {0:e}, dword ptr [{1}]"),
        _ => by!("mov {0}, qword ptr [{1}]"),
    }
}

/// Writes the low `W` bits of `value`, likewise.
///
/// # Safety
/// As [`load`]; the page may be written.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn store<const W: u32>(at: *mut u8, value: u64) {
    macro_rules! by {
        ($instruction:literal, $class:ident, $value:expr) => {
            // SAFETY: the caller promises that the bytes are mapped and may be written, and no Rust reference points there.
            unsafe {
                std::arch::asm!($instruction, in($class) $value, in(reg) at, options(nostack, preserves_flags));
            }
        };
    }
    match W {
        8 => by!("mov byte ptr [{1}], {0}", reg_byte, value as u8),
        16 => by!("mov word ptr [{1}], {0:x}", reg, value),
        32 => by!("mov dword ptr [{1}], {0:e}", reg, value),
        _ => by!("mov qword ptr [{1}], {0}", reg, value),
    }
}

/// Reads 16 bytes, by one instruction.
///
/// # Safety
/// As [`load`], for 128 bits.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn load_wide(at: *mut u8) -> u128 {
    let value: __m128i;
    // SAFETY: as in `load`.
    unsafe {
        std::arch::asm!("movups {0}, xmmword ptr [{1}]", out(xmm_reg) value, in(reg) at,
            options(nostack, preserves_flags, readonly));
    }
    // SAFETY: both are 16 bytes, of which any will do.
    unsafe { std::mem::transmute::<__m128i, u128>(value) }
}

/// Writes 16 bytes, likewise.
///
/// # Safety
/// As [`store`], for 128 bits.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn store_wide(at: *mut u8, value: u128) {
    // SAFETY: as in `load_wide`.
    let value = unsafe { std::mem::transmute::<u128, __m128i>(value) };
    // SAFETY: as in `store`.
    unsafe {
        std::arch::asm!("movups xmmword ptr [{1}], {0}", in(xmm_reg) value, in(reg) at,
            options(nostack, preserves_flags));
    }
}

/// Reads 16 bytes, as two halves.
///
/// # Safety
/// As [`load`], for 128 bits.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(super) unsafe fn load_wide(at: *mut u8) -> u128 {
    // SAFETY: as the caller promises.
    let low = unsafe { load::<64>(at) };
    // SAFETY: likewise.
    let high = unsafe { load::<64>(at.wrapping_add(8)) };
    u128::from(high) << 64 | u128::from(low)
}

/// Writes 16 bytes, likewise.
///
/// # Safety
/// As [`store`], for 128 bits.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(super) unsafe fn store_wide(at: *mut u8, value: u128) {
    // SAFETY: as the caller promises.
    unsafe { store::<64>(at, value as u64) };
    // SAFETY: likewise.
    unsafe { store::<64>(at.wrapping_add(8), (value >> 64) as u64) };
}

/// An atomic at an address for which the caller of the function promises.
#[cfg(not(target_arch = "x86_64"))]
macro_rules! promised {
    ($at:expr, $kind:ty) => {{
        // SAFETY: aligned (checked before), mapped as the caller promises, and no Rust reference points there.
        unsafe { <$kind>::from_ptr($at.cast()) }
    }};
}

/// Reads `W` bits: at once if they are aligned, byte by byte if not.
///
/// # Safety
/// `at` is the address of `W` bits in a page of guest RAM that is mapped.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(super) unsafe fn load<const W: u32>(at: *mut u8) -> u64 {
    if at.addr() & (W as usize / 8 - 1) != 0 {
        return (0..W as usize / 8).rev().fold(0, |value, index| {
            // SAFETY: as the caller promises.
            value << 8 | u64::from(unsafe { ptr::read_volatile(at.wrapping_add(index)) })
        });
    }
    match W {
        8 => u64::from(promised!(at, AtomicU8).load(Ordering::Acquire)),
        16 => u64::from(promised!(at, AtomicU16).load(Ordering::Acquire)),
        32 => u64::from(promised!(at, AtomicU32).load(Ordering::Acquire)),
        _ => promised!(at, AtomicU64).load(Ordering::Acquire),
    }
}

/// Writes the low `W` bits of `value`, likewise.
///
/// # Safety
/// As [`load`]; the page may be written.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(super) unsafe fn store<const W: u32>(at: *mut u8, value: u64) {
    if at.addr() & (W as usize / 8 - 1) != 0 {
        for (index, byte) in value.to_le_bytes().into_iter().take(W as usize / 8).enumerate() {
            // SAFETY: as the caller promises.
            unsafe { ptr::write_volatile(at.wrapping_add(index), byte) };
        }
        return;
    }
    match W {
        8 => promised!(at, AtomicU8).store(value as u8, Ordering::Release),
        16 => promised!(at, AtomicU16).store(value as u16, Ordering::Release),
        32 => promised!(at, AtomicU32).store(value as u32, Ordering::Release),
        _ => promised!(at, AtomicU64).store(value, Ordering::Release),
    }
}

/// Writes the low `W` bits of `value` again and again into `bytes` bytes, aligned elements eight bytes at a time.
///
/// # Safety
/// As [`store`], for all of the bytes; `at` and `bytes` are multiples of the element's size.
pub(super) unsafe fn fill<const W: u32>(at: *mut u8, value: u64, bytes: usize) {
    let value = match W {
        8 => value * 0x0101_0101_0101_0101,
        16 => value * 0x0001_0001_0001_0001,
        32 => value << 32 | value,
        _ => value,
    };
    let mut done = 0;
    while done < bytes {
        let at = at.wrapping_add(done);
        if at.addr() & 7 == 0 && bytes - done >= 8 {
            // SAFETY: 8 of the bytes are left.
            unsafe { store::<64>(at, value) };
            done += 8;
        } else {
            // SAFETY: an element is left.
            unsafe { store::<W>(at, value) };
            done += W as usize / 8;
        }
    }
}

/// Copies `bytes` bytes upwards, as if by elements of `W` bits: what was written is read again where the places overlap.
///
/// # Safety
/// As [`load`] and [`store`], for all of the bytes; `bytes` is a multiple of the element's size.
pub(super) unsafe fn copy<const W: u32>(from: *mut u8, to: *mut u8, bytes: usize) {
    // Eight bytes at once are the same unless they would be read before they are written.
    let apart = to.addr().wrapping_sub(from.addr()) >= 8;
    let mut done = 0;
    while done < bytes {
        let (from, to) = (from.wrapping_add(done), to.wrapping_add(done));
        if apart && bytes - done >= 8 {
            // SAFETY: 8 of the bytes are left.
            let value = unsafe { load::<64>(from) };
            // SAFETY: likewise.
            unsafe { store::<64>(to, value) };
            done += 8;
        } else {
            // SAFETY: an element is left.
            let value = unsafe { load::<W>(from) };
            // SAFETY: likewise.
            unsafe { store::<W>(to, value) };
            done += W as usize / 8;
        }
    }
}
