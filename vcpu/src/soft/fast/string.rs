//! Strings upwards: single `lods scas cmps`; `movs` and `stos`, with `rep` in bulk: as many elements as the instruction
//! core does in a step, if all their pages are memory.

use super::memory::{NARROW, load};
use super::{Go, Op, Run, Went, alu, by_width, cut, follow, set_register, slow};
use crate::emulate::flags::DF;
use crate::emulate::state::{RAX, RCX, RDI, RSI};
use crate::emulate::string::BURST;
use crate::emulate::width::Width;
use crate::emulate::{AccessKind, Cpu, Memory};
use crate::soft::world::World;
use umbra_memslots::{Gva, PAGE_SIZE};

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
    (count > 0 && !cpu.state.flag(DF)).then_some((count, count * u64::from(W / 8)))
}

/// Whether `bytes` bytes begin at `at` and end below the address space's end.
#[inline(always)]
fn is_plain(op: &Op, at: u64, bytes: u64) -> bool {
    mask(op) - at >= bytes
}

/// Has the TLB know the pages of an access, as far as they are memory and may be accessed so. Says whether they are; if not,
/// the core finds out where it ends, and has the pages before that accessed as well.
#[cold]
#[inline(never)]
fn look_up(cpu: &mut Cpu<World>, kind: AccessKind, at: u64, bytes: u64) -> bool {
    let access = cpu.access(kind);
    let end = at + bytes;
    let mut at = at;
    while at < end {
        if cpu.env.probe(Gva::new(at), 1, access).is_err() {
            return false;
        }
        at = (at & !(PAGE_SIZE - 1)) + PAGE_SIZE;
    }
    true
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
    let Some((count, bytes)) = extent::<REP, W>(cpu, op).filter(|(_, bytes)| is_plain(op, to, *bytes)) else {
        return slow(rest);
    };
    let value = cut::<W>(cpu.state.gpr[RAX]);
    let done = |cpu: &Cpu<World>| {
        let tlb = &cpu.env.tlb;
        if to & u64::from(W / 8 - 1) == 0 {
            tlb.fill_range::<W>(to, value, bytes)
        } else {
            // Elements lie across pages; if all their bytes are alike, that makes no difference.
            value == cut::<W>(cut::<8>(value) * 0x0101_0101_0101_0101)
                && tlb.fill_range::<8>(to, cut::<8>(value), bytes)
        }
    };
    if !(done(cpu) || look_up(cpu, AccessKind::Write, to, bytes) && done(cpu)) {
        return slow(rest);
    }
    cpu.state.gpr[RDI] = to + bytes;
    advance::<REP>(cpu, op, rest, count)
}

fn copy<const REP: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let from = cpu.state.gpr[RSI] & mask(op);
    let to = cpu.state.gpr[RDI] & mask(op);
    let plain = |bytes| is_plain(op, from, bytes) && is_plain(op, to, bytes);
    let Some((count, bytes)) = extent::<REP, W>(cpu, op).filter(|(_, bytes)| plain(*bytes)) else {
        return slow(rest);
    };
    let done = |cpu: &Cpu<World>| cpu.env.tlb.copy_range::<W>(from, to, bytes);
    let known = |cpu: &mut Cpu<World>| {
        look_up(cpu, AccessKind::Read, from, bytes) && look_up(cpu, AccessKind::Write, to, bytes)
    };
    if !(done(cpu) || known(cpu) && done(cpu)) {
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

/// The element at `index`, a register's number, after which that register is moved on; `None` if it is not that simple.
#[inline(always)]
fn element<const W: u32>(cpu: &Cpu<World>, op: &Op, index: usize) -> Option<(u64, u64)> {
    let at = cpu.state.gpr[index] & mask(op);
    let plain = !cpu.state.flag(DF) && is_plain(op, at, u64::from(W / 8));
    let value = plain.then(|| load::<W>(cpu, at))??;
    Some((value, at + u64::from(W / 8)))
}

fn load_one<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let Some((value, next)) = element::<W>(cpu, op, RSI) else {
        return slow(rest);
    };
    cpu.state.gpr[RSI] = next;
    set_register::<W>(cpu, RAX as u8, value);
    follow(cpu, rest)
}

fn scan_one<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let Some((b, next)) = element::<W>(cpu, op, RDI) else {
        return slow(rest);
    };
    cpu.state.gpr[RDI] = next;
    let a = cut::<W>(cpu.state.gpr[RAX]);
    alu::compare::<W>(cpu, a, b);
    follow(cpu, rest)
}

fn compare_one<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let (Some((a, source)), Some((b, destination))) = (element::<W>(cpu, op, RSI), element::<W>(cpu, op, RDI)) else {
        return slow(rest);
    };
    (cpu.state.gpr[RSI], cpu.state.gpr[RDI]) = (source, destination);
    alu::compare::<W>(cpu, a, b);
    follow(cpu, rest)
}

/// The function for a single `lods`.
pub(super) fn lods(width: Width) -> Run {
    by_width!(width, load_one)
}

/// The function for a single `scas`.
pub(super) fn scas(width: Width) -> Run {
    by_width!(width, scan_one)
}

/// The function for a single `cmps`.
pub(super) fn cmps(width: Width) -> Run {
    by_width!(width, compare_one)
}
