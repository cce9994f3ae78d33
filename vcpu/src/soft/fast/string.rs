//! `movs` and `stos` upwards, with `rep` in bulk: as many elements as the instruction core does in a step, if the TLB knows
//! all their pages.

use super::memory::NARROW;
use super::{Go, Op, Run, Went, by_width, cut, follow, slow};
use crate::emulate::state::{RAX, RCX, RDI, RSI};
use crate::emulate::string::BURST;
use crate::emulate::width::Width;
use crate::emulate::{Cpu, flags};
use crate::soft::world::World;

/// The bits of an address that count.
#[inline(always)]
fn mask(op: &Op) -> u64 {
    if op.shape & NARROW != 0 { 0xffff_ffff } else { u64::MAX }
}

/// How many elements a step does, and bytes they are; `None` if that is not simple.
#[inline(always)]
fn extent<const REP: bool, const W: u32>(cpu: &Cpu<World>, op: &Op) -> Option<(u64, u64)> {
    let count = if REP { cpu.state.gpr[RCX] & mask(op) } else { 1 };
    let count = count.min(BURST as u64);
    (!cpu.state.flag(flags::DF)).then_some((count, count * u64::from(W / 8)))
}

/// Whether `bytes` bytes of whole elements begin at `at` and end below the address space's end.
#[inline(always)]
fn is_plain<const W: u32>(op: &Op, at: u64, bytes: u64) -> bool {
    at & u64::from(W / 8 - 1) == 0 && mask(op) - at >= bytes
}

/// The elements are done.
#[inline(always)]
fn advance<const REP: bool>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op], count: u64) -> Went {
    if REP {
        let left = (cpu.state.gpr[RCX] & mask(op)) - count;
        cpu.state.gpr[RCX] = left;
        if left != 0 {
            return Went::new(Go::Repeat, rest.len());
        }
    }
    follow(cpu, rest)
}

fn fill<const REP: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let to = cpu.state.gpr[RDI] & mask(op);
    let Some((count, bytes)) =
        extent::<REP, W>(cpu, op).filter(|(count, bytes)| *count > 0 && is_plain::<W>(op, to, *bytes))
    else {
        return slow(rest);
    };
    let value = cut::<W>(cpu.state.gpr[RAX]);
    if !cpu.env.tlb.fill_range::<W>(to, value, bytes) {
        return slow(rest);
    }
    cpu.state.gpr[RDI] = to + bytes;
    advance::<REP>(cpu, op, rest, count)
}

fn copy<const REP: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let from = cpu.state.gpr[RSI] & mask(op);
    let to = cpu.state.gpr[RDI] & mask(op);
    let plain = |bytes| is_plain::<W>(op, from, bytes) && is_plain::<W>(op, to, bytes);
    let Some((count, bytes)) = extent::<REP, W>(cpu, op).filter(|(count, bytes)| *count > 0 && plain(*bytes)) else {
        return slow(rest);
    };
    if !cpu.env.tlb.copy_range::<W>(from, to, bytes) {
        return slow(rest);
    }
    cpu.state.gpr[RSI] = from + bytes;
    cpu.state.gpr[RDI] = to + bytes;
    advance::<REP>(cpu, op, rest, count)
}

/// The function for `stos`.
pub(super) fn stos(repeated: bool, width: Width) -> Run {
    if repeated {
        by_width!(width, fill, true)
    } else {
        by_width!(width, fill, false)
    }
}

/// The function for `movs`.
pub(super) fn movs(repeated: bool, width: Width) -> Run {
    if repeated {
        by_width!(width, copy, true)
    } else {
        by_width!(width, copy, false)
    }
}
