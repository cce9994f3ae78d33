//! Single floating-point numbers in XMM registers: arithmetic, comparison, conversion, square root.
//!
//! As everywhere, the host computes where its answer is certain, flags included: for numbers that are normal or zero, and
//! with an MXCSR that no result changes. The core does the rest.

use super::memory::load;
use super::vector::{MEMORY, REGISTER, SIMPLE, by_place, host_op, place, second_address, set_xmm, xmm};
use super::{Op, Run, Went, cut, follow, register, set_register, slow};
use crate::emulate::Cpu;
use crate::emulate::flags::{CF, STATUS, ZF, when};
use crate::emulate::float::host;
use crate::emulate::sse::packed::Lane;
use crate::soft::world::World;

/// Whether XMM registers may be used and MXCSR lets the host compute.
#[inline(always)]
fn may_compute(cpu: &Cpu<World>) -> bool {
    cpu.env.vectors && host::allowed(cpu.state.fpu.mxcsr)
}

/// The second operand: the low part of a register, or memory.
#[inline(always)]
fn source<F: Lane, const FROM: u8>(cpu: &Cpu<World>, op: &Op) -> Option<F> {
    if FROM == REGISTER {
        return Some(F::of(xmm(cpu, op.from)));
    }
    let at = second_address::<FROM>(cpu, op);
    let bits = if size_of::<F>() == 4 {
        load::<32>(cpu, at)
    } else {
        load::<64>(cpu, at)
    };
    bits.map(F::from_low)
}

/// Replaces the low part of a register.
#[inline(always)]
fn set<F: Lane>(cpu: &mut Cpu<World>, number: u8, value: F) {
    let old = xmm(cpu, number);
    set_xmm(cpu, number, value.put_into(old));
}

fn compute<F: Lane, const O: u8, const FROM: u8>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !may_compute(cpu) {
        return slow(rest);
    }
    let Some(b) = source::<F, FROM>(cpu, op) else {
        return slow(rest);
    };
    let Some(result) = F::compute(const { host_op(O) }, F::of(xmm(cpu, op.to)), b) else {
        return slow(rest);
    };
    set(cpu, op.to, result);
    follow(cpu, rest)
}

/// `comiss comisd ucomiss ucomisd`: between numbers that have an order they are the same.
fn compare<F: Lane, const FROM: u8>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !cpu.env.vectors {
        return slow(rest);
    }
    let Some(b) = source::<F, FROM>(cpu, op) else {
        return slow(rest);
    };
    let a = F::of(xmm(cpu, op.to));
    let (less, equal) = (a < b, a == b);
    if !(a >= b || less) || a.is_denormal() || b.is_denormal() {
        return slow(rest);
    }
    cpu.env.lazy.forget();
    cpu.state.set_flags(STATUS, when(equal, ZF) | when(less, CF));
    follow(cpu, rest)
}

fn root<F: Lane, const FROM: u8>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !may_compute(cpu) {
        return slow(rest);
    }
    let Some(result) = source::<F, FROM>(cpu, op).and_then(F::root) else {
        return slow(rest);
    };
    set(cpu, op.to, result);
    follow(cpu, rest)
}

/// `cvtsi2ss cvtsi2sd` from a register of `T` bits.
fn from_integer<F: Lane, const T: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !may_compute(cpu) {
        return slow(rest);
    }
    let value = register(cpu, op.from);
    let value = if T == 32 { i64::from(value as i32) } else { value as i64 };
    set(cpu, op.to, F::from_integer(value));
    follow(cpu, rest)
}

/// `cvttss2si cvttsd2si cvtss2si cvtsd2si` to a register of `T` bits, cut off or rounded to nearest.
fn to_integer<F: Lane, const ROUND: bool, const T: u32, const FROM: u8>(
    cpu: &mut Cpu<World>,
    op: &Op,
    rest: &[Op],
) -> Went {
    if !may_compute(cpu) {
        return slow(rest);
    }
    let whole = |value: f64| if ROUND { host::round_to_even(value) } else { Some(value) };
    let Some(value) = source::<F, FROM>(cpu, op).and_then(|value| whole(value.into())) else {
        return slow(rest);
    };
    // Powers of two, which floating point has exactly.
    let limit = if T == 32 {
        2_147_483_648.0
    } else {
        9_223_372_036_854_775_808.0
    };
    if !(-limit..limit).contains(&value) {
        return slow(rest);
    }
    // What is behind the point is cut off.
    set_register::<T>(cpu, op.to, cut::<T>(value as i64 as u64));
    follow(cpu, rest)
}

/// `cvtss2sd`: exact.
fn widen<const FROM: u8>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !cpu.env.vectors {
        return slow(rest);
    }
    let Some(value) = source::<f32, FROM>(cpu, op) else {
        return slow(rest);
    };
    if value.is_nan() || value.is_subnormal() {
        return slow(rest);
    }
    set(cpu, op.to, f64::from(value));
    follow(cpu, rest)
}

/// The function for arithmetic.
pub(super) fn arithmetic<F: Lane, const O: u8>(op: &Op, memory: bool) -> Run {
    by_place!(op, memory, compute, F, O)
}

/// The function for a comparison that sets flags.
pub(super) fn comparisons<F: Lane>(op: &Op, memory: bool) -> Run {
    by_place!(op, memory, compare, F)
}

/// The function for `sqrtss` or `sqrtsd`.
pub(super) fn roots<F: Lane>(op: &Op, memory: bool) -> Run {
    by_place!(op, memory, root, F)
}

/// The function for a conversion from a general-purpose register.
pub(super) fn from_integers(long: bool, double: bool) -> Run {
    match (long, double) {
        (false, false) => from_integer::<f32, 32>,
        (false, true) => from_integer::<f64, 32>,
        (true, false) => from_integer::<f32, 64>,
        (true, true) => from_integer::<f64, 64>,
    }
}

/// The function for a conversion to a general-purpose register.
pub(super) fn to_integers<F: Lane>(op: &Op, round: bool, memory: bool, long: bool) -> Run {
    match (round, long) {
        (false, false) => to_integers_as::<F, false, 32>(op, memory),
        (false, true) => to_integers_as::<F, false, 64>(op, memory),
        (true, false) => to_integers_as::<F, true, 32>(op, memory),
        (true, true) => to_integers_as::<F, true, 64>(op, memory),
    }
}

fn to_integers_as<F: Lane, const ROUND: bool, const T: u32>(op: &Op, memory: bool) -> Run {
    by_place!(op, memory, to_integer, F, ROUND, T)
}

/// The function for `cvtss2sd`.
pub(super) fn widenings(op: &Op, memory: bool) -> Run {
    by_place!(op, memory, widen,)
}
