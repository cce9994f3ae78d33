//! `mov movzx movsx lea xchg cmovcc setcc`, sign extensions of the accumulator, and what does nothing.

use super::alu::Form;
use super::flags::extend;
use super::memory::{address, load, offset, store};
use super::{Op, Run, Went, by_address, by_condition, by_width, condition, cut, follow, register, set_register, slow};
use crate::emulate::Cpu;
use crate::emulate::state::{RAX, RDX};
use crate::emulate::width::Width;
use crate::soft::world::World;

fn registers<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let value = register(cpu, op.from);
    set_register::<W>(cpu, op.to, value);
    follow(cpu, rest)
}

fn register_immediate<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    set_register::<W>(cpu, op.to, op.immediate());
    follow(cpu, rest)
}

fn register_wide(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    set_register::<64>(cpu, op.to, op.wide);
    follow(cpu, rest)
}

fn register_memory<const S: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let Some(value) = load::<W>(cpu, address::<S>(cpu, op)) else {
        return slow(rest);
    };
    set_register::<W>(cpu, op.to, value);
    follow(cpu, rest)
}

fn memory_register<const S: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let value = register(cpu, op.from);
    if !store::<W>(cpu, address::<S>(cpu, op), value) {
        return slow(rest);
    }
    follow(cpu, rest)
}

fn memory_immediate<const S: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !store::<W>(cpu, address::<S>(cpu, op), op.immediate()) {
        return slow(rest);
    }
    follow(cpu, rest)
}

/// The function for a `mov` between registers and memory.
pub(super) fn mov(op: &Op, form: Form, width: Width) -> Run {
    match form {
        Form::Registers => by_width!(width, registers),
        Form::RegisterImmediate => by_width!(width, register_immediate),
        Form::RegisterMemory => by_address!(op, width, register_memory),
        Form::MemoryRegister => by_address!(op, width, memory_register),
        Form::MemoryImmediate => by_address!(op, width, memory_immediate),
    }
}

/// The function for a `mov` of 64 bits that the instruction has in it.
pub(super) fn mov_wide() -> Run {
    register_wide
}

/// `xchg` of registers.
fn exchange<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let (a, b) = (register(cpu, op.to), register(cpu, op.from));
    set_register::<W>(cpu, op.to, b);
    set_register::<W>(cpu, op.from, a);
    follow(cpu, rest)
}

/// The function for `xchg` of two registers.
pub(super) fn xchg(width: Width) -> Run {
    by_width!(width, exchange)
}

/// A wider register from `F` bits of another, with or without sign.
fn widen<const SIGNED: bool, const F: u32, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let value = cut::<F>(register(cpu, op.from));
    let value = if SIGNED { extend::<F>(value) } else { value };
    set_register::<W>(cpu, op.to, value);
    follow(cpu, rest)
}

/// The same from bits 8 to 15.
fn widen_high<const SIGNED: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let value = cut::<8>(register(cpu, op.from) >> 8);
    let value = if SIGNED { extend::<8>(value) } else { value };
    set_register::<W>(cpu, op.to, value);
    follow(cpu, rest)
}

/// The same from memory.
fn widen_memory<const SIGNED: bool, const F: u32, const S: bool, const W: u32>(
    cpu: &mut Cpu<World>,
    op: &Op,
    rest: &[Op],
) -> Went {
    let Some(value) = load::<F>(cpu, address::<S>(cpu, op)) else {
        return slow(rest);
    };
    let value = if SIGNED { extend::<F>(value) } else { value };
    set_register::<W>(cpu, op.to, value);
    follow(cpu, rest)
}

/// The function for `movzx`, `movsx` or `movsxd`.
pub(super) fn widening(op: &Op, signed: bool, memory: bool, from: Width, to: Width) -> Run {
    if signed {
        widening_from::<true>(op, memory, from, to)
    } else {
        widening_from::<false>(op, memory, from, to)
    }
}

fn widening_from<const SIGNED: bool>(op: &Op, memory: bool, from: Width, to: Width) -> Run {
    match (memory, from) {
        (false, Width::B1) => by_width!(to, widen, SIGNED, 8),
        (false, Width::B2) => by_width!(to, widen, SIGNED, 16),
        (false, _) => by_width!(to, widen, SIGNED, 32),
        (true, Width::B1) => by_address!(op, to, widen_memory, SIGNED, 8),
        (true, Width::B2) => by_address!(op, to, widen_memory, SIGNED, 16),
        (true, _) => by_address!(op, to, widen_memory, SIGNED, 32),
    }
}

/// The function for `movzx` or `movsx` of AH, CH, DH or BH.
pub(super) fn widening_high(signed: bool, to: Width) -> Run {
    if signed {
        by_width!(to, widen_high, true)
    } else {
        by_width!(to, widen_high, false)
    }
}

fn load_address<const S: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let value = offset::<S>(cpu, op);
    set_register::<W>(cpu, op.to, value);
    follow(cpu, rest)
}

/// The function for `lea`.
pub(super) fn lea(op: &Op, width: Width) -> Run {
    by_address!(op, width, load_address)
}

/// `cmovcc`. A 32-bit register always loses its upper half.
#[inline(always)]
fn move_if<const C: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op], new: u64) -> Went {
    let value = if condition::<C>(cpu) { new } else { register(cpu, op.to) };
    set_register::<W>(cpu, op.to, value);
    follow(cpu, rest)
}

/// Memory is read in any case.
#[inline(always)]
fn load_if<const C: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let Some(new) = load::<W>(cpu, address::<false>(cpu, op)) else {
        return slow(rest);
    };
    move_if::<C, W>(cpu, op, rest, new)
}

fn move_if_32<const C: u8>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let new = register(cpu, op.from);
    move_if::<C, 32>(cpu, op, rest, new)
}

fn move_if_64<const C: u8>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let new = register(cpu, op.from);
    move_if::<C, 64>(cpu, op, rest, new)
}

fn load_if_32<const C: u8>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    load_if::<C, 32>(cpu, op, rest)
}

fn load_if_64<const C: u8>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    load_if::<C, 64>(cpu, op, rest)
}

/// The function for `cmovcc`, if there is one for this width.
pub(super) fn conditional(code: u8, memory: bool, width: Width) -> Option<Run> {
    Some(match (memory, width) {
        (false, Width::B4) => by_condition!(move_if_32, code),
        (false, Width::B8) => by_condition!(move_if_64, code),
        (true, Width::B4) => by_condition!(load_if_32, code),
        (true, Width::B8) => by_condition!(load_if_64, code),
        _ => return None,
    })
}

fn set_if<const C: u8>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let value = u64::from(condition::<C>(cpu));
    set_register::<8>(cpu, op.to, value);
    follow(cpu, rest)
}

fn store_if<const C: u8>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let value = u64::from(condition::<C>(cpu));
    if !store::<8>(cpu, address::<false>(cpu, op), value) {
        return slow(rest);
    }
    follow(cpu, rest)
}

/// The function for `setcc`.
pub(super) fn set_by_condition(code: u8, memory: bool) -> Run {
    if memory {
        by_condition!(store_if, code)
    } else {
        by_condition!(set_if, code)
    }
}

/// `cwde`.
pub(super) fn extend_to_32(cpu: &mut Cpu<World>, _op: &Op, rest: &[Op]) -> Went {
    let value = extend::<16>(cpu.state.gpr[RAX]);
    set_register::<32>(cpu, RAX as u8, value);
    follow(cpu, rest)
}

/// `cdqe`.
pub(super) fn extend_to_64(cpu: &mut Cpu<World>, _op: &Op, rest: &[Op]) -> Went {
    let value = extend::<32>(cpu.state.gpr[RAX]);
    set_register::<64>(cpu, RAX as u8, value);
    follow(cpu, rest)
}

/// `cdq`.
pub(super) fn spread_32(cpu: &mut Cpu<World>, _op: &Op, rest: &[Op]) -> Went {
    let value = (extend::<32>(cpu.state.gpr[RAX]) as i64 >> 63) as u64;
    set_register::<32>(cpu, RDX as u8, value);
    follow(cpu, rest)
}

/// `cqo`.
pub(super) fn spread_64(cpu: &mut Cpu<World>, _op: &Op, rest: &[Op]) -> Went {
    let value = (cpu.state.gpr[RAX] as i64 >> 63) as u64;
    set_register::<64>(cpu, RDX as u8, value);
    follow(cpu, rest)
}

/// `nop` and its relatives.
pub(super) fn nothing(cpu: &mut Cpu<World>, _op: &Op, rest: &[Op]) -> Went {
    follow(cpu, rest)
}
