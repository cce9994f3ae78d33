//! Loops of string instructions.

use super::layout::DATA;
use super::program::{begin, end, fold, row};
use crate::speed::rows::Row;
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, eax, ecx, edi, esi, qword_ptr, r14, r14d, rax, rbx};

/// A page is filled here and copied there.
const FROM: u32 = DATA;
const TO: u32 = DATA + 0x1_0000;
const PAGE: u32 = 4096;

/// See [`Row::Pages`].
pub fn pages(a: &mut CodeAssembler, rounds: u32) -> Result<(), IcedError> {
    row(
        a,
        Row::Pages,
        |_| Ok(()),
        |a| {
            let again = begin(a, rounds)?;
            a.mov(edi, FROM)?;
            a.mov(ecx, PAGE / 8)?;
            a.mov(eax, r14d)?;
            a.rep().stosq()?;
            a.mov(esi, FROM)?;
            a.mov(edi, TO)?;
            a.mov(ecx, PAGE / 8)?;
            a.rep().movsq()?;
            end(a, again)?;
            a.mov(rax, qword_ptr(TO))?;
            a.add(rax, qword_ptr(TO + PAGE - 8))?;
            fold(a)
        },
    )
}

/// See [`Row::Strings`].
pub fn strings(a: &mut CodeAssembler, rounds: u32) -> Result<(), IcedError> {
    row(
        a,
        Row::Strings,
        |a| {
            a.mov(edi, FROM)?;
            a.mov(ecx, 16)?;
            a.mov(rax, 0x0123_4567_89ab_cdef_u64)?;
            a.rep().stosq()?;
            a.xor(rbx, rbx)
        },
        |a| {
            let again = begin(a, rounds)?;
            a.mov(esi, FROM)?;
            a.mov(edi, TO)?;
            a.lodsq()?;
            a.add(rax, r14)?;
            a.stosq()?;
            a.movsd()?;
            a.movsb()?;
            a.mov(ecx, 19)?;
            a.rep().movsb()?;
            a.mov(edi, TO)?;
            a.scasb()?;
            a.mov(esi, FROM + 8)?;
            a.cmpsb()?;
            a.adc(rbx, rax)?;
            end(a, again)?;
            a.mov(rax, rbx)?;
            fold(a)
        },
    )
}
