//! Fast operations: the commonest instructions, each decoded once into a function that is made for its form.
//!
//! An [`Op`] knows its operands as numbers, takes memory that the TLB knows, and leaves its flags to be worked out when
//! they are asked for ([`flags`]). Whatever is not that simple – a TLB miss, a device, code that is written to, any
//! other instruction – it leaves alone and says [`Go::Slow`]: the instruction core executes the instruction instead, so
//! that everything about it is said in one place only.
//!
//! Ops are for 64-bit mode, and for 32-bit code with flat segments ([`mode`]). Read in this order: this file, `flags`,
//! `memory`, `alu`, `shift`, `moves`, `stack`, `string`, `branch`,
//! `select`.

mod alu;
mod branch;
pub(super) mod flags;
mod memory;
pub(super) mod mode;
mod moves;
mod select;
mod shift;
mod stack;
mod string;

pub(super) use select::select;

use super::world::World;
use crate::emulate::{Cpu, flags as rflags};

/// What an op does.
type Run = fn(&mut Cpu<World>, &Op) -> Go;

/// How an op ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Go {
    /// Done, on to the next instruction. RIP is not kept up.
    Next,
    /// Nothing was done: the instruction core is to execute it.
    Slow,
    /// Done, and RIP says where to.
    Jump,
    /// A part is done; it is to be run again when others have had a look.
    Repeat,
}

/// A memory operand.
#[derive(Clone, Copy, Debug)]
struct Mem {
    displacement: u64,
    /// Bits of the address that count.
    mask: u64,
    /// Numbers of registers, or [`NONE`].
    base: u8,
    index: u8,
    /// The index is shifted by so much.
    scale: u8,
    segment: Base,
}

/// No register.
const NONE: u8 = 0xff;

/// What is added to the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Base {
    Zero,
    Fs,
    Gs,
}

/// One instruction, ready to run.
pub(super) struct Op {
    run: Run,
    /// An immediate, or where a branch goes.
    immediate: u64,
    /// RIP of the next instruction.
    next: u64,
    memory: Mem,
    /// Number of the register that is written (and mostly read as well).
    to: u8,
    /// Number of a register that is read.
    from: u8,
}

impl Op {
    /// Runs it.
    #[inline(always)]
    pub fn run(&self, cpu: &mut Cpu<World>) -> Go {
        (self.run)(cpu, self)
    }

    /// RIP of the next instruction.
    #[inline(always)]
    pub fn next(&self) -> u64 {
        self.next
    }
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

/// Condition `C`, numbered as in [`rflags::condition`].
#[inline(always)]
fn condition<const C: u8>(cpu: &Cpu<World>) -> bool {
    let lazy = &cpu.env.lazy;
    if lazy.is_known() {
        return rflags::condition(C, cpu.state.rflags);
    }
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

use {by_condition, by_width};
