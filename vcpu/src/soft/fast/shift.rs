//! `shl shr sar` of a register, and `imul` into one.

use super::memory::{address, load};
use super::{Go, Op, Run, by_width, cut, flags::extend, register, set_register, settle_flags};
use crate::emulate::Cpu;
use crate::emulate::flags::{CF, OF, when};
use crate::emulate::width::Width;
use crate::soft::world::World;

/// Numbered as in their encoding.
pub(super) const SHL: u8 = 4;
pub(super) const SHR: u8 = 5;
pub(super) const SAR: u8 = 7;
/// RCX.
const COUNTER: u8 = 1;

fn by_immediate<const O: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    shift::<O, W>(cpu, op, op.immediate as u32)
}

fn by_counter<const O: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    let count = register(cpu, COUNTER) as u32 & if W == 64 { 63 } else { 31 };
    if count == 0 {
        // No flag changes; a 32-bit register loses its upper half.
        let value = register(cpu, op.to);
        set_register::<W>(cpu, op.to, value);
        return Go::Next;
    }
    shift::<O, W>(cpu, op, count)
}

/// A shift by 1..=63.
#[inline(always)]
fn shift<const O: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op, count: u32) -> Go {
    let a = cut::<W>(register(cpu, op.to));
    let sign = 1 << (W - 1);
    let (result, carry, overflow) = match O {
        SHL => {
            let wide = u128::from(a) << count;
            let (result, carry) = (cut::<W>(wide as u64), wide >> W & 1 != 0);
            (result, carry, (result & sign != 0) != carry)
        }
        SHR => {
            let result = a >> count;
            (result, a >> (count - 1) & 1 != 0, (result ^ result << 1) & sign != 0)
        }
        _ => {
            let signed = extend::<W>(a) as i64;
            (
                cut::<W>((signed >> count) as u64),
                signed >> (count - 1) & 1 != 0,
                false,
            )
        }
    };
    cpu.env.lazy.set_with::<W>(result, carry, overflow);
    set_register::<W>(cpu, op.to, result);
    Go::Next
}

/// The function for a shift of a register by an immediate other than 0, or by CL.
pub(super) fn shifts(operation: u8, counter: bool, width: Width) -> Run {
    match operation {
        SHL => by_count::<SHL>(counter, width),
        SHR => by_count::<SHR>(counter, width),
        _ => by_count::<SAR>(counter, width),
    }
}

fn by_count<const O: u8>(counter: bool, width: Width) -> Run {
    if counter {
        by_width!(width, by_counter, O)
    } else {
        by_width!(width, by_immediate, O)
    }
}

/// Where the factors of `imul` are.
pub(super) const REGISTERS: u8 = 0;
pub(super) const REGISTER_MEMORY: u8 = 1;
pub(super) const REGISTER_IMMEDIATE: u8 = 2;
pub(super) const MEMORY_IMMEDIATE: u8 = 3;

fn multiply<const F: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op) -> Go {
    let in_memory = if F == REGISTER_MEMORY || F == MEMORY_IMMEDIATE {
        let Some(value) = load::<W>(cpu, address(cpu, &op.memory)) else {
            return Go::Slow;
        };
        value
    } else {
        0
    };
    let (a, b) = match F {
        REGISTERS => (register(cpu, op.to), register(cpu, op.from)),
        REGISTER_MEMORY => (register(cpu, op.to), in_memory),
        REGISTER_IMMEDIATE => (register(cpu, op.from), op.immediate),
        _ => (in_memory, op.immediate),
    };
    let (a, b) = (extend::<W>(a) as i64, extend::<W>(b) as i64);
    let (product, spills) = a.overflowing_mul(b);
    let spills = spills || extend::<W>(product as u64) as i64 != product;
    // The other flags stay as they were.
    settle_flags(cpu);
    cpu.state.set_flags(CF | OF, when(spills, CF | OF));
    set_register::<W>(cpu, op.to, product as u64);
    Go::Next
}

/// The function for an `imul` of two or three operands, 2 bytes wide at least.
pub(super) fn multiplications(form: u8, width: Width) -> Run {
    match form {
        REGISTERS => by_width!(width, multiply, REGISTERS),
        REGISTER_MEMORY => by_width!(width, multiply, REGISTER_MEMORY),
        REGISTER_IMMEDIATE => by_width!(width, multiply, REGISTER_IMMEDIATE),
        _ => by_width!(width, multiply, MEMORY_IMMEDIATE),
    }
}
