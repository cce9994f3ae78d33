//! The guest's start: from the loader's 32-bit mode to real mode for the loop there, back, and on to long mode.

use super::layout::{self, selector};
use super::{Work, report};
use crate::speed::rows::{REAL_INNER, Row};
use iced_x86::code_asm::{
    CodeAssembler, ax, bx, cr0, cr3, cr4, cx, ds, dx, eax, ebx, ecx, edi, edx, es, esi, fword_ptr, si, ss, word_ptr,
};
use iced_x86::{Code, IcedError, Instruction};

const PROTECTION: u32 = 1;
/// CR0 in long mode: PG, WP, NE, ET, MP, PE.
const CR0_LONG: u32 = 0x8001_0033;
/// CR4: PAE, OSFXSR, OSXMMEXCPT.
const CR4_LONG: u32 = 1 << 5 | 1 << 9 | 1 << 10;
const EFER: u32 = 0xc000_0080;
/// EFER: SCE, LME.
const EFER_LONG: u32 = 1 | 1 << 8;

/// The 32-bit part. Gives the code, and the offset at which real mode comes back.
pub fn protected() -> Result<(Vec<u8>, u32), IcedError> {
    // Assembled twice: what stands before the way back has the same length whatever the way back is.
    let mut a = CodeAssembler::new(32)?;
    to_real_mode(&mut a)?;
    let back = u32::try_from(a.assemble(u64::from(layout::ENTRY))?.len()).unwrap_or(u32::MAX);
    to_long_mode(&mut a)?;
    Ok((a.assemble(u64::from(layout::ENTRY))?, back))
}

fn to_real_mode(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.cli()?;
    a.cld()?;
    a.lgdt(fword_ptr(layout::GDT_POINTER))?;
    a.mov(eax, u32::from(selector::DATA32))?;
    load_segments(a)?;
    a.mov(esi, layout::REAL_IMAGE)?;
    a.mov(edi, layout::REAL)?;
    a.mov(ecx, layout::REAL_ROOM / 4)?;
    a.rep().movsd()?;
    a.mov(eax, u32::from(selector::DATA16))?;
    load_segments(a)?;
    far_jump(a, Code::Jmp_ptr1632, selector::CODE16, layout::REAL)
}

fn to_long_mode(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, u32::from(selector::DATA32))?;
    load_segments(a)?;
    a.mov(eax, CR4_LONG)?;
    a.mov(cr4, eax)?;
    a.mov(eax, layout::PML4)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, EFER)?;
    a.mov(eax, EFER_LONG)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.mov(eax, CR0_LONG)?;
    a.mov(cr0, eax)?;
    far_jump(a, Code::Jmp_ptr1632, selector::KERNEL_CODE, layout::KERNEL)
}

/// The 16-bit part; `back` is where 32-bit code goes on.
pub fn real(work: &Work, back: u32) -> Result<Vec<u8>, IcedError> {
    // Assembled twice as well, for the address of the first instruction in real mode.
    let mut a = CodeAssembler::new(16)?;
    leave_protection(&mut a, 0)?;
    let real = u32::try_from(a.assemble(u64::from(layout::REAL))?.len()).unwrap_or(u32::MAX);
    let mut a = CodeAssembler::new(16)?;
    leave_protection(&mut a, layout::REAL + real)?;
    a.xor(ax, ax)?;
    load_segments(&mut a)?;
    report::set_up(&mut a)?;
    for letter in super::GREETING.bytes() {
        report::say(&mut a, letter)?;
    }
    if work.rows.contains(&Row::Real) {
        passes(&mut a, work)?;
    }
    a.mov(eax, cr0)?;
    a.or(eax, PROTECTION)?;
    a.mov(cr0, eax)?;
    far_jump(&mut a, Code::Jmp_ptr1632, selector::CODE32, layout::ENTRY + back)?;
    a.assemble(u64::from(layout::REAL))
}

fn passes(a: &mut CodeAssembler, work: &Work) -> Result<(), IcedError> {
    let mut pass = a.create_label();
    a.mov(word_ptr(layout::REAL_PASSES), work.passes)?;
    a.set_label(&mut pass)?;
    let start = |a: &mut CodeAssembler| {
        a.mov(bx, 0x1234)?;
        a.mov(cx, 0x5678)?;
        a.mov(edi, work.rounds(Row::Real))
    };
    report::row(a, Row::Real.letter(), start, arithmetic)?;
    a.dec(word_ptr(layout::REAL_PASSES))?;
    a.jne(pass)
}

/// Eight instructions, and around them a loop for more rounds than 16 bits can count.
fn arithmetic(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut outer = a.create_label();
    let mut inner = a.create_label();
    a.xor(ax, ax)?;
    a.set_label(&mut outer)?;
    a.mov(si, u32::from(REAL_INNER))?;
    a.set_label(&mut inner)?;
    a.add(ax, bx)?;
    a.xor(bx, ax)?;
    a.inc(cx)?;
    a.add(bx, cx)?;
    a.mov(dx, ax)?;
    a.sub(cx, dx)?;
    a.dec(si)?;
    a.jne(inner)?;
    a.dec(edi)?;
    a.jne(outer)?;
    a.movzx(edi, bx)?;
    a.shl(edi, 16)?;
    a.mov(bx, ax)?;
    a.movzx(ebx, bx)?;
    a.xor(edi, ebx)
}

fn leave_protection(a: &mut CodeAssembler, next: u32) -> Result<(), IcedError> {
    a.mov(eax, cr0)?;
    a.and(eax, !PROTECTION)?;
    a.mov(cr0, eax)?;
    far_jump(a, Code::Jmp_ptr1616, 0, next)
}

/// From ax.
fn load_segments(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(ss, ax)
}

fn far_jump(a: &mut CodeAssembler, code: Code, selector: u16, to: u32) -> Result<(), IcedError> {
    a.add_instruction(Instruction::with_far_branch(code, selector, to)?)
}
