//! `push pop leave` and `pushf` of the code's own width: 8 bytes in 64-bit mode, 4 in 32-bit code; and `cli`.

use super::memory::{address, load, store};
use super::{Op, Run, Went, cut, follow, register, set_register, settle_flags, slow};
use crate::emulate::state::{RBP, RSP};
use crate::emulate::{Cpu, flags};
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

#[inline(always)]
fn push_and_go_on<const W: u32>(cpu: &mut Cpu<World>, rest: &[Op], value: u64) -> Went {
    if !push_value::<W>(cpu, value) {
        return slow(rest);
    }
    follow(cpu, rest)
}

fn push_register<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let value = register(cpu, op.from);
    push_and_go_on::<W>(cpu, rest, value)
}

fn push_immediate<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    push_and_go_on::<W>(cpu, rest, op.immediate())
}

fn push_memory<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let Some(value) = load::<W>(cpu, address::<false>(cpu, op)) else {
        return slow(rest);
    };
    push_and_go_on::<W>(cpu, rest, value)
}

/// In no mode that has fast ops is there anything to ask first.
fn push_flags<const W: u32>(cpu: &mut Cpu<World>, _op: &Op, rest: &[Op]) -> Went {
    settle_flags(cpu);
    let value = cpu.state.rflags & !(flags::RF | flags::VM);
    push_and_go_on::<W>(cpu, rest, value)
}

fn pop_register<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let Some(value) = top::<W>(cpu) else {
        return slow(rest);
    };
    release::<W>(cpu, u64::from(W / 8));
    set_register::<W>(cpu, op.to, value);
    follow(cpu, rest)
}

fn leave_frame<const W: u32>(cpu: &mut Cpu<World>, _op: &Op, rest: &[Op]) -> Went {
    let frame = cut::<W>(cpu.state.gpr[RBP]);
    let Some(value) = load::<W>(cpu, frame) else {
        return slow(rest);
    };
    cpu.state.gpr[RSP] = cut::<W>(frame.wrapping_add(u64::from(W / 8)));
    cpu.state.gpr[RBP] = value;
    follow(cpu, rest)
}

/// `cli` at CPL 0, where nothing forbids it.
pub(super) fn shut_interrupts_out(cpu: &mut Cpu<World>, _op: &Op, rest: &[Op]) -> Went {
    if cpu.state.cpl() != 0 {
        return slow(rest);
    }
    cpu.state.rflags &= !flags::IF;
    follow(cpu, rest)
}

/// What is pushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pushed {
    Register,
    Immediate,
    Memory,
    Flags,
}

pub(super) fn push(long: bool, what: Pushed) -> Run {
    match (long, what) {
        (true, Pushed::Register) => push_register::<64>,
        (false, Pushed::Register) => push_register::<32>,
        (true, Pushed::Immediate) => push_immediate::<64>,
        (false, Pushed::Immediate) => push_immediate::<32>,
        (true, Pushed::Memory) => push_memory::<64>,
        (false, Pushed::Memory) => push_memory::<32>,
        (true, Pushed::Flags) => push_flags::<64>,
        (false, Pushed::Flags) => push_flags::<32>,
    }
}

pub(super) fn pop(long: bool) -> Run {
    if long { pop_register::<64> } else { pop_register::<32> }
}

pub(super) fn leave(long: bool) -> Run {
    if long { leave_frame::<64> } else { leave_frame::<32> }
}
