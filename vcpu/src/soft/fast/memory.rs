//! Memory operands: the address, and what the TLB knows of it.

use super::{Base, Mem, NONE, register};
use crate::emulate::Cpu;
use crate::soft::world::World;

/// The linear address of a memory operand. The core checks it, if the TLB does not know it.
#[inline(always)]
pub(super) fn address(cpu: &Cpu<World>, memory: &Mem) -> u64 {
    let offset = offset(cpu, memory);
    match memory.segment {
        Base::Zero => offset,
        Base::Fs => cpu.state.sys.fs.base.wrapping_add(offset),
        Base::Gs => cpu.state.sys.gs.base.wrapping_add(offset),
    }
}

/// The offset in its segment.
#[inline(always)]
pub(super) fn offset(cpu: &Cpu<World>, memory: &Mem) -> u64 {
    let mut offset = memory.displacement;
    if memory.base != NONE {
        offset = offset.wrapping_add(register(cpu, memory.base));
    }
    if memory.index != NONE {
        offset = offset.wrapping_add(register(cpu, memory.index) << (memory.scale & 3));
    }
    offset & memory.mask
}

/// The `W` bits at `at`, if the TLB knows where they are.
#[inline(always)]
pub(super) fn load<const W: u32>(cpu: &Cpu<World>, at: u64) -> Option<u64> {
    cpu.env.tlb.load::<W>(cpu.env.rights, at)
}

/// Writes `W` bits, if the TLB knows where to. Says whether it does.
#[inline(always)]
pub(super) fn store<const W: u32>(cpu: &Cpu<World>, at: u64, value: u64) -> bool {
    cpu.env.tlb.store::<W>(cpu.env.rights, at, value)
}

/// The `W` bits at `at`, if the TLB knows where they are and that they may be written.
#[inline(always)]
pub(super) fn load_to_write<const W: u32>(cpu: &Cpu<World>, at: u64) -> Option<u64> {
    cpu.env.tlb.load_to_write::<W>(cpu.env.rights, at)
}
