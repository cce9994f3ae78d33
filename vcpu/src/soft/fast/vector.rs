//! XMM registers: moves, and whatever computes a register from two.
//!
//! What is computed are the core's own functions, each built into an op of its own.

use super::memory::{address, load, store};
use super::{Op, Run, Went, cut, follow, register, scalar, set_register, slow};
use crate::emulate::Cpu;
use crate::emulate::float::host;
use crate::emulate::sse::packed::Lane;
use crate::emulate::sse::parts;
use crate::soft::world::World;

/// An XMM register.
#[inline(always)]
pub(super) fn xmm(cpu: &Cpu<World>, number: u8) -> u128 {
    cpu.state.fpu.xmm[usize::from(number & 15)]
}

#[inline(always)]
pub(super) fn set_xmm(cpu: &mut Cpu<World>, number: u8, value: u128) {
    cpu.state.fpu.xmm[usize::from(number & 15)] = value;
}

/// `W` bits of memory, the rest of the register zero.
#[inline(always)]
fn load_part<const W: u32>(cpu: &Cpu<World>, at: u64) -> Option<u128> {
    if W == 128 {
        cpu.env.tlb.load_wide(at)
    } else {
        load::<W>(cpu, at).map(parts::from_low)
    }
}

/// Where a second operand is.
pub(super) const REGISTER: u8 = 0;
/// In memory, at an address that is simple.
pub(super) const SIMPLE: u8 = 1;
/// In memory.
pub(super) const MEMORY: u8 = 2;

/// Where the second operand of this op is.
pub(super) fn place(op: &Op, memory: bool) -> u8 {
    match memory {
        false => REGISTER,
        true if op.has_simple_address() => SIMPLE,
        true => MEMORY,
    }
}

/// The address of a second operand.
#[inline(always)]
pub(super) fn second_address<const FROM: u8>(cpu: &Cpu<World>, op: &Op) -> u64 {
    if FROM == SIMPLE {
        address::<true>(cpu, op)
    } else {
        address::<false>(cpu, op)
    }
}

/// The function that `$function::<…, where the second operand is>` is for this op.
macro_rules! by_place {
    ($op:expr, $memory:expr, $function:ident, $($kind:ident),*) => {
        match place($op, $memory) {
            REGISTER => $function::<$($kind,)* REGISTER>,
            SIMPLE => $function::<$($kind,)* SIMPLE>,
            _ => $function::<$($kind,)* MEMORY>,
        }
    };
}
pub(super) use by_place;

/// The second operand: a register, or 128 bits of memory, which must be aligned (or #GP is due).
#[inline(always)]
fn source<const FROM: u8>(cpu: &Cpu<World>, op: &Op) -> Option<u128> {
    if FROM == REGISTER {
        return Some(xmm(cpu, op.from));
    }
    let at = second_address::<FROM>(cpu, op);
    at.is_multiple_of(16).then(|| cpu.env.tlb.load_wide(at))?
}

fn move_registers(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !cpu.env.vectors {
        return slow(rest);
    }
    let value = xmm(cpu, op.from);
    set_xmm(cpu, op.to, value);
    follow(cpu, rest)
}

/// The low `W` bits of a register to another, which keeps the others (`movss movsd`) or loses them (`movq`).
fn move_low<const KEEP: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !cpu.env.vectors {
        return slow(rest);
    }
    let value = xmm(cpu, op.from);
    let old = if KEEP { xmm(cpu, op.to) } else { 0 };
    let new = match W {
        32 => parts::with_low_32(old, value),
        _ => parts::with_low_64(old, value),
    };
    set_xmm(cpu, op.to, new);
    follow(cpu, rest)
}

fn move_load<const ALIGNED: bool, const S: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let at = address::<S>(cpu, op);
    if !cpu.env.vectors || (ALIGNED && !at.is_multiple_of(16)) {
        return slow(rest);
    }
    let Some(value) = load_part::<W>(cpu, at) else {
        return slow(rest);
    };
    set_xmm(cpu, op.to, value);
    follow(cpu, rest)
}

fn move_store<const ALIGNED: bool, const S: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let at = address::<S>(cpu, op);
    if !cpu.env.vectors || (ALIGNED && !at.is_multiple_of(16)) {
        return slow(rest);
    }
    let value = xmm(cpu, op.from);
    let done = if W == 128 {
        cpu.env.tlb.store_wide(at, value)
    } else {
        store::<W>(cpu, at, parts::low(value))
    };
    if !done {
        return slow(rest);
    }
    follow(cpu, rest)
}

/// `movd movq` from a general-purpose register.
fn move_in<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !cpu.env.vectors {
        return slow(rest);
    }
    let value = cut::<W>(register(cpu, op.from));
    set_xmm(cpu, op.to, parts::from_low(value));
    follow(cpu, rest)
}

/// `movd movq` to a general-purpose register.
fn move_out<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !cpu.env.vectors {
        return slow(rest);
    }
    let value = parts::low(xmm(cpu, op.from));
    set_register::<W>(cpu, op.to, value);
    follow(cpu, rest)
}

/// `pmovmskb`.
pub(super) fn sign_mask(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !cpu.env.vectors {
        return slow(rest);
    }
    let mask = parts::byte_signs(xmm(cpu, op.from));
    set_register::<32>(cpu, op.to, mask.into());
    follow(cpu, rest)
}

/// What a move is between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    Registers,
    Load,
    Store,
}

/// The function that `$function::<aligned, whether the address is simple, bits>` is for this op.
macro_rules! by_simplicity {
    ($op:expr, $function:ident, $aligned:expr, $width:expr) => {
        if $op.has_simple_address() {
            $function::<$aligned, true, $width>
        } else {
            $function::<$aligned, false, $width>
        }
    };
}

/// The function for a move of a whole register, whose memory must be aligned or needn't be.
pub(super) fn whole_moves(op: &Op, way: Way, aligned: bool) -> Run {
    match (way, aligned) {
        (Way::Registers, _) => move_registers,
        (Way::Load, true) => by_simplicity!(op, move_load, true, 128),
        (Way::Load, false) => by_simplicity!(op, move_load, false, 128),
        (Way::Store, true) => by_simplicity!(op, move_store, true, 128),
        (Way::Store, false) => by_simplicity!(op, move_store, false, 128),
    }
}

/// The function for `movss` or `movsd`.
pub(super) fn scalar_moves(op: &Op, way: Way, double: bool) -> Run {
    match (way, double) {
        (Way::Registers, false) => move_low::<true, 32>,
        (Way::Registers, true) => move_low::<true, 64>,
        (Way::Load, false) => by_simplicity!(op, move_load, false, 32),
        (Way::Load, true) => by_simplicity!(op, move_load, false, 64),
        (Way::Store, false) => by_simplicity!(op, move_store, false, 32),
        (Way::Store, true) => by_simplicity!(op, move_store, false, 64),
    }
}

/// The function for `movd` or `movq` between XMM registers and memory.
pub(super) fn integer_moves(op: &Op, way: Way, long: bool) -> Option<Run> {
    Some(match (way, long) {
        (Way::Registers, true) => move_low::<false, 64>,
        (Way::Registers, false) => return None,
        (Way::Load | Way::Store, _) => scalar_moves(op, way, long),
    })
}

/// The function for `movd` or `movq` with a general-purpose register.
pub(super) fn crossing_moves(out: bool, long: bool) -> Run {
    match (out, long) {
        (false, false) => move_in::<32>,
        (false, true) => move_in::<64>,
        (true, false) => move_out::<32>,
        (true, true) => move_out::<64>,
    }
}

/// What an instruction makes of destination, source and immediate.
pub(super) trait Operation {
    /// The result, if the host can say it.
    fn apply(a: u128, b: u128, immediate: u8) -> Option<u128>;
}

fn compute<F: Operation, const FROM: u8>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !cpu.env.vectors {
        return slow(rest);
    }
    let Some(b) = source::<FROM>(cpu, op) else {
        return slow(rest);
    };
    let Some(result) = F::apply(xmm(cpu, op.to), b, op.immediate() as u8) else {
        return slow(rest);
    };
    set_xmm(cpu, op.to, result);
    follow(cpu, rest)
}

/// The function for an operation.
pub(super) fn operations<F: Operation>(op: &Op, memory: bool) -> Run {
    by_place!(op, memory, compute, F)
}

/// Floating-point arithmetic, numbered.
pub(super) const ADD: u8 = 0;
pub(super) const SUB: u8 = 1;
pub(super) const MUL: u8 = 2;
pub(super) const DIV: u8 = 3;

pub(super) const fn host_op(operation: u8) -> host::Op {
    match operation {
        ADD => host::Op::Add,
        SUB => host::Op::Sub,
        MUL => host::Op::Mul,
        _ => host::Op::Div,
    }
}

/// Arithmetic of all lanes.
fn packed<F: Lane, const O: u8, const FROM: u8>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !cpu.env.vectors || !host::allowed(cpu.state.fpu.mxcsr) {
        return slow(rest);
    }
    let Some(b) = source::<FROM>(cpu, op) else {
        return slow(rest);
    };
    let Some(result) = F::packed_simply(const { host_op(O) }, xmm(cpu, op.to), b) else {
        return packed_with_zeros::<F, O, FROM>(cpu, op, rest);
    };
    set_xmm(cpu, op.to, result);
    follow(cpu, rest)
}

/// The same where there are zeros. On its own, so that what is common needs no stack.
#[inline(never)]
fn packed_with_zeros<F: Lane, const O: u8, const FROM: u8>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let Some(b) = source::<FROM>(cpu, op) else {
        return slow(rest);
    };
    let Some(result) = F::packed(const { host_op(O) }, xmm(cpu, op.to), b) else {
        return slow(rest);
    };
    set_xmm(cpu, op.to, result);
    follow(cpu, rest)
}

/// The function for arithmetic.
pub(super) fn arithmetic(op: &Op, operation: u8, double: bool, scalar: bool, memory: bool) -> Run {
    match operation {
        ADD => arithmetic_of::<ADD>(op, double, scalar, memory),
        SUB => arithmetic_of::<SUB>(op, double, scalar, memory),
        MUL => arithmetic_of::<MUL>(op, double, scalar, memory),
        _ => arithmetic_of::<DIV>(op, double, scalar, memory),
    }
}

fn arithmetic_of<const O: u8>(op: &Op, double: bool, scalar: bool, memory: bool) -> Run {
    match (double, scalar) {
        (false, false) => by_place!(op, memory, packed, f32, O),
        (false, true) => scalar::arithmetic::<f32, O>(op, memory),
        (true, false) => by_place!(op, memory, packed, f64, O),
        (true, true) => scalar::arithmetic::<f64, O>(op, memory),
    }
}
