//! Loops of the integer unit: arithmetic, memory, jumps.

use super::layout::DATA;
use super::program::{begin, end, fold, row};
use crate::speed::rows::Row;
use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, byte_ptr, cl, dl, dword_ptr, eax, ebx, ecx, edi, edx, esi, qword_ptr, r8, rax, rbx, rcx, rdi, rdx,
    rsi,
};

/// Set before a loop: rbx, rcx, rsi. rax and rdx are set in it.
fn start_values(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rbx, 0x0123_4567_89ab_cdef_u64)?;
    a.mov(rcx, 0x0f1e_2d3c_4b5a_6978_u64)?;
    a.mov(rdi, 0x1357_9bdf_0246_8ace_u64)
}

/// rax, rbx, rcx and rdx in one checksum.
fn sum_up(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(rax, rbx)?;
    a.add(rax, rcx)?;
    a.xor(rax, rdx)?;
    fold(a)
}

/// See [`Row::Integer`]: no operand in memory.
pub fn integer(a: &mut CodeAssembler, rounds: u32) -> Result<(), IcedError> {
    row(a, Row::Integer, start_values, |a| {
        a.mov(eax, 1)?;
        a.mov(edx, 2)?;
        let again = begin(a, rounds)?;
        a.add(rax, rbx)?;
        a.lea(rcx, rax + rdx * 4)?;
        a.xor(edx, ecx)?;
        a.shr(rbx, 3)?;
        a.inc(rbx)?;
        a.imul_2(rax, rcx)?;
        a.mov(esi, eax)?;
        a.and(esi, 0x7fff)?;
        a.sub(rdx, rsi)?;
        a.rol(rcx, 7)?;
        a.adc(rbx, rdx)?;
        a.movzx(edi, cl)?;
        a.or(rdi, rcx)?;
        a.add(rdx, rdi)?;
        a.not(rsi)?;
        a.cmp(rsi, rbx)?;
        a.cmovb(rdi, rsi)?;
        a.sbb(rcx, rdi)?;
        a.neg(rdx)?;
        a.test(rax, rdx)?;
        a.setne(dl)?;
        a.shl(rdi, 5)?;
        a.xor(rax, rdi)?;
        a.sar(rsi, 2)?;
        end(a, again)?;
        sum_up(a)
    })
}

/// See [`Row::Memory`]: rsi + rbx walks through 64 pages in steps of 72 bytes.
pub fn memory(a: &mut CodeAssembler, rounds: u32) -> Result<(), IcedError> {
    const INSIDE: u32 = 0x3_fff8;
    row(
        a,
        Row::Memory,
        |a| {
            // The last round's reach goes a little beyond.
            a.mov(edi, DATA)?;
            a.mov(ecx, INSIDE / 8 + 16)?;
            a.xor(eax, eax)?;
            a.rep().stosq()?;
            a.mov(esi, DATA)?;
            a.xor(ebx, ebx)
        },
        |a| {
            a.mov(edx, 0x1357)?;
            let again = begin(a, rounds)?;
            a.mov(rax, qword_ptr(rsi + rbx))?;
            a.add(rax, rdx)?;
            a.mov(qword_ptr(rsi + rbx + 8), rax)?;
            a.add(qword_ptr(rsi + rbx + 16), rax)?;
            a.mov(ecx, dword_ptr(rsi + rbx + 20))?;
            a.xor(rdx, rcx)?;
            a.push(rax)?;
            a.movzx(edi, byte_ptr(rsi + rbx + 9))?;
            a.add(rdx, rdi)?;
            a.mov(byte_ptr(rsi + rbx + 32), cl)?;
            a.pop(rdi)?;
            a.sub(dword_ptr(rsi + rbx + 24), edi)?;
            a.cmp(dword_ptr(rsi + rbx + 40), ecx)?;
            a.mov(dword_ptr(rsi + rbx + 44), edx)?;
            a.add(ebx, 72)?;
            a.and(ebx, INSIDE)?;
            end(a, again)?;
            sum_up(a)
        },
    )
}

/// See [`Row::Branch`]: both ways of a condition are equally long.
pub fn branch(a: &mut CodeAssembler, rounds: u32) -> Result<(), IcedError> {
    let mut direct = a.create_label();
    let mut indirect = a.create_label();
    let mut behind = a.create_label();
    a.jmp(behind)?;
    a.set_label(&mut direct)?;
    a.add(edx, ecx)?;
    a.ret()?;
    a.set_label(&mut indirect)?;
    a.inc(ebx)?;
    a.ret()?;
    a.set_label(&mut behind)?;
    row(a, Row::Branch, start_values, |a| {
        a.mov(eax, 1)?;
        a.mov(edx, 2)?;
        a.lea(r8, qword_ptr(indirect))?;
        let again = begin(a, rounds)?;
        // Knuth's and Lewis's generator: its high bits are random enough for a branch predictor.
        a.imul_3(eax, eax, 1_664_525)?;
        a.add(eax, 1_013_904_223)?;
        fork(a, 1 << 30, |a| a.add(ecx, 3), |a| a.xor(ecx, eax))?;
        fork(a, 1 << 23, |a| a.sub(ecx, edx), |a| a.lea(ecx, rcx + rcx * 2))?;
        a.call(direct)?;
        let mut next = a.create_label();
        a.cmp(ecx, edx)?;
        a.je(next)?;
        a.set_label(&mut next)?;
        a.call(r8)?;
        end(a, again)?;
        sum_up(a)
    })
}

/// Four instructions either way, one of them of the caller's.
fn fork(
    a: &mut CodeAssembler,
    bit: i32,
    set: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    clear: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut other = a.create_label();
    let mut joined = a.create_label();
    a.test(eax, bit)?;
    a.je(other)?;
    set(a)?;
    a.jmp(joined)?;
    a.set_label(&mut other)?;
    clear(a)?;
    a.jmp(joined)?;
    a.set_label(&mut joined)
}
