//! `imul mul div`.

use super::flags::extend;
use super::memory::{address, load};
use super::{Op, Run, Went, by_width, cut, follow, register, set_carry_and_overflow, set_register, slow};
use crate::emulate::Cpu;
use crate::emulate::state::{RAX, RDX};
use crate::emulate::width::Width;
use crate::soft::world::World;

/// Where the factors of an `imul` of two or three operands are.
pub(super) const REGISTERS: u8 = 0;
pub(super) const REGISTER_MEMORY: u8 = 1;
pub(super) const REGISTER_IMMEDIATE: u8 = 2;
pub(super) const MEMORY_IMMEDIATE: u8 = 3;

fn multiply<const F: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let in_memory = if F == REGISTER_MEMORY || F == MEMORY_IMMEDIATE {
        let Some(value) = load::<W>(cpu, address::<false>(cpu, op)) else {
            return slow(rest);
        };
        value
    } else {
        0
    };
    let (a, b) = match F {
        REGISTERS => (register(cpu, op.to), register(cpu, op.from)),
        REGISTER_MEMORY => (register(cpu, op.to), in_memory),
        REGISTER_IMMEDIATE => (register(cpu, op.from), op.immediate()),
        _ => (in_memory, op.immediate()),
    };
    let (a, b) = (extend::<W>(a) as i64, extend::<W>(b) as i64);
    let (product, spills) = a.overflowing_mul(b);
    let spills = spills || extend::<W>(product as u64) as i64 != product;
    set_carry_and_overflow(cpu, spills, spills);
    set_register::<W>(cpu, op.to, product as u64);
    follow(cpu, rest)
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

/// The operand of an instruction that takes the accumulator for the other.
#[inline(always)]
fn operand<const MEMORY: bool, const W: u32>(cpu: &Cpu<World>, op: &Op) -> Option<u64> {
    if MEMORY {
        load::<W>(cpu, address::<false>(cpu, op))
    } else {
        Some(cut::<W>(register(cpu, op.from)))
    }
}

/// `mul` and `imul` of one operand: the product goes to RDX and RAX.
fn multiply_wide<const SIGNED: bool, const MEMORY: bool, const W: u32>(
    cpu: &mut Cpu<World>,
    op: &Op,
    rest: &[Op],
) -> Went {
    let Some(b) = operand::<MEMORY, W>(cpu, op) else {
        return slow(rest);
    };
    let a = cpu.state.gpr[RAX];
    let (low, high, spills) = if SIGNED {
        let product = i128::from(extend::<W>(a) as i64) * i128::from(extend::<W>(b) as i64);
        let low = extend::<W>(product as u64);
        (low, (product >> W) as u64, i128::from(low as i64) != product)
    } else {
        let product = u128::from(cut::<W>(a)) * u128::from(b);
        (product as u64, (product >> W) as u64, product >> W != 0)
    };
    set_register::<W>(cpu, RAX as u8, low);
    set_register::<W>(cpu, RDX as u8, high);
    set_carry_and_overflow(cpu, spills, spills);
    follow(cpu, rest)
}

/// The function for `mul` or `imul` of one operand, if there is one for this width.
pub(super) fn wide_multiplications(signed: bool, memory: bool, width: Width) -> Option<Run> {
    Some(match (signed, memory, width) {
        (false, false, Width::B4) => multiply_wide::<false, false, 32>,
        (false, false, Width::B8) => multiply_wide::<false, false, 64>,
        (false, true, Width::B4) => multiply_wide::<false, true, 32>,
        (false, true, Width::B8) => multiply_wide::<false, true, 64>,
        (true, false, Width::B4) => multiply_wide::<true, false, 32>,
        (true, false, Width::B8) => multiply_wide::<true, false, 64>,
        (true, true, Width::B4) => multiply_wide::<true, true, 32>,
        (true, true, Width::B8) => multiply_wide::<true, true, 64>,
        _ => return None,
    })
}

/// `div`. What is not a number of the width is left to the core, which raises #DE.
fn divide<const MEMORY: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let Some(divisor) = operand::<MEMORY, W>(cpu, op) else {
        return slow(rest);
    };
    let (low, high) = (cut::<W>(cpu.state.gpr[RAX]), cut::<W>(cpu.state.gpr[RDX]));
    // Also if the divisor is zero.
    if high >= divisor {
        return slow(rest);
    }
    let (quotient, remainder) = if W == 32 || high == 0 {
        let dividend = if W == 32 { high << 32 | low } else { low };
        (dividend / divisor, dividend % divisor)
    } else {
        let dividend = u128::from(high) << 64 | u128::from(low);
        let divisor = u128::from(divisor);
        ((dividend / divisor) as u64, (dividend % divisor) as u64)
    };
    set_register::<W>(cpu, RAX as u8, quotient);
    set_register::<W>(cpu, RDX as u8, remainder);
    follow(cpu, rest)
}

/// The function for `div`, if there is one for this width.
pub(super) fn divisions(memory: bool, width: Width) -> Option<Run> {
    Some(match (memory, width) {
        (false, Width::B4) => divide::<false, 32>,
        (false, Width::B8) => divide::<false, 64>,
        (true, Width::B4) => divide::<true, 32>,
        (true, Width::B8) => divide::<true, 64>,
        _ => return None,
    })
}
