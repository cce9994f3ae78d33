//! Operands at random.

use super::super::layout;
use super::super::mode::Mode;
use super::super::rng::Rng;
use super::super::segments;
use super::Place;
use super::fit::target;
use iced_x86::{Instruction, Mnemonic, OpCodeInfo, OpCodeOperandKind as K, OpKind, Register};

const GPR: [(Register, u64); 4] = [
    (Register::AL, 20),
    (Register::AX, 16),
    (Register::EAX, 16),
    (Register::RAX, 16),
];

fn register(rng: &mut Rng, family: usize, mode: Mode) -> Register {
    let (first, count) = GPR[family];
    nth(first, rng.below(count.min(if mode.is_long() { count } else { 8 })))
}

pub(super) fn nth(first: Register, index: u64) -> Register {
    Register::try_from(first as usize + index as usize).unwrap()
}

/// Gives `insn` its operand number `operand`.
pub(super) fn set(insn: &mut Instruction, info: &OpCodeInfo, operand: u32, rng: &mut Rng, place: &Place) {
    let (mode, index) = (place.mode, place.index);
    let kind = info.op_kind(operand);
    let to_register = |insn: &mut Instruction, register: Register| {
        insn.set_op_kind(operand, OpKind::Register);
        insn.set_op_register(operand, register);
    };
    let family = match kind {
        K::r8_or_mem | K::r8_reg | K::r8_opcode => Some(0),
        K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => Some(1),
        K::r32_or_mem | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode => Some(2),
        K::r64_or_mem | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode => Some(3),
        _ => None,
    };
    let may_be_memory = matches!(
        kind,
        K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::xmm_or_mem | K::mm_or_mem | K::mem
    );
    if kind == K::mem || (may_be_memory && rng.chance(60)) {
        memory_form(insn, operand, rng, place);
        return;
    }
    if let Some(family) = family {
        return to_register(insn, register(rng, family, mode));
    }
    let random = rng.next();
    match kind {
        K::al => to_register(insn, Register::AL),
        K::cl => to_register(insn, Register::CL),
        K::ax => to_register(insn, Register::AX),
        K::dx => to_register(insn, Register::DX),
        K::eax => to_register(insn, Register::EAX),
        K::rax => to_register(insn, Register::RAX),
        K::st0 => to_register(insn, Register::ST0),
        K::sti_opcode => to_register(insn, nth(Register::ST0, random % 8)),
        K::mm_reg | K::mm_rm | K::mm_or_mem => to_register(insn, nth(Register::MM0, random % 8)),
        K::xmm_reg | K::xmm_rm | K::xmm_or_mem => to_register(insn, nth(Register::XMM0, random % mode.registers())),
        K::seg_reg => to_register(insn, nth(Register::ES, random % 6)),
        K::es => to_register(insn, Register::ES),
        K::cs => to_register(insn, Register::CS),
        K::ss => to_register(insn, Register::SS),
        K::ds => to_register(insn, Register::DS),
        K::fs => to_register(insn, Register::FS),
        K::gs => to_register(insn, Register::GS),
        K::imm8 if operand > 0 && insn.op_kind(operand - 1) == OpKind::Immediate8 => {
            insn.set_op_kind(operand, OpKind::Immediate8_2nd);
            insn.set_immediate8_2nd(random as u8);
        }
        K::imm8 if operand > 0 && insn.op_kind(operand - 1) == OpKind::Immediate16 => {
            insn.set_op_kind(operand, OpKind::Immediate8_2nd);
            insn.set_immediate8_2nd(if rng.chance(80) {
                random as u8 & 3
            } else {
                random as u8 & 15
            });
        }
        K::imm8 | K::imm8_const_1 => {
            insn.set_op_kind(operand, OpKind::Immediate8);
            insn.set_immediate8(if kind == K::imm8_const_1 { 1 } else { random as u8 });
        }
        K::imm8sex16 => {
            insn.set_op_kind(operand, OpKind::Immediate8to16);
            insn.set_immediate8to16(i16::from(random as i8));
        }
        K::imm8sex32 => {
            insn.set_op_kind(operand, OpKind::Immediate8to32);
            insn.set_immediate8to32(i32::from(random as i8));
        }
        K::imm8sex64 => {
            insn.set_op_kind(operand, OpKind::Immediate8to64);
            insn.set_immediate8to64(i64::from(random as i8));
        }
        K::imm16 => {
            insn.set_op_kind(operand, OpKind::Immediate16);
            let mask = match insn.mnemonic() {
                Mnemonic::Enter => 0x3ff,
                // Intel's processors add this and the size of the frame modulo 64 KiB, whatever the stack is.
                Mnemonic::Retf => 0x7fff,
                _ => 0xffff,
            };
            insn.set_immediate16(rng.value() as u16 & mask);
        }
        K::imm32 => {
            insn.set_op_kind(operand, OpKind::Immediate32);
            insn.set_immediate32(rng.value() as u32);
        }
        K::imm32sex64 => {
            insn.set_op_kind(operand, OpKind::Immediate32to64);
            insn.set_immediate32to64(i64::from(rng.value() as i32));
        }
        K::imm64 => {
            insn.set_op_kind(operand, OpKind::Immediate64);
            insn.set_immediate64(rng.value());
        }
        K::mem_offs => {
            insn.set_op_kind(operand, OpKind::Memory);
            absolute(insn, rng, place, other_address_size(random));
        }
        K::seg_rSI => {
            // Source and destination use the same address size.
            let other = if operand == 1 {
                insn.op_kind(0) == destinations(mode)[1]
            } else {
                other_address_size(random)
            };
            insn.set_op_kind(operand, sources(mode)[usize::from(other)]);
        }
        K::es_rDI => {
            let other = if operand > 0 {
                insn.op_kind(0) == sources(mode)[1]
            } else {
                other_address_size(random)
            };
            insn.set_op_kind(operand, destinations(mode)[usize::from(other)]);
        }
        K::seg_rDI => insn.set_op_kind(
            operand,
            match mode {
                Mode::Long => OpKind::MemorySegRDI,
                Mode::Compat32 => OpKind::MemorySegEDI,
                Mode::Compat16 => OpKind::MemorySegDI,
            },
        ),
        K::seg_rBX_al => {
            insn.set_op_kind(operand, OpKind::Memory);
            insn.set_memory_base(match mode {
                Mode::Long => Register::RBX,
                Mode::Compat32 => Register::EBX,
                Mode::Compat16 => Register::BX,
            });
            insn.set_memory_index(Register::AL);
        }
        K::br64_1 | K::br64_4 => {
            insn.set_op_kind(operand, OpKind::NearBranch64);
            insn.set_near_branch64(mode.pad(index));
        }
        K::br32_1 | K::br32_4 => {
            insn.set_op_kind(operand, OpKind::NearBranch32);
            insn.set_near_branch32(near_target(rng, place) as u32);
        }
        K::br16_1 | K::br16_2 => {
            insn.set_op_kind(operand, OpKind::NearBranch16);
            insn.set_near_branch16(near_target(rng, place) as u16);
        }
        K::farbr2_2 => {
            let (offset, selector) = far_target(rng, index, false);
            insn.set_op_kind(operand, OpKind::FarBranch16);
            insn.set_far_branch16(offset as u16);
            insn.set_far_branch_selector(selector);
        }
        K::farbr4_2 => {
            let (offset, selector) = far_target(rng, index, true);
            insn.set_op_kind(operand, OpKind::FarBranch32);
            insn.set_far_branch32(offset);
            insn.set_far_branch_selector(selector);
        }
        _ => {}
    }
}

/// Once in eight times, an address size other than the mode's own.
const fn other_address_size(random: u64) -> bool {
    random & 7 == 0
}

/// String operands with the mode's address size and with the other one.
const fn sources(mode: Mode) -> [OpKind; 2] {
    match mode {
        Mode::Long => [OpKind::MemorySegRSI, OpKind::MemorySegESI],
        Mode::Compat32 => [OpKind::MemorySegESI, OpKind::MemorySegSI],
        Mode::Compat16 => [OpKind::MemorySegSI, OpKind::MemorySegESI],
    }
}

const fn destinations(mode: Mode) -> [OpKind; 2] {
    match mode {
        Mode::Long => [OpKind::MemoryESRDI, OpKind::MemoryESEDI],
        Mode::Compat32 => [OpKind::MemoryESEDI, OpKind::MemoryESDI],
        Mode::Compat16 => [OpKind::MemoryESDI, OpKind::MemoryESEDI],
    }
}

/// The target of a near branch in compatibility mode: the pad, now and then beyond the segment's limit.
fn near_target(rng: &mut Rng, place: &Place) -> u64 {
    if rng.chance(3) {
        layout::CODE_SLOT + rng.below(0x60)
    } else {
        place.mode.pad(place.index)
    }
}

fn far_target(rng: &mut Rng, index: usize, wide: bool) -> (u32, u16) {
    // Those of any slot that go to this one's pads or nowhere.
    let other = rng.below(8) as usize;
    if rng.chance(70) {
        segments::far_target(index, wide)
    } else {
        (rng.value() as u32, segments::any_selector(other * 3 + index))
    }
}

/// The width of addresses: the mode's, or the other one that a prefix gives.
fn address_bytes(mode: Mode, other: bool) -> u32 {
    match (mode, other) {
        (Mode::Long, false) => 8,
        (Mode::Compat32, true) | (Mode::Compat16, false) => 2,
        _ => 4,
    }
}

/// A memory operand without registers.
fn absolute(insn: &mut Instruction, rng: &mut Rng, place: &Place, other: bool) {
    let bytes = address_bytes(place.mode, other);
    let offset = target(rng, 8).wrapping_sub(place.base(place.prefix.unwrap_or(Register::DS)));
    insn.set_memory_displ_size(bytes);
    insn.set_memory_displacement64(match bytes {
        2 => offset & 0xffff,
        4 => offset & 0xffff_ffff,
        _ => offset,
    });
}

/// Gives a memory operand one of the addressing forms. What it points to is arranged in `fit`.
fn memory_form(insn: &mut Instruction, operand: u32, rng: &mut Rng, place: &Place) {
    insn.set_op_kind(operand, OpKind::Memory);
    let other = rng.chance(if place.mode.is_long() { 8 } else { 20 });
    let bytes = address_bytes(place.mode, other);
    match rng.below(10) {
        0 if bytes == 8 => {
            insn.set_memory_base(Register::RIP);
            insn.set_memory_displ_size(8);
            insn.set_memory_displacement64(target(rng, 8));
        }
        0 | 1 => absolute(insn, rng, place, other),
        form if bytes == 2 => form_of_16_bits(insn, rng, form > 5),
        form => {
            let family = if bytes == 4 { Register::EAX } else { Register::RAX };
            let base = rng.below(place.mode.registers());
            insn.set_memory_base(nth(family, base));
            if form > 5 {
                let index = rng.below(place.mode.registers());
                if index != 4 && index != base {
                    insn.set_memory_index(nth(family, index));
                    insn.set_memory_index_scale(1 << rng.below(4));
                }
            }
            let displacement = match rng.below(3) {
                0 => 0,
                1 => i64::from(rng.next() as i8),
                _ => i64::from(rng.next() as i32),
            };
            if displacement != 0 {
                insn.set_memory_displ_size(if i8::try_from(displacement).is_ok() { 1 } else { bytes });
                insn.set_memory_displacement64(if bytes == 4 {
                    u64::from(displacement as u32)
                } else {
                    displacement as u64
                });
            }
        }
    }
}

/// `[bx]`, `[bp + di + 5]` and so on.
fn form_of_16_bits(insn: &mut Instruction, rng: &mut Rng, with_index: bool) {
    if with_index {
        insn.set_memory_base(rng.pick(&[Register::BX, Register::BP]));
        insn.set_memory_index(rng.pick(&[Register::SI, Register::DI]));
    } else {
        insn.set_memory_base(rng.pick(&[Register::BX, Register::BP, Register::SI, Register::DI]));
    }
    match rng.below(3) {
        0 if insn.memory_base() != Register::BP || with_index => {}
        1 => {
            insn.set_memory_displ_size(1);
            insn.set_memory_displacement64(u64::from(i16::from(rng.next() as i8) as u16));
        }
        _ => {
            insn.set_memory_displ_size(2);
            insn.set_memory_displacement64(rng.next() & 0xffff);
        }
    }
}
