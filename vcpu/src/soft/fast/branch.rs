//! `jmp jcc call ret`, within the code segment and of the code's own width.

use super::memory::{address, load};
use super::stack::{push_value, release, top};
use super::{Op, Run, Went, by_condition, condition, cut, follow, jumped, register, slow};
use crate::emulate::Cpu;
use crate::soft::world::World;

/// Goes on at `target`, if there can be code: everywhere in a flat segment, at canonical addresses in 64-bit mode.
#[inline(always)]
fn reachable<const W: u32>(cpu: &Cpu<World>, target: u64) -> bool {
    W == 32 || cpu.state.canonical(target)
}

/// RIP of the next instruction. Meanwhile RIP itself is still that of the block.
#[inline(always)]
pub(super) fn next(cpu: &Cpu<World>, op: &Op) -> u64 {
    cpu.state.rip.wrapping_add(op.end())
}

fn jump_to(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    cpu.state.rip = op.wide;
    jumped(op, rest)
}

/// What is behind a branch that is not taken is part of the block.
fn jump_if<const C: u8>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let holds = condition::<C>(cpu);
    jump_when(cpu, op, rest, holds)
}

#[inline(always)]
fn jump_when(cpu: &mut Cpu<World>, op: &Op, rest: &[Op], holds: bool) -> Went {
    if holds {
        cpu.state.rip = op.wide;
        return jumped(op, rest);
    }
    follow(cpu, rest)
}

/// Does the conditional jump that `rest` begins with, whose condition `holds` or doesn't.
#[inline(always)]
pub(super) fn decide(cpu: &mut Cpu<World>, rest: &[Op], holds: bool) -> Went {
    match rest.split_first() {
        Some((op, rest)) => jump_when(cpu, op, rest, holds),
        None => follow(cpu, rest),
    }
}

/// The target in a register or in memory.
#[inline(always)]
fn target<const MEMORY: bool, const W: u32>(cpu: &Cpu<World>, op: &Op) -> Option<u64> {
    let target = if MEMORY {
        load::<W>(cpu, address::<false>(cpu, op))?
    } else {
        cut::<W>(register(cpu, op.from))
    };
    reachable::<W>(cpu, target).then_some(target)
}

fn jump_indirect<const MEMORY: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let Some(target) = target::<MEMORY, W>(cpu, op) else {
        return slow(rest);
    };
    cpu.state.rip = target;
    jumped(op, rest)
}

fn call_to<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !push_value::<W>(cpu, next(cpu, op)) {
        return slow(rest);
    }
    cpu.state.rip = op.wide;
    jumped(op, rest)
}

fn call_indirect<const MEMORY: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let Some(target) = target::<MEMORY, W>(cpu, op) else {
        return slow(rest);
    };
    if !push_value::<W>(cpu, next(cpu, op)) {
        return slow(rest);
    }
    cpu.state.rip = target;
    jumped(op, rest)
}

/// `wide` is what goes off the stack besides the return address.
fn return_near<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let Some(target) = top::<W>(cpu).filter(|target| reachable::<W>(cpu, *target)) else {
        return slow(rest);
    };
    release::<W>(cpu, u64::from(W / 8) + op.wide);
    cpu.state.rip = target;
    jumped(op, rest)
}

/// `jmp` to a fixed place.
pub(super) fn jump() -> Run {
    jump_to
}

/// `jcc`.
pub(super) fn conditional(code: u8) -> Run {
    by_condition!(jump_if, code)
}

/// `call` of a fixed place.
pub(super) fn call(long: bool) -> Run {
    if long { call_to::<64> } else { call_to::<32> }
}

/// `ret`.
pub(super) fn ret(long: bool) -> Run {
    if long { return_near::<64> } else { return_near::<32> }
}

/// `jmp` or `call` to where a register or memory says.
pub(super) fn indirect(call: bool, memory: bool, long: bool) -> Run {
    match (call, memory, long) {
        (false, false, false) => jump_indirect::<false, 32>,
        (false, false, true) => jump_indirect::<false, 64>,
        (false, true, false) => jump_indirect::<true, 32>,
        (false, true, true) => jump_indirect::<true, 64>,
        (true, false, false) => call_indirect::<false, 32>,
        (true, false, true) => call_indirect::<false, 64>,
        (true, true, false) => call_indirect::<true, 32>,
        (true, true, true) => call_indirect::<true, 64>,
    }
}
