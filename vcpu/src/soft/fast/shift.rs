//! `shl shr sar rol ror` of a register.

use super::{Op, Run, Went, by_width, cut, flags::extend, follow, register, set_carry_and_overflow, set_register};
use crate::emulate::Cpu;
use crate::emulate::width::Width;
use crate::soft::world::World;

/// Numbered as in their encoding.
pub(super) const ROL: u8 = 0;
pub(super) const ROR: u8 = 1;
pub(super) const SHL: u8 = 4;
pub(super) const SHR: u8 = 5;
pub(super) const SAR: u8 = 7;
/// RCX.
const COUNTER: u8 = 1;

fn by_immediate<const O: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    shift::<O, W>(cpu, op, op.extra.get());
    follow(cpu, rest)
}

fn by_counter<const O: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let count = register(cpu, COUNTER) as u32 & if W == 64 { 63 } else { 31 };
    if count == 0 {
        // No flag changes; a 32-bit register loses its upper half.
        let value = register(cpu, op.to);
        set_register::<W>(cpu, op.to, value);
    } else {
        shift::<O, W>(cpu, op, count);
    }
    follow(cpu, rest)
}

/// A shift or rotation by 1..=63.
#[inline(always)]
fn shift<const O: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op, count: u32) {
    let a = cut::<W>(register(cpu, op.to));
    if O == ROL || O == ROR {
        return rotate::<O, W>(cpu, op, count, a);
    }
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
}

/// CF and OF change; CF also if the count is a multiple of the width.
#[inline(always)]
fn rotate<const O: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op, count: u32, a: u64) {
    let by = count % W;
    let (left, right) = if O == ROL {
        (by, (W - by) % W)
    } else {
        ((W - by) % W, by)
    };
    let result = if by == 0 { a } else { cut::<W>(a << left | a >> right) };
    let top = result >> (W - 1) & 1 != 0;
    let (carry, overflow) = if O == ROL {
        (result & 1 != 0, top != (result & 1 != 0))
    } else {
        (top, top != (result >> (W - 2) & 1 != 0))
    };
    set_carry_and_overflow(cpu, carry, overflow);
    set_register::<W>(cpu, op.to, result);
}

/// The function for a shift or rotation of a register by an immediate other than 0, or by CL.
pub(super) fn shifts(operation: u8, counter: bool, width: Width) -> Run {
    match operation {
        ROL => by_count::<ROL>(counter, width),
        ROR => by_count::<ROR>(counter, width),
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
