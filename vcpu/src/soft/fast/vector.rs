//! XMM registers: moves, and whatever computes a register from two.
//!
//! What is computed are the core's own functions, each built into an op of its own.

use super::memory::{address, load, store};
use super::{Op, Run, Went, cut, follow, register, set_register, slow};
use crate::emulate::Cpu;
use crate::emulate::float::host;
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

/// The low `W` bits of a register.
#[inline(always)]
pub(super) fn low<const W: u32>(value: u128) -> u128 {
    value & u128::MAX >> (128 - W)
}

/// `W` bits of memory, the rest of the register zero.
#[inline(always)]
fn load_part<const W: u32>(cpu: &Cpu<World>, at: u64) -> Option<u128> {
    if W == 128 {
        cpu.env.tlb.load_wide(at)
    } else {
        load::<W>(cpu, at).map(u128::from)
    }
}

/// The second operand: a register, or `W` bits of memory, which must be aligned if they are 128 (or #GP is due).
#[inline(always)]
pub(super) fn source<const MEMORY: bool, const W: u32>(cpu: &Cpu<World>, op: &Op) -> Option<u128> {
    if !MEMORY {
        return Some(xmm(cpu, op.from));
    }
    let at = address::<false>(cpu, op);
    let allowed = W != 128 || at.is_multiple_of(16);
    allowed.then(|| load_part::<W>(cpu, at))?
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
    let value = low::<W>(xmm(cpu, op.from));
    let kept = if KEEP {
        let old = xmm(cpu, op.to);
        old ^ low::<W>(old)
    } else {
        0
    };
    set_xmm(cpu, op.to, kept | value);
    follow(cpu, rest)
}

fn move_load<const ALIGNED: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let at = address::<false>(cpu, op);
    if !cpu.env.vectors || (ALIGNED && !at.is_multiple_of(16)) {
        return slow(rest);
    }
    let Some(value) = load_part::<W>(cpu, at) else {
        return slow(rest);
    };
    set_xmm(cpu, op.to, value);
    follow(cpu, rest)
}

fn move_store<const ALIGNED: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let at = address::<false>(cpu, op);
    if !cpu.env.vectors || (ALIGNED && !at.is_multiple_of(16)) {
        return slow(rest);
    }
    let value = xmm(cpu, op.from);
    let done = if W == 128 {
        cpu.env.tlb.store_wide(at, value)
    } else {
        store::<W>(cpu, at, value as u64)
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
    set_xmm(cpu, op.to, value.into());
    follow(cpu, rest)
}

/// `movd movq` to a general-purpose register.
fn move_out<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !cpu.env.vectors {
        return slow(rest);
    }
    let value = xmm(cpu, op.from) as u64;
    set_register::<W>(cpu, op.to, value);
    follow(cpu, rest)
}

/// `pmovmskb`.
pub(super) fn sign_mask(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !cpu.env.vectors {
        return slow(rest);
    }
    let bytes = xmm(cpu, op.from).to_le_bytes();
    let mask = (0..16).fold(0, |mask, byte| mask | u64::from(bytes[byte] >> 7) << byte);
    set_register::<32>(cpu, op.to, mask);
    follow(cpu, rest)
}

/// What a move is between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    Registers,
    Load,
    Store,
}

/// The function for a move of a whole register, whose memory must be aligned or needn't be.
pub(super) fn whole_moves(way: Way, aligned: bool) -> Run {
    match (way, aligned) {
        (Way::Registers, _) => move_registers,
        (Way::Load, true) => move_load::<true, 128>,
        (Way::Load, false) => move_load::<false, 128>,
        (Way::Store, true) => move_store::<true, 128>,
        (Way::Store, false) => move_store::<false, 128>,
    }
}

/// The function for `movss` or `movsd`.
pub(super) fn scalar_moves(way: Way, double: bool) -> Run {
    match (way, double) {
        (Way::Registers, false) => move_low::<true, 32>,
        (Way::Registers, true) => move_low::<true, 64>,
        (Way::Load, false) => move_load::<false, 32>,
        (Way::Load, true) => move_load::<false, 64>,
        (Way::Store, false) => move_store::<false, 32>,
        (Way::Store, true) => move_store::<false, 64>,
    }
}

/// The function for `movd` or `movq` between XMM registers and memory.
pub(super) fn integer_moves(way: Way, long: bool) -> Option<Run> {
    Some(match (way, long) {
        (Way::Registers, true) => move_low::<false, 64>,
        (Way::Registers, false) => return None,
        (Way::Load | Way::Store, _) => scalar_moves(way, long),
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
    /// The result.
    fn apply(a: u128, b: u128, immediate: u8) -> u128;
}

fn compute<F: Operation, const MEMORY: bool>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if !cpu.env.vectors {
        return slow(rest);
    }
    let Some(b) = source::<MEMORY, 128>(cpu, op) else {
        return slow(rest);
    };
    let result = F::apply(xmm(cpu, op.to), b, op.immediate() as u8);
    set_xmm(cpu, op.to, result);
    follow(cpu, rest)
}

/// The function for an operation.
pub(super) fn operations<F: Operation>(memory: bool) -> Run {
    if memory {
        compute::<F, true>
    } else {
        compute::<F, false>
    }
}

/// Floating-point arithmetic, numbered.
pub(super) const ADD: u8 = 0;
pub(super) const SUB: u8 = 1;
pub(super) const MUL: u8 = 2;
pub(super) const DIV: u8 = 3;

const fn host_op(operation: u8) -> host::Op {
    match operation {
        ADD => host::Op::Add,
        SUB => host::Op::Sub,
        MUL => host::Op::Mul,
        _ => host::Op::Div,
    }
}

/// Defines arithmetic for one format: of all lanes, and of the lowest alone.
macro_rules! arithmetic {
    ($packed:ident, $scalar:ident, $bits:ty, $lanes:ident) => {
        fn $packed<const O: u8, const MEMORY: bool>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
            const BYTES: usize = size_of::<$bits>();
            if !cpu.env.vectors || !host::allowed(cpu.state.fpu.mxcsr) {
                return slow(rest);
            }
            let split = |value: u128| -> [$bits; 16 / BYTES] {
                let value = value.to_le_bytes();
                let (bytes, _) = value.as_chunks::<BYTES>();
                std::array::from_fn(|lane| <$bits>::from_le_bytes(bytes[lane]))
            };
            let Some(b) = source::<MEMORY, 128>(cpu, op) else {
                return slow(rest);
            };
            let Some(result) = host::$lanes(const { host_op(O) }, split(xmm(cpu, op.to)), split(b)) else {
                return slow(rest);
            };
            let mut bytes = [0; 16];
            let (lanes, _) = bytes.as_chunks_mut::<BYTES>();
            for (bytes, result) in lanes.iter_mut().zip(result) {
                *bytes = result.to_le_bytes();
            }
            set_xmm(cpu, op.to, u128::from_le_bytes(bytes));
            follow(cpu, rest)
        }

        fn $scalar<const O: u8, const MEMORY: bool>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
            if !cpu.env.vectors || !host::allowed(cpu.state.fpu.mxcsr) {
                return slow(rest);
            }
            let Some(b) = source::<MEMORY, { <$bits>::BITS }>(cpu, op) else {
                return slow(rest);
            };
            let a = xmm(cpu, op.to);
            let Some([result]) = host::$lanes(const { host_op(O) }, [a as $bits], [b as $bits]) else {
                return slow(rest);
            };
            set_xmm(cpu, op.to, a ^ low::<{ <$bits>::BITS }>(a) | u128::from(result));
            follow(cpu, rest)
        }
    };
}

arithmetic!(packed_single, scalar_single, u32, singles);
arithmetic!(packed_double, scalar_double, u64, doubles);

/// The function for arithmetic.
pub(super) fn arithmetic(operation: u8, double: bool, scalar: bool, memory: bool) -> Run {
    match operation {
        ADD => arithmetic_of::<ADD>(double, scalar, memory),
        SUB => arithmetic_of::<SUB>(double, scalar, memory),
        MUL => arithmetic_of::<MUL>(double, scalar, memory),
        _ => arithmetic_of::<DIV>(double, scalar, memory),
    }
}

fn arithmetic_of<const O: u8>(double: bool, scalar: bool, memory: bool) -> Run {
    match (double, scalar, memory) {
        (false, false, false) => packed_single::<O, false>,
        (false, false, true) => packed_single::<O, true>,
        (false, true, false) => scalar_single::<O, false>,
        (false, true, true) => scalar_single::<O, true>,
        (true, false, false) => packed_double::<O, false>,
        (true, false, true) => packed_double::<O, true>,
        (true, true, false) => scalar_double::<O, false>,
        (true, true, true) => scalar_double::<O, true>,
    }
}
