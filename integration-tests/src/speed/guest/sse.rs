//! Loops of SSE.

use super::layout::DATA;
use super::program::{begin, end, fold, row};
use crate::speed::rows::Row;
use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmRegisterXmm, CodeAssembler, eax, ebx, esi, qword_ptr, r14d, rax, rbx, rsi, xmm0, xmm1, xmm2, xmm3, xmm4, xmm5,
    xmm6, xmmword_ptr,
};

/// See [`Row::SseInteger`].
pub fn packed(a: &mut CodeAssembler, rounds: u32) -> Result<(), IcedError> {
    row(
        a,
        Row::SseInteger,
        |a| {
            a.mov(esi, DATA)?;
            for (offset, value) in [(0, 0x0123_4567_89ab_cdef_u64), (8, 0x1357_9bdf_0246_8ace)] {
                a.mov(rax, value)?;
                a.mov(qword_ptr(rsi + offset), rax)?;
            }
            // For pshufb: the bytes backwards, but three of them zero.
            both_halves(a, xmm5, 0x8008_0a0c_0180_0380)?;
            both_halves(a, xmm1, 0x0000_0001_0000_0003)?;
            both_halves(a, xmm2, 0)?;
            a.xor(ebx, ebx)
        },
        |a| {
            let again = begin(a, rounds)?;
            a.movdqa(xmm0, xmmword_ptr(rsi))?;
            a.paddd(xmm1, xmm0)?;
            a.pxor(xmm2, xmm1)?;
            a.pshufd(xmm3, xmm2, 0x39)?;
            a.pmulld(xmm3, xmm1)?;
            a.movdqa(xmm4, xmm3)?;
            a.psrlq(xmm4, 7)?;
            a.por(xmm2, xmm4)?;
            a.pshufb(xmm3, xmm5)?;
            a.paddq(xmm1, xmm3)?;
            a.pcmpgtd(xmm4, xmm2)?;
            a.pand(xmm4, xmm1)?;
            a.psubb(xmm2, xmm4)?;
            a.movdqu(xmmword_ptr(rsi + 0x21), xmm2)?;
            a.movdqa(xmmword_ptr(rsi), xmm3)?;
            a.pmovmskb(eax, xmm2)?;
            a.add(ebx, eax)?;
            end(a, again)?;
            a.pxor(xmm1, xmm2)?;
            sum_up(a)
        },
    )
}

/// See [`Row::SseFloat`]: no overflow, no denormal, nothing that isn't a number.
pub fn floats(a: &mut CodeAssembler, rounds: u32) -> Result<(), IcedError> {
    row(
        a,
        Row::SseFloat,
        |a| {
            let single = |value: f32| u64::from(value.to_bits()) << 32 | u64::from(value.to_bits());
            a.mov(esi, DATA)?;
            both_halves(a, xmm1, 3_f64.to_bits())?;
            both_halves(a, xmm2, 0.5_f64.to_bits())?;
            both_halves(a, xmm5, single(0.5))?;
            both_halves(a, xmm6, single(1.25))?;
            a.movaps(xmmword_ptr(rsi), xmm6)?;
            a.xor(ebx, ebx)
        },
        |a| {
            let again = begin(a, rounds)?;
            a.cvtsi2sd(xmm0, r14d)?;
            a.mulsd(xmm1, xmm2)?;
            a.addsd(xmm1, xmm0)?;
            a.divsd(xmm0, xmm1)?;
            a.sqrtsd(xmm3, xmm1)?;
            a.subsd(xmm3, xmm0)?;
            a.ucomisd(xmm3, xmm1)?;
            a.movaps(xmm4, xmmword_ptr(rsi))?;
            a.mulps(xmm4, xmm5)?;
            a.addps(xmm4, xmm6)?;
            a.movaps(xmmword_ptr(rsi), xmm4)?;
            a.cvttsd2si(eax, xmm3)?;
            a.add(ebx, eax)?;
            end(a, again)?;
            a.pxor(xmm1, xmm4)?;
            a.pxor(xmm1, xmm3)?;
            sum_up(a)
        },
    )
}

fn both_halves(a: &mut CodeAssembler, register: AsmRegisterXmm, value: u64) -> Result<(), IcedError> {
    a.mov(rax, value)?;
    a.movq(register, rax)?;
    a.punpcklqdq(register, register)
}

/// Both halves of xmm1 and ebx in one checksum.
fn sum_up(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.movq(rax, xmm1)?;
    a.add(rbx, rax)?;
    a.psrldq(xmm1, 8)?;
    a.movq(rax, xmm1)?;
    a.add(rax, rbx)?;
    fold(a)
}
