//! `bt bts btr btc` of a register, `bsf bsr tzcnt popcnt`, `bswap`, and tests of AH, CH, DH and BH.

use super::memory::{address, load};
use super::{Op, Run, Went, carry, cut, follow, register, set_carry, set_register, settle_flags, slow};
use crate::emulate::Cpu;
use crate::emulate::flags::{CF, STATUS, ZF, when};
use crate::emulate::width::Width;
use crate::soft::world::World;

/// What becomes of the bit.
pub(super) const TEST: u8 = 0;
pub(super) const SET: u8 = 1;
pub(super) const RESET: u8 = 2;
pub(super) const COMPLEMENT: u8 = 3;

fn bit<const O: u8, const IMMEDIATE: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let number = if IMMEDIATE {
        op.immediate()
    } else {
        register(cpu, op.from)
    };
    let mask = 1 << (number & u64::from(W - 1));
    let value = cut::<W>(register(cpu, op.to));
    set_carry(cpu, value & mask != 0);
    let new = match O {
        SET => value | mask,
        RESET => value & !mask,
        COMPLEMENT => value ^ mask,
        _ => return follow(cpu, rest),
    };
    set_register::<W>(cpu, op.to, new);
    follow(cpu, rest)
}

/// The function for `bt` or a relative, of a register and 4 or 8 bytes wide.
pub(super) fn bits(operation: u8, immediate: bool, width: Width) -> Option<Run> {
    match operation {
        TEST => bits_of::<TEST>(immediate, width),
        SET => bits_of::<SET>(immediate, width),
        RESET => bits_of::<RESET>(immediate, width),
        _ => bits_of::<COMPLEMENT>(immediate, width),
    }
}

fn bits_of<const O: u8>(immediate: bool, width: Width) -> Option<Run> {
    Some(match (immediate, width) {
        (true, Width::B4) => bit::<O, true, 32>,
        (true, Width::B8) => bit::<O, true, 64>,
        (false, Width::B4) => bit::<O, false, 32>,
        (false, Width::B8) => bit::<O, false, 64>,
        _ => return None,
    })
}

/// What is counted, or looked for.
pub(super) const FORWARD: u8 = 0;
pub(super) const REVERSE: u8 = 1;
pub(super) const TRAILING: u8 = 2;
pub(super) const ONES: u8 = 3;

fn scan<const O: u8, const MEMORY: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let value = if MEMORY {
        let Some(value) = load::<W>(cpu, address::<false>(cpu, op)) else {
            return slow(rest);
        };
        value
    } else {
        cut::<W>(register(cpu, op.from))
    };
    let zero = when(value == 0, ZF);
    let (result, mask, flags) = match O {
        FORWARD | REVERSE if value == 0 => (None, ZF, zero),
        FORWARD => (Some(value.trailing_zeros()), ZF, 0),
        REVERSE => (Some(63 - value.leading_zeros()), ZF, 0),
        TRAILING => {
            let zeros = value.trailing_zeros().min(W);
            (Some(zeros), CF | ZF, when(value == 0, CF) | when(zeros == 0, ZF))
        }
        _ => (Some(value.count_ones()), STATUS, zero),
    };
    settle_flags(cpu);
    cpu.state.set_flags(mask, flags);
    if let Some(result) = result {
        set_register::<W>(cpu, op.to, result.into());
    }
    follow(cpu, rest)
}

/// The function for `bsf`, `bsr`, `tzcnt` or `popcnt`, if there is one for this width.
pub(super) fn scans(operation: u8, memory: bool, width: Width) -> Option<Run> {
    match operation {
        FORWARD => scans_of::<FORWARD>(memory, width),
        REVERSE => scans_of::<REVERSE>(memory, width),
        TRAILING => scans_of::<TRAILING>(memory, width),
        _ => scans_of::<ONES>(memory, width),
    }
}

fn scans_of<const O: u8>(memory: bool, width: Width) -> Option<Run> {
    Some(match (memory, width) {
        (false, Width::B4) => scan::<O, false, 32>,
        (false, Width::B8) => scan::<O, false, 64>,
        (true, Width::B4) => scan::<O, true, 32>,
        (true, Width::B8) => scan::<O, true, 64>,
        _ => return None,
    })
}

fn swap_bytes<const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let value = register(cpu, op.to).swap_bytes();
    set_register::<W>(cpu, op.to, value >> (64 - W));
    follow(cpu, rest)
}

/// The function for `bswap`, if there is one for this width.
pub(super) fn byte_swaps(width: Width) -> Option<Run> {
    match width {
        Width::B4 => Some(swap_bytes::<32>),
        Width::B8 => Some(swap_bytes::<64>),
        _ => None,
    }
}

/// `test` of AH, CH, DH or BH with an immediate.
pub(super) fn test_high(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let result = cut::<8>(register(cpu, op.to) >> 8 & op.immediate());
    cpu.env.lazy.set::<8>(result, 0);
    follow(cpu, rest)
}

/// `clc stc cmc`: what CF becomes, if it is 0 or 1, or else it is turned round.
pub(super) fn change_carry(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let new = match op.immediate() {
        0 => false,
        1 => true,
        _ => !carry(cpu),
    };
    set_carry(cpu, new);
    follow(cpu, rest)
}
