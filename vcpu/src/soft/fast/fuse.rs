//! Makes a comparison do the work of the conditional jump behind it.
//!
//! Both stay ops: whatever counts or looks up instructions finds two, and a jump that is reached from elsewhere still is one.

use super::alu::{Form, binary_then, operation, unary_then};
use super::select::{blank, is_simple, one_operand, two_operands};
use super::{CONDITIONAL, Op, Run, by_condition};
use crate::emulate::state::CodeSize;
use crate::emulate::width::Width;
use iced_x86::{Instruction, Mnemonic as M};

/// Lets `op`, which is the op of `instruction`, do the work of `next`, if that is a conditional jump.
pub(in crate::soft) fn fuse(op: &mut Op, instruction: &Instruction, size: CodeSize, next: &Op) {
    let mut fused = blank(op.next);
    if next.shape == CONDITIONAL
        && is_simple(instruction, size)
        && let Some(run) = find(&mut fused, instruction, size == CodeSize::Bits64, next.to)
    {
        fused.run = run;
        *op = fused;
    }
}

fn find(op: &mut Op, insn: &Instruction, long: bool, condition: u8) -> Option<Run> {
    let operation = match insn.mnemonic() {
        M::Add => operation::ADD,
        M::And => operation::AND,
        M::Sub => operation::SUB,
        M::Cmp => operation::CMP,
        M::Test => operation::TEST,
        M::Inc => return counted(op, insn, operation::INC, long, condition),
        M::Dec => return counted(op, insn, operation::DEC, long, condition),
        _ => return None,
    };
    let (form, width) = two_operands(op, insn, long)?;
    let find: fn(&Op, u8, Form, Width) -> Option<Run> = by_condition!(binary_then, condition);
    find(op, operation, form, width)
}

/// `inc` and `dec`, of registers.
fn counted(op: &mut Op, insn: &Instruction, operation: u8, long: bool, condition: u8) -> Option<Run> {
    let (in_memory, width) = one_operand(op, insn, long)?;
    if in_memory {
        return None;
    }
    op.to = op.from;
    let find: fn(u8, Width) -> Option<Run> = by_condition!(unary_then, condition);
    find(operation, width)
}
