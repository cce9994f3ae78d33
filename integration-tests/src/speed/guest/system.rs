//! Loops that leave the CPU or CPL 3: MMIO, `syscall`, `int`.

use super::layout::{CALL_VECTOR, IO_APIC};
use super::program::{begin, end, fold, row};
use crate::speed::rows::Row;
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, dword_ptr, eax, ebx, ecx, edi, r8, r8d, r14d, rax, rbx};

/// The low half of the last redirection entry, which nothing but this loop uses: a masked input reads the same on every
/// I/O APIC.
const REGISTER: u32 = 0x10 + 2 * 23;
const MASKED: u32 = 1 << 16 | 0x55;

/// See [`Row::Mmio`].
pub fn mmio(a: &mut CodeAssembler, rounds: u32) -> Result<(), IcedError> {
    row(
        a,
        Row::Mmio,
        |a| {
            a.mov(ebx, IO_APIC)?;
            a.mov(dword_ptr(rbx), REGISTER)?;
            a.mov(dword_ptr(rbx + 16), MASKED)?;
            a.xor(ecx, ecx)
        },
        |a| {
            let again = begin(a, rounds)?;
            for _ in 0..4 {
                a.mov(eax, dword_ptr(rbx + 16))?;
                a.add(ecx, eax)?;
            }
            a.rol(ecx, 1)?;
            end(a, again)?;
            a.mov(edi, ecx)
        },
    )
}

/// See [`Row::Syscall`]: four instructions here, seven in the kernel.
pub fn system_call(a: &mut CodeAssembler, rounds: u32) -> Result<(), IcedError> {
    row(
        a,
        Row::Syscall,
        |a| a.xor(r8d, r8d),
        |a| {
            let again = begin(a, rounds)?;
            a.mov(eax, r14d)?;
            a.syscall()?;
            end(a, again)?;
            a.mov(rax, r8)?;
            fold(a)
        },
    )
}

/// See [`Row::Interrupt`]: four instructions here, two in the kernel.
pub fn interrupt(a: &mut CodeAssembler, rounds: u32) -> Result<(), IcedError> {
    row(
        a,
        Row::Interrupt,
        |a| a.xor(r8d, r8d),
        |a| {
            let again = begin(a, rounds)?;
            a.mov(eax, r14d)?;
            a.int(i32::from(CALL_VECTOR))?;
            end(a, again)?;
            a.mov(rax, r8)?;
            fold(a)
        },
    )
}
