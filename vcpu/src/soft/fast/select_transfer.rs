//! From a decoded instruction of the stack, of strings or of control flow to its op.

use super::memory::NARROW;
use super::select::{memory, number, second_operand};
use super::stack::Pushed;
use super::{CONDITIONAL, Op, Run, UNCONDITIONAL, branch, moves, select_vector, stack, string, system};
use crate::emulate::width::Width;
use iced_x86::{Code, ConditionCode, Instruction, Mnemonic as M, OpKind, Register};

/// Finds the function of the op, and sets the op's operands.
pub(super) fn find(op: &mut Op, insn: &Instruction, long: bool) -> Option<Run> {
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
        M::Stac | M::Clac | M::Syscall | M::Sysret | M::Sysretq | M::Swapgs | M::Int | M::Iretq => {
            return system::find(op, insn, long);
        }
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
            if call {
                return Some(branch::call(long));
            }
            op.shape = UNCONDITIONAL;
            return Some(branch::jump());
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
        if op.wide == insn.next_ip() {
            return Some(moves::nothing);
        }
        (op.to, op.shape) = (code, CONDITIONAL);
        return Some(branch::conditional(code));
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
    let in_memory = second_operand(op, insn, long)?;
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
