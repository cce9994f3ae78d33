//! From a decoded instruction to its [`Op`].

use super::alu::{self, Form, operation};
use super::{Base, Go, Mem, NONE, Op, Run, branch, moves, shift, stack, string};
use crate::emulate::Cpu;
use crate::emulate::state::CodeSize;
use crate::emulate::width::Width;
use crate::soft::world::World;
use iced_x86::{Code, ConditionCode, Instruction, Mnemonic as M, OpKind, Register};

/// Leaves it to the instruction core.
fn slow(_cpu: &mut Cpu<World>, _op: &Op) -> Go {
    Go::Slow
}

/// The op for `instruction` in code of this size, which is 32 bits (with flat segments) or 64.
pub(in crate::soft) fn select(instruction: &Instruction, size: CodeSize) -> Op {
    let mut op = Op {
        run: slow,
        immediate: 0,
        next: match size {
            CodeSize::Bits64 => instruction.next_ip(),
            _ => instruction.next_ip() & u64::from(u32::MAX),
        },
        memory: Mem {
            displacement: 0,
            mask: u64::MAX,
            base: NONE,
            index: NONE,
            scale: 0,
            segment: Base::Zero,
        },
        to: 0,
        from: 0,
    };
    if size == CodeSize::Bits16 || instruction.has_lock_prefix() {
        return op;
    }
    let long = size == CodeSize::Bits64;
    if let Some(run) = find(&mut op, instruction, long) {
        op.run = run;
    }
    op
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
        M::Mov => {
            let (form, width) = two_operands(op, insn, long)?;
            moves::mov(form, width)
        }
        M::Shl | M::Sal => shifted(op, insn, shift::SHL)?,
        M::Shr => shifted(op, insn, shift::SHR)?,
        M::Sar => shifted(op, insn, shift::SAR)?,
        M::Imul => multiplied(op, insn, long)?,
        M::Movzx => widened(op, insn, false, long)?,
        M::Movsx | M::Movsxd => widened(op, insn, true, long)?,
        M::Lea => {
            op.to = number(insn.op0_register())?;
            memory(op, insn, long)?;
            moves::lea(Width::of(insn.op0_register().size()))
        }
        M::Cwde => moves::extend_to_32,
        M::Cdqe => moves::extend_to_64,
        M::Cdq => moves::spread_32,
        M::Cqo => moves::spread_64,
        M::Nop | M::Endbr32 | M::Endbr64 => moves::nothing,
        _ => return transfer(op, insn, long),
    };
    Some(run)
}

/// Stack and branches.
fn transfer(op: &mut Op, insn: &Instruction, long: bool) -> Option<Run> {
    let own_width = if long { 8 } else { 4 };
    let run = match insn.mnemonic() {
        M::Push if insn.stack_pointer_increment() == -own_width => match insn.op0_kind() {
            OpKind::Register => {
                op.from = number(insn.op0_register())?;
                stack::push(long, false)
            }
            OpKind::Memory => return None,
            _ => {
                op.immediate = insn.immediate(0);
                stack::push(long, true)
            }
        },
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
            op.immediate = if insn.op_count() == 1 {
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
        M::Jmp | M::Call => return jump(op, insn, long),
        _ => return conditional(op, insn, long),
    };
    Some(run)
}

fn repeated(insn: &Instruction) -> bool {
    insn.has_rep_prefix() || insn.has_repne_prefix()
}

/// The address width of a string instruction whose segments are flat.
fn string_address(op: &mut Op, destination: OpKind, insn: &Instruction, long: bool) -> Option<()> {
    op.memory.mask = match destination {
        OpKind::MemoryESEDI => u64::from(u32::MAX),
        OpKind::MemoryESRDI => u64::MAX,
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
    if insn.condition_code() == ConditionCode::None {
        return None;
    }
    // iced counts its condition codes from 1 in the encoding's order. (`loope` and `loopne` have one as well.)
    let code = (insn.condition_code() as u8).wrapping_sub(1) & 15;
    if insn.is_jcc_short_or_near() {
        target(op, insn, long)?;
        return Some(branch::conditional(code));
    }
    if insn.op0_kind() != OpKind::Register || !insn.op0_register().is_gpr() {
        return None;
    }
    op.to = number(insn.op0_register())?;
    let width = Width::of(insn.op0_register().size());
    if width == Width::B1 {
        return Some(moves::set_by_condition(code));
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
    let near = if long {
        OpKind::NearBranch64
    } else {
        OpKind::NearBranch32
    };
    // Canonical in the smallest address space there is.
    let target = insn.near_branch_target();
    let canonical = ((target << 16) as i64 >> 16) as u64 == target;
    op.immediate = target;
    (insn.op0_kind() == near && (canonical || !long)).then_some(())
}

fn binary(op: &mut Op, insn: &Instruction, operation: u8, long: bool) -> Option<Run> {
    let (form, width) = two_operands(op, insn, long)?;
    op.immediate &= width.mask();
    Some(alu::binary(operation, form, width))
}

fn unary(op: &mut Op, insn: &Instruction, operation: u8, long: bool) -> Option<Run> {
    let in_memory = insn.op0_kind() == OpKind::Memory;
    let width = if in_memory {
        memory(op, insn, long)?;
        Width::of(insn.memory_size().size())
    } else {
        op.to = number(insn.op0_register())?;
        Width::of(insn.op0_register().size())
    };
    Some(alu::unary(operation, in_memory, width))
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
            op.immediate = insn.immediate(1);
            Some((Form::RegisterImmediate, Width::of(register(0).size())))
        }
        (OpKind::Memory, _) => {
            memory(op, insn, long)?;
            op.immediate = insn.immediate(1);
            Some((Form::MemoryImmediate, Width::of(insn.memory_size().size())))
        }
        _ => None,
    }
}

fn shifted(op: &mut Op, insn: &Instruction, operation: u8) -> Option<Run> {
    if insn.op0_kind() != OpKind::Register {
        return None;
    }
    op.to = number(insn.op0_register())?;
    let width = Width::of(insn.op0_register().size());
    let counter = insn.op1_kind() == OpKind::Register;
    if !counter {
        op.immediate = insn.immediate(1) & if width == Width::B8 { 63 } else { 31 };
        if op.immediate == 0 {
            return None;
        }
    }
    Some(shift::shifts(operation, counter, width))
}

fn multiplied(op: &mut Op, insn: &Instruction, long: bool) -> Option<Run> {
    if insn.op_count() < 2 {
        return None;
    }
    op.to = number(insn.op0_register())?;
    let in_memory = insn.op1_kind() == OpKind::Memory;
    if in_memory {
        memory(op, insn, long)?;
    } else {
        op.from = number(insn.op1_register())?;
    }
    let immediate = insn.op_count() == 3;
    if immediate {
        op.immediate = insn.immediate(2);
    }
    let form = match (immediate, in_memory) {
        (false, false) => shift::REGISTERS,
        (false, true) => shift::REGISTER_MEMORY,
        (true, false) => shift::REGISTER_IMMEDIATE,
        (true, true) => shift::MEMORY_IMMEDIATE,
    };
    Some(shift::multiplications(form, Width::of(insn.op0_register().size())))
}

fn widened(op: &mut Op, insn: &Instruction, signed: bool, long: bool) -> Option<Run> {
    op.to = number(insn.op0_register())?;
    let to = Width::of(insn.op0_register().size());
    let in_memory = insn.op1_kind() == OpKind::Memory;
    let from = if in_memory {
        memory(op, insn, long)?;
        Width::of(insn.memory_size().size())
    } else {
        op.from = number(insn.op1_register())?;
        Width::of(insn.op1_register().size())
    };
    (from != Width::B8).then(|| moves::widening(signed, in_memory, from, to))
}

/// The number of a general-purpose register that is the low part of its whole.
fn number(register: Register) -> Option<u8> {
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    (register.is_gpr() && !high).then(|| register.full_register().number() as u8 & 15)
}

/// The memory operand, if its address is a plain sum.
fn memory(op: &mut Op, insn: &Instruction, long: bool) -> Option<()> {
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
    op.memory = Mem {
        displacement: insn.memory_displacement64(),
        mask: match bytes {
            8 => u64::MAX,
            4 => u64::from(u32::MAX),
            _ => return None,
        },
        base: part(base)?,
        index: part(index)?,
        scale: insn.memory_index_scale().trailing_zeros() as u8,
        segment: match insn.memory_segment() {
            Register::FS if long => Base::Fs,
            Register::GS if long => Base::Gs,
            Register::FS | Register::GS | Register::CS if !long => return None,
            _ => Base::Zero,
        },
    };
    Some(())
}
