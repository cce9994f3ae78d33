//! From a decoded instruction to its [`Op`].

use super::alu::{self, Form, operation};
use super::memory::{FS, GS, NARROW};
use super::{NONE, Op, Run, Went, bits, moves, muldiv, select_transfer, shift};
use crate::emulate::Cpu;
use crate::emulate::state::CodeSize;
use crate::emulate::width::Width;
use crate::soft::world::World;
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};
use std::cell::Cell;

/// Leaves it to the instruction core.
fn left_alone(_cpu: &mut Cpu<World>, _op: &Op, rest: &[Op]) -> Went {
    super::slow(rest)
}

/// The op for `instruction` in code of this size: 64 bits, 32 with flat segments, or 16 of real mode, where there are ops
/// only for what needs no segment. The instruction ends `end` bytes behind the beginning of its block.
pub(in crate::soft) fn select(instruction: &Instruction, size: CodeSize, end: u16) -> Op {
    let mut op = blank(end);
    if is_simple(instruction, size)
        && let Some(run) = find(&mut op, instruction, size == CodeSize::Bits64)
    {
        op.run = run;
    }
    op
}

/// The op that leaves the instruction to the core.
pub(super) fn blank(end: u16) -> Op {
    Op {
        run: left_alone,
        wide: 0,
        extra: Cell::new(0),
        base: NONE,
        index: NONE,
        shape: 0,
        to: 0,
        from: 0,
        next: end,
    }
}

/// Whether there can be an op for it.
pub(super) fn is_simple(instruction: &Instruction, size: CodeSize) -> bool {
    // What ends where addresses do goes on at their beginning.
    let last = match size {
        CodeSize::Bits16 => 0xffff,
        CodeSize::Bits32 => u64::from(u32::MAX),
        CodeSize::Bits64 => u64::MAX,
    };
    !instruction.has_lock_prefix()
        && instruction.next_ip() <= last
        && (size != CodeSize::Bits16 || stays_in_registers(instruction))
}

/// Whether the operands are registers and immediates, or the instruction is a jump of 16 bits.
fn stays_in_registers(insn: &Instruction) -> bool {
    let operand = |index| {
        use OpKind::{Immediate8, Immediate8to16, Immediate8to32, Immediate16, Immediate32, NearBranch16, Register};
        matches!(
            insn.op_kind(index),
            Register | Immediate8 | Immediate8to16 | Immediate8to32 | Immediate16 | Immediate32 | NearBranch16
        )
    };
    let indirect = insn.mnemonic() == M::Jmp && insn.op0_kind() != OpKind::NearBranch16;
    (0..insn.op_count()).all(operand) && !insn.is_stack_instruction() && !indirect
}

fn find(op: &mut Op, insn: &Instruction, long: bool) -> Option<Run> {
    let run = match insn.mnemonic() {
        M::Add => binary(op, insn, operation::ADD, long)?,
        M::Or => binary(op, insn, operation::OR, long)?,
        M::Adc => binary(op, insn, operation::ADC, long)?,
        M::Sbb => binary(op, insn, operation::SBB, long)?,
        M::And => binary(op, insn, operation::AND, long)?,
        M::Sub => binary(op, insn, operation::SUB, long)?,
        M::Xor => binary(op, insn, operation::XOR, long)?,
        M::Cmp => binary(op, insn, operation::CMP, long)?,
        M::Test => binary(op, insn, operation::TEST, long)?,
        M::Inc => unary(op, insn, operation::INC, long)?,
        M::Dec => unary(op, insn, operation::DEC, long)?,
        M::Neg => unary(op, insn, operation::NEG, long)?,
        M::Not => unary(op, insn, operation::NOT, long)?,
        M::Mov => moved(op, insn, long)?,
        M::Shl | M::Sal => shifted(op, insn, shift::SHL)?,
        M::Shr => shifted(op, insn, shift::SHR)?,
        M::Sar => shifted(op, insn, shift::SAR)?,
        M::Rol => shifted(op, insn, shift::ROL)?,
        M::Ror => shifted(op, insn, shift::ROR)?,
        M::Imul if insn.op_count() > 1 => multiplied(op, insn, long)?,
        M::Imul | M::Mul | M::Div => {
            let (memory, width) = one_operand(op, insn, long)?;
            match insn.mnemonic() {
                M::Div => muldiv::divisions(memory, width)?,
                mnemonic => muldiv::wide_multiplications(mnemonic == M::Imul, memory, width)?,
            }
        }
        M::Movzx => widened(op, insn, false, long)?,
        M::Movsx | M::Movsxd => widened(op, insn, true, long)?,
        M::Lea => {
            op.to = number(insn.op0_register())?;
            memory(op, insn, long)?;
            moves::lea(op, Width::of(insn.op0_register().size()))
        }
        M::Cwde => moves::extend_to_32,
        M::Cdqe => moves::extend_to_64,
        M::Cdq => moves::spread_32,
        M::Cqo => moves::spread_64,
        M::Nop | M::Endbr32 | M::Endbr64 | M::Lfence | M::Sfence => moves::nothing,
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchw | M::Prefetch => moves::nothing,
        _ => return find_bits(op, insn, long),
    };
    Some(run)
}

/// Bits, and what exchanges registers or their bytes.
fn find_bits(op: &mut Op, insn: &Instruction, long: bool) -> Option<Run> {
    let run = match insn.mnemonic() {
        M::Bt => bit(op, insn, bits::TEST)?,
        M::Bts => bit(op, insn, bits::SET)?,
        M::Btr => bit(op, insn, bits::RESET)?,
        M::Btc => bit(op, insn, bits::COMPLEMENT)?,
        M::Bsf => scanned(op, insn, bits::FORWARD, long)?,
        M::Bsr => scanned(op, insn, bits::REVERSE, long)?,
        M::Tzcnt => scanned(op, insn, bits::TRAILING, long)?,
        M::Popcnt => scanned(op, insn, bits::ONES, long)?,
        M::Bswap => {
            op.to = number(insn.op0_register())?;
            bits::byte_swaps(Width::of(insn.op0_register().size()))?
        }
        M::Xchg if insn.op0_kind() == OpKind::Register && insn.op1_kind() == OpKind::Register => {
            op.to = number(insn.op0_register())?;
            op.from = number(insn.op1_register())?;
            moves::xchg(Width::of(insn.op0_register().size()))
        }
        M::Clc | M::Stc | M::Cmc => {
            op.extra.set(match insn.mnemonic() {
                M::Clc => 0,
                M::Stc => 1,
                _ => 2,
            });
            bits::change_carry
        }
        _ => return select_transfer::find(op, insn, long),
    };
    Some(run)
}

fn binary(op: &mut Op, insn: &Instruction, operation: u8, long: bool) -> Option<Run> {
    if operation == operation::TEST && is_high(insn.op0_register()) && insn.op1_kind() == OpKind::Immediate8 {
        op.to = insn.op0_register().full_register().number() as u8;
        op.extra.set(insn.immediate8().into());
        return Some(bits::test_high);
    }
    let (form, width) = two_operands(op, insn, long)?;
    Some(alu::binary(op, operation, form, width))
}

fn unary(op: &mut Op, insn: &Instruction, operation: u8, long: bool) -> Option<Run> {
    let (in_memory, width) = one_operand(op, insn, long)?;
    op.to = op.from;
    Some(alu::unary(op, operation, in_memory, width))
}

/// An operand that is in memory or else the register `from`, and its width.
pub(super) fn one_operand(op: &mut Op, insn: &Instruction, long: bool) -> Option<(bool, Width)> {
    if insn.op0_kind() == OpKind::Memory {
        memory(op, insn, long)?;
        return Some((true, Width::of(insn.memory_size().size())));
    }
    op.from = number(insn.op0_register())?;
    Some((false, Width::of(insn.op0_register().size())))
}

/// A second operand, which is in memory, as is said, or else the register `from`.
pub(super) fn second_operand(op: &mut Op, insn: &Instruction, long: bool) -> Option<bool> {
    let in_memory = insn.op1_kind() == OpKind::Memory;
    if in_memory {
        memory(op, insn, long)?;
    } else {
        op.from = number(insn.op1_register())?;
    }
    Some(in_memory)
}

fn moved(op: &mut Op, insn: &Instruction, long: bool) -> Option<Run> {
    if insn.op1_kind() == OpKind::Immediate64 {
        op.to = number(insn.op0_register())?;
        op.wide = insn.immediate64();
        return Some(moves::mov_wide());
    }
    let (form, width) = two_operands(op, insn, long)?;
    Some(moves::mov(op, form, width))
}

/// A destination and a source of the same width.
pub(super) fn two_operands(op: &mut Op, insn: &Instruction, long: bool) -> Option<(Form, Width)> {
    let register = |index| insn.op_register(index);
    match (insn.op0_kind(), insn.op1_kind()) {
        (OpKind::Register, OpKind::Register) => {
            (op.to, op.from) = (number(register(0))?, number(register(1))?);
            Some((Form::Registers, Width::of(register(0).size())))
        }
        (OpKind::Register, OpKind::Memory) => {
            op.to = number(register(0))?;
            memory(op, insn, long)?;
            Some((Form::RegisterMemory, Width::of(register(0).size())))
        }
        (OpKind::Memory, OpKind::Register) => {
            op.from = number(register(1))?;
            memory(op, insn, long)?;
            Some((Form::MemoryRegister, Width::of(register(1).size())))
        }
        (OpKind::Register, _) => {
            op.to = number(register(0))?;
            op.extra.set(insn.immediate(1) as u32);
            Some((Form::RegisterImmediate, Width::of(register(0).size())))
        }
        (OpKind::Memory, _) => {
            memory(op, insn, long)?;
            op.extra.set(insn.immediate(1) as u32);
            Some((Form::MemoryImmediate, Width::of(insn.memory_size().size())))
        }
        _ => None,
    }
}

fn bit(op: &mut Op, insn: &Instruction, operation: u8) -> Option<Run> {
    if insn.op0_kind() != OpKind::Register {
        return None;
    }
    op.to = number(insn.op0_register())?;
    let immediate = insn.op1_kind() == OpKind::Immediate8;
    if immediate {
        op.extra.set(insn.immediate8().into());
    } else {
        op.from = number(insn.op1_register())?;
    }
    bits::bits(operation, immediate, Width::of(insn.op0_register().size()))
}

fn scanned(op: &mut Op, insn: &Instruction, operation: u8, long: bool) -> Option<Run> {
    op.to = number(insn.op0_register())?;
    let in_memory = second_operand(op, insn, long)?;
    bits::scans(operation, in_memory, Width::of(insn.op0_register().size()))
}

fn shifted(op: &mut Op, insn: &Instruction, operation: u8) -> Option<Run> {
    if insn.op0_kind() != OpKind::Register {
        return None;
    }
    op.to = number(insn.op0_register())?;
    let width = Width::of(insn.op0_register().size());
    let counter = insn.op1_kind() == OpKind::Register;
    if !counter {
        let count = insn.immediate(1) as u32 & if width == Width::B8 { 63 } else { 31 };
        if count == 0 {
            return None;
        }
        op.extra.set(count);
    }
    Some(shift::shifts(operation, counter, width))
}

fn multiplied(op: &mut Op, insn: &Instruction, long: bool) -> Option<Run> {
    op.to = number(insn.op0_register())?;
    let in_memory = second_operand(op, insn, long)?;
    let immediate = insn.op_count() == 3;
    if immediate {
        op.extra.set(insn.immediate(2) as u32);
    }
    let form = match (immediate, in_memory) {
        (false, false) => muldiv::REGISTERS,
        (false, true) => muldiv::REGISTER_MEMORY,
        (true, false) => muldiv::REGISTER_IMMEDIATE,
        (true, true) => muldiv::MEMORY_IMMEDIATE,
    };
    Some(muldiv::multiplications(form, Width::of(insn.op0_register().size())))
}

fn widened(op: &mut Op, insn: &Instruction, signed: bool, long: bool) -> Option<Run> {
    op.to = number(insn.op0_register())?;
    let to = Width::of(insn.op0_register().size());
    if insn.op1_kind() == OpKind::Memory {
        memory(op, insn, long)?;
        let from = Width::of(insn.memory_size().size());
        return (from != Width::B8).then(|| moves::widening(op, signed, true, from, to));
    }
    let register = insn.op1_register();
    if is_high(register) {
        op.from = register.full_register().number() as u8;
        return Some(moves::widening_high(signed, to));
    }
    op.from = number(register)?;
    let from = Width::of(register.size());
    (from != Width::B8).then(|| moves::widening(op, signed, false, from, to))
}

/// Whether it is bits 8 to 15 of a register.
fn is_high(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// The number of a general-purpose register that is the low part of its whole.
pub(in crate::soft) fn number(register: Register) -> Option<u8> {
    (register.is_gpr() && !is_high(register)).then(|| register.full_register().number() as u8 & 15)
}

/// The memory operand, if its address is a plain sum.
pub(super) fn memory(op: &mut Op, insn: &Instruction, long: bool) -> Option<()> {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let bytes = match (base, index) {
        (Register::None, Register::None) => insn.memory_displ_size() as usize,
        (Register::None, index) => index.size(),
        (base, _) => base.size(),
    };
    let part = |register: Register| match register {
        // iced has already added the instruction pointer.
        Register::None | Register::RIP | Register::EIP => Some(NONE),
        register => number(register),
    };
    let segment = match insn.memory_segment() {
        Register::FS if long => FS,
        Register::GS if long => GS,
        Register::FS | Register::GS | Register::CS if !long => return None,
        _ => 0,
    };
    let narrow = match bytes {
        8 => 0,
        4 => NARROW,
        _ => return None,
    };
    op.wide = insn.memory_displacement64();
    (op.base, op.index) = (part(base)?, part(index)?);
    op.shape = insn.memory_index_scale().trailing_zeros() as u8 | narrow | segment;
    Some(())
}
