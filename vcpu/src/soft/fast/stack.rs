//! `push pop leave` of the code's own width: 8 bytes in 64-bit mode, 4 in 32-bit code.

use super::memory::{load, store};
use super::{Go, Op, Run, cut, register, set_register};
use crate::emulate::Cpu;
use crate::emulate::state::{RBP, RSP};
use crate::soft::world::World;

/// Pushes a value of `W` bits. Says whether it did.
#[inline(always)]
pub(super) fn push_value<const W: u32>(cpu: &mut Cpu<World>, value: u64) -> bool {
    let top = cut::<W>(cpu.state.gpr[RSP].wrapping_sub(u64::from(W / 8)));
    let done = store::<W>(cpu, top, value);
    if done {
        cpu.state.gpr[RSP] = top;
    }
    done
}

/// The value on top of the stack.
#[inline(always)]
pub(super) fn top<const W: u32>(cpu: &Cpu<World>) -> Option<u64> {
    load::<W>(cpu, cut::<W>(cpu.state.gpr[RSP]))
}

/// Takes bytes off the stack.
#[inline(always)]
pub(super) fn release<const W: u32>(cpu: &mut Cpu<World>, bytes: u64) {
    cpu.state.gpr[RSP] = cut::<W>(cpu.state.gpr[RSP].wrapping_add(bytes));
}

fn push_register<const W: u32>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    let value = register(cpu, op.from);
    if push_value::<W>(cpu, value) {
        Go::Next
    } else {
        Go::Slow
    }
}

fn push_immediate<const W: u32>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    if push_value::<W>(cpu, op.immediate) {
        Go::Next
    } else {
        Go::Slow
    }
}

fn pop_register<const W: u32>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    let Some(value) = top::<W>(cpu) else {
        return Go::Slow;
    };
    release::<W>(cpu, u64::from(W / 8));
    set_register::<W>(cpu, op.to, value);
    Go::Next
}

fn leave_frame<const W: u32>(cpu: &mut Cpu<World>, _op: &Op) -> Go {
    let frame = cut::<W>(cpu.state.gpr[RBP]);
    let Some(value) = load::<W>(cpu, frame) else {
        return Go::Slow;
    };
    cpu.state.gpr[RSP] = cut::<W>(frame.wrapping_add(u64::from(W / 8)));
    cpu.state.gpr[RBP] = value;
    Go::Next
}

pub(super) fn push(long: bool, immediate: bool) -> Run {
    match (long, immediate) {
        (true, false) => push_register::<64>,
        (false, false) => push_register::<32>,
        (true, true) => push_immediate::<64>,
        (false, true) => push_immediate::<32>,
    }
}

pub(super) fn pop(long: bool) -> Run {
    if long { pop_register::<64> } else { pop_register::<32> }
}

pub(super) fn leave(long: bool) -> Run {
    if long { leave_frame::<64> } else { leave_frame::<32> }
}
