//! Memory operands: the address, and what the TLB knows of it.

use super::{NONE, Op, register};
use crate::emulate::Cpu;
use crate::soft::world::World;

/// How far the index is shifted: the low bits of [`Op`]'s shape.
pub(super) const SCALE: u8 = 3;
/// Only 32 bits of the address count.
pub(super) const NARROW: u8 = 1 << 2;
/// A segment's base is added.
pub(super) const FS: u8 = 1 << 3;
pub(super) const GS: u8 = 1 << 4;

impl Op {
    /// Whether the address is a register and a displacement and no more.
    pub(super) fn has_simple_address(&self) -> bool {
        self.base != NONE && self.index == NONE && self.shape & !SCALE == 0
    }
}

/// The linear address of a memory operand. The core checks it, if the TLB does not know it.
#[inline(always)]
pub(super) fn address<const SIMPLE: bool>(cpu: &Cpu<World>, op: &Op) -> u64 {
    let offset = offset::<SIMPLE>(cpu, op);
    if SIMPLE || op.shape & (FS | GS) == 0 {
        return offset;
    }
    let sys = &cpu.state.sys;
    let segment = if op.shape & FS != 0 { &sys.fs } else { &sys.gs };
    segment.base.wrapping_add(offset)
}

/// The offset in its segment.
#[inline(always)]
pub(super) fn offset<const SIMPLE: bool>(cpu: &Cpu<World>, op: &Op) -> u64 {
    let mut offset = op.wide;
    if SIMPLE {
        return offset.wrapping_add(register(cpu, op.base));
    }
    if op.base != NONE {
        offset = offset.wrapping_add(register(cpu, op.base));
    }
    if op.index != NONE {
        offset = offset.wrapping_add(register(cpu, op.index) << (op.shape & SCALE));
    }
    if op.shape & NARROW != 0 {
        offset & 0xffff_ffff
    } else {
        offset
    }
}

/// The `W` bits at `at`, if the TLB knows where they are.
#[inline(always)]
pub(super) fn load<const W: u32>(cpu: &Cpu<World>, at: u64) -> Option<u64> {
    cpu.env.tlb.load::<W>(at)
}

/// Writes `W` bits, if the TLB knows where to. Says whether it does.
#[inline(always)]
pub(super) fn store<const W: u32>(cpu: &Cpu<World>, at: u64, value: u64) -> bool {
    cpu.env.tlb.store::<W>(at, value)
}

/// The `W` bits at `at`, if the TLB knows where they are and that they may be written.
#[inline(always)]
pub(super) fn load_to_write<const W: u32>(cpu: &Cpu<World>, at: u64) -> Option<u64> {
    cpu.env.tlb.load_to_write::<W>(at)
}
