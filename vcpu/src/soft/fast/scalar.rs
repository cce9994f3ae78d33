//! Single floating-point numbers in XMM registers: comparison, conversion, square root. (Arithmetic is in `vector`.)
//!
//! As everywhere, the host computes where its answer is certain, flags included: for numbers that are normal or zero, and
//! with an MXCSR that no result changes. The core does the rest.

use super::vector::{low, set_xmm, source, xmm};
use super::{Op, Run, Went, cut, follow, register, set_register, slow};
use crate::emulate::Cpu;
use crate::emulate::flags::{CF, PF, STATUS, ZF, when};
use crate::emulate::float::host;
use crate::soft::world::World;

/// Whether XMM registers may be used and MXCSR lets the host compute.
#[inline(always)]
fn may_compute(cpu: &Cpu<World>) -> bool {
    cpu.env.vectors && host::allowed(cpu.state.fpu.mxcsr)
}

/// Replaces the low `W` bits of a register.
#[inline(always)]
fn set_low<const W: u32>(cpu: &mut Cpu<World>, number: u8, value: u64) {
    let old = xmm(cpu, number);
    set_xmm(cpu, number, old ^ low::<W>(old) | u128::from(value));
}

/// A number of `W` bits, if it is normal or zero.
#[inline(always)]
fn plain<const W: u32>(bits: u128) -> Option<f64> {
    if W == 32 {
        let value = f32::from_bits(bits as u32);
        (value.is_normal() || value == 0.0).then(|| f64::from(value))
    } else {
        let value = f64::from_bits(bits as u64);
        (value.is_normal() || value == 0.0).then_some(value)
    }
}

/// `comiss comisd ucomiss ucomisd`: between such numbers they are the same.
fn compare<const MEMORY: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !cpu.env.vectors {
        return slow(rest);
    }
    let Some(b) = source::<MEMORY, W>(cpu, op) else {
        return slow(rest);
    };
    let (Some(a), Some(b)) = (plain::<W>(xmm(cpu, op.to)), plain::<W>(b)) else {
        return slow(rest);
    };
    cpu.env.lazy.forget();
    cpu.state.set_flags(STATUS, when(a == b, ZF) | when(a < b, CF));
    debug_assert_eq!(cpu.state.rflags & PF, 0, "only what is no number sets PF");
    follow(cpu, rest)
}

fn root<const MEMORY: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !may_compute(cpu) {
        return slow(rest);
    }
    let Some(b) = source::<MEMORY, W>(cpu, op) else {
        return slow(rest);
    };
    let result = if W == 32 {
        host::single_root(b as u32).map(u64::from)
    } else {
        host::double_root(b as u64)
    };
    let Some(result) = result else {
        return slow(rest);
    };
    set_low::<W>(cpu, op.to, result);
    follow(cpu, rest)
}

/// `cvtsi2ss cvtsi2sd` from a register of `F` bits.
fn from_integer<const F: u32, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !may_compute(cpu) {
        return slow(rest);
    }
    let value = register(cpu, op.from);
    let value = if F == 32 { i64::from(value as i32) } else { value as i64 };
    let bits = if W == 32 {
        u64::from((value as f32).to_bits())
    } else {
        (value as f64).to_bits()
    };
    set_low::<W>(cpu, op.to, bits);
    follow(cpu, rest)
}

/// `cvttss2si cvttsd2si cvtss2si cvtsd2si` to a register of `T` bits, cut off or rounded to nearest.
fn to_integer<const ROUND: bool, const MEMORY: bool, const W: u32, const T: u32>(
    cpu: &mut Cpu<World>,
    op: &Op,
    rest: &[Op],
) -> Went {
    if !may_compute(cpu) {
        return slow(rest);
    }
    let Some(value) = source::<MEMORY, W>(cpu, op).and_then(plain::<W>) else {
        return slow(rest);
    };
    let whole = if ROUND { value.round_ties_even() } else { value.trunc() };
    // Powers of two, which floating point has exactly.
    let limit = if T == 32 {
        2_147_483_648.0
    } else {
        9_223_372_036_854_775_808.0
    };
    if !(-limit..limit).contains(&whole) {
        return slow(rest);
    }
    set_register::<T>(cpu, op.to, cut::<T>(whole as i64 as u64));
    follow(cpu, rest)
}

/// `cvtss2sd`: exact.
fn widen<const MEMORY: bool>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !cpu.env.vectors {
        return slow(rest);
    }
    let Some(value) = source::<MEMORY, 32>(cpu, op).and_then(plain::<32>) else {
        return slow(rest);
    };
    set_low::<64>(cpu, op.to, value.to_bits());
    follow(cpu, rest)
}

/// The function for a comparison that sets flags.
pub(super) fn comparisons(memory: bool, double: bool) -> Run {
    match (memory, double) {
        (false, false) => compare::<false, 32>,
        (false, true) => compare::<false, 64>,
        (true, false) => compare::<true, 32>,
        (true, true) => compare::<true, 64>,
    }
}

/// The function for `sqrtss` or `sqrtsd`.
pub(super) fn roots(memory: bool, double: bool) -> Run {
    match (memory, double) {
        (false, false) => root::<false, 32>,
        (false, true) => root::<false, 64>,
        (true, false) => root::<true, 32>,
        (true, true) => root::<true, 64>,
    }
}

/// The function for a conversion from a general-purpose register.
pub(super) fn from_integers(long: bool, double: bool) -> Run {
    match (long, double) {
        (false, false) => from_integer::<32, 32>,
        (false, true) => from_integer::<32, 64>,
        (true, false) => from_integer::<64, 32>,
        (true, true) => from_integer::<64, 64>,
    }
}

/// The function for a conversion to a general-purpose register.
pub(super) fn to_integers(round: bool, memory: bool, double: bool, long: bool) -> Run {
    if round {
        to_integers_as::<true>(memory, double, long)
    } else {
        to_integers_as::<false>(memory, double, long)
    }
}

fn to_integers_as<const ROUND: bool>(memory: bool, double: bool, long: bool) -> Run {
    match (memory, double, long) {
        (false, false, false) => to_integer::<ROUND, false, 32, 32>,
        (false, false, true) => to_integer::<ROUND, false, 32, 64>,
        (false, true, false) => to_integer::<ROUND, false, 64, 32>,
        (false, true, true) => to_integer::<ROUND, false, 64, 64>,
        (true, false, false) => to_integer::<ROUND, true, 32, 32>,
        (true, false, true) => to_integer::<ROUND, true, 32, 64>,
        (true, true, false) => to_integer::<ROUND, true, 64, 32>,
        (true, true, true) => to_integer::<ROUND, true, 64, 64>,
    }
}

/// The function for `cvtss2sd`.
pub(super) fn widenings(memory: bool) -> Run {
    if memory { widen::<true> } else { widen::<false> }
}
