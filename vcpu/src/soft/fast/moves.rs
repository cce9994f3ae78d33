//! `mov movzx movsx lea cmovcc setcc bswap` and sign extensions of the accumulator.

use super::flags::extend;
use super::memory::{address, load, offset, store};
use super::{Go, Op, Run, by_condition, by_width, condition, cut, register, set_register};
use crate::emulate::Cpu;
use crate::emulate::state::{RAX, RDX};
use crate::emulate::width::Width;
use crate::soft::world::World;

fn registers<const W: u32>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    let value = register(cpu, op.from);
    set_register::<W>(cpu, op.to, value);
    Go::Next
}

fn register_immediate<const W: u32>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    set_register::<W>(cpu, op.to, op.immediate);
    Go::Next
}

fn register_memory<const W: u32>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    let Some(value) = load::<W>(cpu, address(cpu, &op.memory)) else {
        return Go::Slow;
    };
    set_register::<W>(cpu, op.to, value);
    Go::Next
}

fn memory_register<const W: u32>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    let value = register(cpu, op.from);
    if store::<W>(cpu, address(cpu, &op.memory), value) {
        Go::Next
    } else {
        Go::Slow
    }
}

fn memory_immediate<const W: u32>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    if store::<W>(cpu, address(cpu, &op.memory), op.immediate) {
        Go::Next
    } else {
        Go::Slow
    }
}

/// The function for a `mov` between registers and memory.
pub(super) fn mov(form: super::alu::Form, width: Width) -> Run {
    use super::alu::Form;
    match form {
        Form::Registers => by_width!(width, registers),
        Form::RegisterImmediate => by_width!(width, register_immediate),
        Form::RegisterMemory => by_width!(width, register_memory),
        Form::MemoryRegister => by_width!(width, memory_register),
        Form::MemoryImmediate => by_width!(width, memory_immediate),
    }
}

/// A wider register from `F` bits of a register or of memory, with or without sign.
fn widen<const SIGNED: bool, const MEMORY: bool, const F: u32, const W: u32>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    let value = if MEMORY {
        let Some(value) = load::<F>(cpu, address(cpu, &op.memory)) else {
            return Go::Slow;
        };
        value
    } else {
        cut::<F>(register(cpu, op.from))
    };
    let value = if SIGNED { extend::<F>(value) } else { value };
    set_register::<W>(cpu, op.to, value);
    Go::Next
}

/// The function for `movzx`, `movsx` or `movsxd`.
pub(super) fn widening(signed: bool, memory: bool, from: Width, to: Width) -> Run {
    match (signed, memory) {
        (false, false) => widening_from::<false, false>(from, to),
        (false, true) => widening_from::<false, true>(from, to),
        (true, false) => widening_from::<true, false>(from, to),
        (true, true) => widening_from::<true, true>(from, to),
    }
}

fn widening_from<const SIGNED: bool, const MEMORY: bool>(from: Width, to: Width) -> Run {
    match from {
        Width::B1 => by_width!(to, widen, SIGNED, MEMORY, 8),
        Width::B2 => by_width!(to, widen, SIGNED, MEMORY, 16),
        _ => by_width!(to, widen, SIGNED, MEMORY, 32),
    }
}

fn load_address<const W: u32>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    let value = offset(cpu, &op.memory);
    set_register::<W>(cpu, op.to, value);
    Go::Next
}

/// The function for `lea`.
pub(super) fn lea(width: Width) -> Run {
    by_width!(width, load_address)
}

fn move_if<const C: u8, const MEMORY: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    // Memory is read in any case, and a 32-bit register always loses its upper half.
    let new = if MEMORY {
        let Some(value) = load::<W>(cpu, address(cpu, &op.memory)) else {
            return Go::Slow;
        };
        value
    } else {
        register(cpu, op.from)
    };
    let value = if condition::<C>(cpu) { new } else { register(cpu, op.to) };
    set_register::<W>(cpu, op.to, value);
    Go::Next
}

fn move_if_32<const C: u8>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    move_if::<C, false, 32>(cpu, op)
}

fn move_if_64<const C: u8>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    move_if::<C, false, 64>(cpu, op)
}

fn load_if_32<const C: u8>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    move_if::<C, true, 32>(cpu, op)
}

fn load_if_64<const C: u8>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    move_if::<C, true, 64>(cpu, op)
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

fn set_if<const C: u8>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    let value = u64::from(condition::<C>(cpu));
    set_register::<8>(cpu, op.to, value);
    Go::Next
}

/// The function for `setcc` of a register.
pub(super) fn set_by_condition(code: u8) -> Run {
    by_condition!(set_if, code)
}

/// `cwde`.
pub(super) fn extend_to_32(cpu: &mut Cpu<World>, _op: &Op) -> Go {
    let value = extend::<16>(cpu.state.gpr[RAX]);
    set_register::<32>(cpu, RAX as u8, value);
    Go::Next
}

/// `cdqe`.
pub(super) fn extend_to_64(cpu: &mut Cpu<World>, _op: &Op) -> Go {
    let value = extend::<32>(cpu.state.gpr[RAX]);
    set_register::<64>(cpu, RAX as u8, value);
    Go::Next
}

/// `cdq`.
pub(super) fn spread_32(cpu: &mut Cpu<World>, _op: &Op) -> Go {
    let value = (extend::<32>(cpu.state.gpr[RAX]) as i64 >> 63) as u64;
    set_register::<32>(cpu, RDX as u8, value);
    Go::Next
}

/// `cqo`.
pub(super) fn spread_64(cpu: &mut Cpu<World>, _op: &Op) -> Go {
    let value = (cpu.state.gpr[RAX] as i64 >> 63) as u64;
    set_register::<64>(cpu, RDX as u8, value);
    Go::Next
}

/// `nop` and its relatives.
pub(super) fn nothing(_cpu: &mut Cpu<World>, _op: &Op) -> Go {
    Go::Next
}
