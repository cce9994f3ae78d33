//! Fast operations: the commonest instructions, each decoded once into a function that is made for its form.
//!
//! An [`Op`] knows its operands as numbers, takes memory that the TLB knows, and leaves its flags to be worked out when
//! they are asked for ([`flags`]). Whatever is not that simple – a TLB miss, a device, code that is written to, any
//! other instruction – it leaves alone and says [`Go::Slow`]: the instruction core executes the instruction instead, so
//! that everything about it is said in one place only.
//!
//! The ops of a block run one another: each ends by calling the next, so that a block needs no loop, and the host
//! predicts for each kind of op what follows it. Optimised, such a call is a jump; where it isn't, the stack grows by a
//! frame for each of a block's few ops.
//!
//! A comparison and the conditional jump behind it are two ops, of which the first does the second's work as well
//! ([`fuse`]): the condition is known from the operands, and the host has one jump less to predict.
//!
//! Ops are for 64-bit mode, for 32-bit code with flat segments, and for what needs no segment in real mode ([`mode`]).
//! Read in this order: this file, `flags`, `memory`, `alu`, `shift`, `muldiv`, `bits`, `moves`, `stack`, `string`, `branch`,
//! `system`, `vector`, `scalar`, `select`, `select_transfer`, `select_vector` and `fuse`.

mod alu;
mod bits;
mod branch;
pub(super) mod flags;
mod fuse;
mod memory;
pub(super) mod mode;
mod moves;
mod muldiv;
mod scalar;
mod select;
mod select_transfer;
mod select_vector;
mod shift;
mod stack;
mod string;
mod system;
mod vector;

pub(super) use fuse::fuse;
pub(super) use select::{number, select};

use super::world::World;
use crate::emulate::{Cpu, flags as rflags};
use flags::Lazy;
use std::cell::Cell;

/// What an op does, and then the ops behind it.
type Run = fn(&mut Cpu<World>, &Op, &[Op]) -> Went;

/// Why a run of ops ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Go {
    /// All are done. RIP is not kept up.
    End,
    /// The last op was left alone: the instruction core is to execute it.
    Slow,
    /// The last op is done, and RIP says where to.
    Jump,
    /// Of the last op, a part is done; it is to be run again when others have had a look.
    Repeat,
    /// The last op is done, and RIP says where to, perhaps in another mode.
    Cross,
}

/// How far a run of ops came: how it ended, how many ops are behind the last one, and the link of a jump. One number, so
/// that a call of the next op can be a jump.
#[derive(Clone, Copy, Debug)]
pub(super) struct Went(u64);

impl Went {
    const fn new(go: Go, left: usize) -> Self {
        Self((left as u64) << 3 | go as u64)
    }

    const fn linked(go: Go, left: usize, link: u32) -> Self {
        Self((link as u64) << 32 | Self::new(go, left).0)
    }

    /// How it ended.
    #[inline(always)]
    pub const fn go(self) -> Go {
        match self.0 & 7 {
            0 => Go::End,
            1 => Go::Slow,
            2 => Go::Jump,
            3 => Go::Repeat,
            _ => Go::Cross,
        }
    }

    /// Ops behind the last one.
    #[inline(always)]
    pub const fn left(self) -> usize {
        (self.0 as u32 >> 3) as usize
    }

    /// Of a jump, to which block it went last, as [`Op::set_link`] said.
    #[inline(always)]
    pub const fn link(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// The shape of a jump to the fixed place `wide`, of which the number `to` is the condition.
const CONDITIONAL: u8 = 1 << 7;
/// Likewise, without a condition.
const UNCONDITIONAL: u8 = 1 << 6;

/// No register.
const NONE: u8 = 0xff;

/// One instruction, ready to run.
pub(super) struct Op {
    run: Run,
    /// A displacement, the target of a branch, or an immediate of 64 bits.
    wide: u64,
    /// An immediate, whose sign goes on; of a branch, the block that it went to last (see [`Op::set_link`]).
    extra: Cell<u32>,
    /// Numbers of the registers of a memory operand's address, or [`NONE`].
    base: u8,
    index: u8,
    /// What else its address is made of: see `memory`. Of a jump, [`CONDITIONAL`] or [`UNCONDITIONAL`].
    shape: u8,
    /// Number of the register that is written (and mostly read as well).
    to: u8,
    /// Number of a register that is read.
    from: u8,
    /// From the beginning of the block to the next instruction of the block.
    next: u16,
}

impl Op {
    /// Runs the first of some ops, and those behind it.
    #[inline(always)]
    pub fn run_all(cpu: &mut Cpu<World>, ops: &[Self]) -> Went {
        follow(cpu, ops)
    }

    /// Bytes from the beginning of the block to the next instruction, which is where a jump that was followed leads.
    #[inline(always)]
    pub fn end(&self) -> u64 {
        self.next.into()
    }

    /// Remembers for a branch to which block it went.
    #[inline(always)]
    pub fn set_link(&self, block: u32) {
        self.extra.set(block);
    }

    /// If it is a jump to a place further on in its block, which begins at `rip` and has so many bytes at most, it has
    /// nothing to do but to have that place behind it. Gives where that is.
    pub fn follow_jump(&mut self, rip: u64, bytes: usize) -> Option<usize> {
        let target = usize::try_from(self.wide.wrapping_sub(rip)).ok()?;
        if self.shape != UNCONDITIONAL || target < usize::from(self.next) || target >= bytes {
            return None;
        }
        self.run = moves::nothing;
        self.next = u16::try_from(target).ok()?;
        Some(target)
    }

    /// The immediate.
    #[inline(always)]
    fn immediate(&self) -> u64 {
        i64::from(self.extra.get() as i32) as u64
    }
}

/// Goes on with the next op.
#[inline(always)]
fn follow(cpu: &mut Cpu<World>, rest: &[Op]) -> Went {
    match rest.split_first() {
        Some((op, rest)) => (op.run)(cpu, op, rest),
        None => Went::new(Go::End, 0),
    }
}

/// Leaves the op before `rest` to the instruction core.
#[inline(always)]
fn slow(rest: &[Op]) -> Went {
    Went::new(Go::Slow, rest.len())
}

/// RIP is set by the branch `op` before `rest`.
#[inline(always)]
fn jumped(op: &Op, rest: &[Op]) -> Went {
    Went::linked(Go::Jump, rest.len(), op.extra.get())
}

/// Likewise, and the mode may be another.
#[inline(always)]
fn crossed(op: &Op, rest: &[Op]) -> Went {
    Went::linked(Go::Cross, rest.len(), op.extra.get())
}

/// A general-purpose register.
#[inline(always)]
fn register(cpu: &Cpu<World>, number: u8) -> u64 {
    cpu.state.gpr[usize::from(number & 15)]
}

/// Writes the low `W` bits of a general-purpose register: 32-bit writes clear the upper half, narrower ones leave the
/// rest alone.
#[inline(always)]
fn set_register<const W: u32>(cpu: &mut Cpu<World>, number: u8, value: u64) {
    let whole = &mut cpu.state.gpr[usize::from(number & 15)];
    *whole = match W {
        64 => value,
        32 => value & 0xffff_ffff,
        _ => *whole & (u64::MAX << W) | value & !(u64::MAX << W),
    };
}

/// `value` cut to `W` bits.
#[inline(always)]
const fn cut<const W: u32>(value: u64) -> u64 {
    value & (u64::MAX >> (64 - W))
}

/// CF.
#[inline(always)]
fn carry(cpu: &Cpu<World>) -> bool {
    let lazy = &cpu.env.lazy;
    if lazy.is_known() {
        cpu.state.rflags & rflags::CF != 0
    } else {
        lazy.carry()
    }
}

/// Replaces CF; the other flags stay.
#[inline(always)]
fn set_carry(cpu: &mut Cpu<World>, carry: bool) {
    if cpu.env.lazy.is_known() {
        cpu.state.set_flags(rflags::CF, u64::from(carry));
    } else {
        cpu.env.lazy.keep_carry(carry);
    }
}

/// Replaces CF and OF; the other flags stay.
#[inline(always)]
fn set_carry_and_overflow(cpu: &mut Cpu<World>, carry: bool, overflow: bool) {
    if cpu.env.lazy.is_known() {
        let flags = rflags::when(carry, rflags::CF) | rflags::when(overflow, rflags::OF);
        cpu.state.set_flags(rflags::CF | rflags::OF, flags);
    } else {
        cpu.env.lazy.set_carry_and_overflow(carry, overflow);
    }
}

/// Condition `C`, numbered as in [`rflags::condition`].
#[inline(always)]
fn condition<const C: u8>(cpu: &Cpu<World>) -> bool {
    let lazy = &cpu.env.lazy;
    if lazy.is_known() {
        return rflags::condition(C, cpu.state.rflags);
    }
    condition_of::<C>(lazy)
}

/// The same of flags that RFLAGS does not have yet.
#[inline(always)]
fn condition_of<const C: u8>(lazy: &Lazy) -> bool {
    let holds = match C >> 1 {
        0 => lazy.overflow(),
        1 => lazy.carry(),
        2 => lazy.zero(),
        3 => lazy.carry() || lazy.zero(),
        4 => lazy.sign(),
        5 => lazy.parity(),
        6 => lazy.sign() != lazy.overflow(),
        _ => lazy.zero() || lazy.sign() != lazy.overflow(),
    };
    holds != (C & 1 != 0)
}

/// Puts the status flags into RFLAGS, where the instruction core looks for them.
#[inline]
pub(super) fn settle_flags(cpu: &mut Cpu<World>) {
    if !cpu.env.lazy.is_known() {
        let status = cpu.env.lazy.status();
        cpu.state.set_flags(rflags::STATUS, status);
        cpu.env.lazy.forget();
    }
}

/// The function that `$function::<0..=15>` is for this condition code.
macro_rules! by_condition {
    ($function:ident, $code:expr) => {
        match $code {
            0 => $function::<0>,
            1 => $function::<1>,
            2 => $function::<2>,
            3 => $function::<3>,
            4 => $function::<4>,
            5 => $function::<5>,
            6 => $function::<6>,
            7 => $function::<7>,
            8 => $function::<8>,
            9 => $function::<9>,
            10 => $function::<10>,
            11 => $function::<11>,
            12 => $function::<12>,
            13 => $function::<13>,
            14 => $function::<14>,
            _ => $function::<15>,
        }
    };
}

/// The function that `$function::<…, bits>` is for this width.
macro_rules! by_width {
    ($width:expr, $function:ident $(, $constant:expr)*) => {
        match $width {
            Width::B1 => $function::<$({ $constant },)* 8>,
            Width::B2 => $function::<$({ $constant },)* 16>,
            Width::B4 => $function::<$({ $constant },)* 32>,
            Width::B8 => $function::<$({ $constant },)* 64>,
        }
    };
}

/// The function that `$function::<…, whether the address is simple, bits>` is for this op's memory operand and this width.
macro_rules! by_address {
    ($op:expr, $width:expr, $function:ident $(, $constant:expr)*) => {
        if $op.has_simple_address() {
            by_width!($width, $function $(, $constant)*, true)
        } else {
            by_width!($width, $function $(, $constant)*, false)
        }
    };
}

use {by_address, by_condition, by_width};
