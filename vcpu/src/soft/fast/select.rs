//! From a decoded instruction to its [`Op`].

use super::alu::{self, Form, operation};
use super::memory::{FS, GS, NARROW};
use super::stack::Pushed;
use super::{NONE, Op, Run, Went, bits, branch, moves, muldiv, select_vector, shift, stack, string};
use crate::emulate::Cpu;
use crate::emulate::state::CodeSize;
use crate::emulate::width::Width;
use crate::soft::world::World;
use iced_x86::{Code, ConditionCode, Instruction, Mnemonic as M, OpKind, Register};
use std::cell::Cell;

/// Leaves it to the instruction core.
fn left_alone(_cpu: &mut Cpu<World>, _op: &Op, rest: &[Op]) -> Went {
    super::slow(rest)
}

/// The op for `instruction` in code of this size: 64 bits, 32 with flat segments, or 16 of real mode, where there are ops
/// only for what needs no segment. The instruction ends `end` bytes behind the beginning of its block.
pub(in crate::soft) fn select(instruction: &Instruction, size: CodeSize, end: u16) -> Op {
    let mut op = Op {
        run: left_alone,
        wide: 0,
        extra: Cell::new(0),
        base: NONE,
        index: NONE,
        shape: 0,
        to: 0,
        from: 0,
        next: end,
    };
    // What ends where addresses do goes on at their beginning.
    let last = match size {
        CodeSize::Bits16 => 0xffff,
        CodeSize::Bits32 => u64::from(u32::MAX),
        CodeSize::Bits64 => u64::MAX,
    };
    let left = instruction.has_lock_prefix()
        || instruction.next_ip() > last
        || (size == CodeSize::Bits16 && !stays_in_registers(instruction));
    if !left && let Some(run) = find(&mut op, instruction, size == CodeSize::Bits64) {
        op.run = run;
    }
    op
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
        _ => return transfer(op, insn, long),
    };
    Some(run)
}

/// Stack and branches.
fn transfer(op: &mut Op, insn: &Instruction, long: bool) -> Option<Run> {
    let own_width = if long { 8 } else { 4 };
    let run = match insn.mnemonic() {
        M::Push if insn.stack_pointer_increment() == -own_width => {
            let what = match insn.op0_kind() {
                OpKind::Register => {
                    op.from = number(insn.op0_register())?;
                    Pushed::Register
                }
                OpKind::Memory => {
                    memory(op, insn, long)?;
                    Pushed::Memory
                }
                _ => {
                    // Sign-extended to the width already, and cut to it when it is pushed.
                    op.extra.set(insn.immediate(0) as u32);
                    Pushed::Immediate
                }
            };
            stack::push(long, what)
        }
        M::Pushfq if long => stack::push(true, Pushed::Flags),
        M::Cli => stack::shut_interrupts_out,
        M::Pop if insn.stack_pointer_increment() == own_width && insn.op0_kind() == OpKind::Register => {
            op.to = number(insn.op0_register())?;
            stack::pop(long)
        }
        M::Leave if matches!(insn.code(), Code::Leaved | Code::Leaveq) && (insn.code() == Code::Leaveq) == long => {
            stack::leave(long)
        }
        M::Ret => {
            let expected = if long {
                [Code::Retnq, Code::Retnq_imm16]
            } else {
                [Code::Retnd, Code::Retnd_imm16]
            };
            if !expected.contains(&insn.code()) {
                return None;
            }
            op.wide = if insn.op_count() == 1 {
                u64::from(insn.immediate16())
            } else {
                0
            };
            branch::ret(long)
        }
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => {
            string_address(op, insn.op0_kind(), insn, long)?;
            string::stos(repeated(insn), Width::of(insn.memory_size().size()))
        }
        M::Movsb | M::Movsw | M::Movsd | M::Movsq if insn.is_string_instruction() => {
            string_address(op, insn.op0_kind(), insn, long)?;
            string::movs(repeated(insn), Width::of(insn.memory_size().size()))
        }
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq if !repeated(insn) => {
            string_address(op, insn.op1_kind(), insn, long)?;
            string::lods(Width::of(insn.memory_size().size()))
        }
        M::Scasb | M::Scasw | M::Scasd | M::Scasq if !repeated(insn) => {
            string_address(op, insn.op1_kind(), insn, long)?;
            string::scas(Width::of(insn.memory_size().size()))
        }
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq if insn.is_string_instruction() && !repeated(insn) => {
            string_address(op, insn.op0_kind(), insn, long)?;
            string::cmps(Width::of(insn.memory_size().size()))
        }
        M::Jmp | M::Call => return jump(op, insn, long),
        _ if insn.condition_code() != ConditionCode::None => return conditional(op, insn, long),
        _ => return select_vector::find(op, insn, long),
    };
    Some(run)
}

fn repeated(insn: &Instruction) -> bool {
    insn.has_rep_prefix() || insn.has_repne_prefix()
}

/// The address width of a string instruction whose segments are flat.
fn string_address(op: &mut Op, operand: OpKind, insn: &Instruction, long: bool) -> Option<()> {
    op.shape = match operand {
        OpKind::MemoryESEDI | OpKind::MemorySegESI => NARROW,
        OpKind::MemoryESRDI | OpKind::MemorySegRSI => 0,
        _ => return None,
    };
    match insn.segment_prefix() {
        Register::FS | Register::GS => None,
        Register::CS if !long => None,
        _ => Some(()),
    }
}

fn jump(op: &mut Op, insn: &Instruction, long: bool) -> Option<Run> {
    let call = insn.mnemonic() == M::Call;
    match insn.code() {
        Code::Jmp_rm64 | Code::Call_rm64 if long => {}
        Code::Jmp_rm32 | Code::Call_rm32 if !long => {}
        // Its return address has 16 bits.
        _ if call && insn.op0_kind() == OpKind::NearBranch16 => return None,
        _ => {
            target(op, insn, long)?;
            return Some(if call { branch::call(long) } else { branch::jump() });
        }
    }
    let in_memory = insn.op0_kind() == OpKind::Memory;
    if in_memory {
        memory(op, insn, long)?;
    } else {
        op.from = number(insn.op0_register())?;
    }
    Some(branch::indirect(call, in_memory, long))
}

/// `jcc`, `setcc` and `cmovcc`.
fn conditional(op: &mut Op, insn: &Instruction, long: bool) -> Option<Run> {
    // iced counts its condition codes from 1 in the encoding's order. (`loope` and `loopne` have one as well.)
    let code = (insn.condition_code() as u8).wrapping_sub(1) & 15;
    if insn.is_jcc_short_or_near() {
        target(op, insn, long)?;
        // A branch to the next instruction is none, and does not end a block.
        let goes_on = op.wide == insn.next_ip();
        return Some(if goes_on {
            moves::nothing
        } else {
            branch::conditional(code)
        });
    }
    if insn.op0_kind() == OpKind::Memory && insn.op_count() == 1 {
        memory(op, insn, long)?;
        return Some(moves::set_by_condition(code, true));
    }
    if insn.op0_kind() != OpKind::Register || !insn.op0_register().is_gpr() {
        return None;
    }
    op.to = number(insn.op0_register())?;
    let width = Width::of(insn.op0_register().size());
    if width == Width::B1 {
        return Some(moves::set_by_condition(code, false));
    }
    let in_memory = insn.op1_kind() == OpKind::Memory;
    if in_memory {
        memory(op, insn, long)?;
    } else {
        op.from = number(insn.op1_register())?;
    }
    moves::conditional(code, in_memory, width)
}

/// A fixed target that is code for certain.
fn target(op: &mut Op, insn: &Instruction, long: bool) -> Option<()> {
    let near = match insn.op0_kind() {
        OpKind::NearBranch64 => long,
        OpKind::NearBranch32 | OpKind::NearBranch16 => !long,
        _ => false,
    };
    // Canonical in the smallest address space there is.
    let target = insn.near_branch_target();
    let canonical = ((target << 16) as i64 >> 16) as u64 == target;
    op.wide = target;
    (near && (canonical || !long)).then_some(())
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
fn one_operand(op: &mut Op, insn: &Instruction, long: bool) -> Option<(bool, Width)> {
    if insn.op0_kind() == OpKind::Memory {
        memory(op, insn, long)?;
        return Some((true, Width::of(insn.memory_size().size())));
    }
    op.from = number(insn.op0_register())?;
    Some((false, Width::of(insn.op0_register().size())))
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
fn two_operands(op: &mut Op, insn: &Instruction, long: bool) -> Option<(Form, Width)> {
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
    let in_memory = insn.op1_kind() == OpKind::Memory;
    if in_memory {
        memory(op, insn, long)?;
    } else {
        op.from = number(insn.op1_register())?;
    }
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
    let in_memory = insn.op1_kind() == OpKind::Memory;
    if in_memory {
        memory(op, insn, long)?;
    } else {
        op.from = number(insn.op1_register())?;
    }
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
fn number(register: Register) -> Option<u8> {
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
