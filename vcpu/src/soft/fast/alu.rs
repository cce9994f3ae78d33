//! `add or adc sbb and sub xor cmp test` and `inc dec neg not`, for every form and width.

use super::branch::decide;
use super::flags::extend;
use super::memory::{address, load, load_to_write, store};
use super::{Op, Run, Went, by_address, by_width, carry, condition_of, cut, follow, register, set_register, slow};
use crate::emulate::Cpu;
use crate::emulate::width::Width;
use crate::soft::world::World;

/// The operations, numbered as in their encoding; `test` follows.
pub(super) mod operation {
    pub(in super::super) const ADD: u8 = 0;
    pub(in super::super) const OR: u8 = 1;
    pub(in super::super) const ADC: u8 = 2;
    pub(in super::super) const SBB: u8 = 3;
    pub(in super::super) const AND: u8 = 4;
    pub(in super::super) const SUB: u8 = 5;
    pub(in super::super) const XOR: u8 = 6;
    pub(in super::super) const CMP: u8 = 7;
    pub(in super::super) const TEST: u8 = 8;
    pub(in super::super) const INC: u8 = 9;
    pub(in super::super) const DEC: u8 = 10;
    pub(in super::super) const NEG: u8 = 11;
    pub(in super::super) const NOT: u8 = 12;
}
use operation::{ADC, ADD, AND, CMP, DEC, INC, NEG, NOT, OR, SBB, SUB, TEST, XOR};

/// Where the operands are: destination first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    Registers,
    RegisterImmediate,
    RegisterMemory,
    MemoryRegister,
    MemoryImmediate,
}

/// The result, with its flags noted. Operands are cut to the width.
#[inline(always)]
fn compute<const O: u8, const W: u32>(cpu: &mut Cpu<World>, a: u64, b: u64) -> u64 {
    match O {
        ADD | ADC => {
            let with = carry_if(cpu, O == ADC);
            let result = cut::<W>(a.wrapping_add(b).wrapping_add(u64::from(with)));
            cpu.env.lazy.set::<W>(result, (a & b) | ((a | b) & !result));
            result
        }
        SUB | SBB | CMP => {
            let with = carry_if(cpu, O == SBB);
            let result = cut::<W>(a.wrapping_sub(b).wrapping_sub(u64::from(with)));
            cpu.env.lazy.set::<W>(result, (!a & b) | ((!a | b) & result));
            result
        }
        INC | DEC => {
            let top = 1 << (W - 1);
            let (result, overflowed) = match O {
                INC => (cut::<W>(a.wrapping_add(1)), top),
                _ => (cut::<W>(a.wrapping_sub(1)), top - 1),
            };
            let carry = carry(cpu);
            cpu.env.lazy.set_counted::<W>(a, result, carry, result == overflowed);
            result
        }
        NEG => compute::<SUB, W>(cpu, 0, a),
        NOT => cut::<W>(!a),
        _ => {
            let result = match O {
                OR => a | b,
                XOR => a ^ b,
                _ => a & b,
            };
            cpu.env.lazy.set::<W>(result, 0);
            result
        }
    }
}

/// Notes the flags of a comparison.
#[inline(always)]
pub(super) fn compare<const W: u32>(cpu: &mut Cpu<World>, a: u64, b: u64) {
    compute::<CMP, W>(cpu, a, b);
}

#[inline(always)]
fn carry_if(cpu: &Cpu<World>, wanted: bool) -> bool {
    wanted && carry(cpu)
}

/// Whether the operation only sets flags.
const fn only_flags(operation: u8) -> bool {
    matches!(operation, CMP | TEST)
}

/// What comes next is nothing that the operation knows of; numbers below are of conditions (see `fuse`).
pub(super) const ANYTHING: u8 = 16;

/// Goes on behind the operation, whose flags are noted: with what it knows of the condition `T`, if that is one.
#[inline(always)]
fn go_on<const O: u8, const W: u32, const T: u8>(cpu: &mut Cpu<World>, rest: &[Op], a: u64, b: u64) -> Went {
    if T == ANYTHING {
        return follow(cpu, rest);
    }
    let holds = match (O, T >> 1) {
        (CMP | SUB, 1) => (a < b) != (T & 1 != 0),
        (CMP | SUB, 3) => (a <= b) != (T & 1 != 0),
        (CMP | SUB, 6) => ((extend::<W>(a) as i64) < extend::<W>(b) as i64) != (T & 1 != 0),
        (CMP | SUB, 7) => (extend::<W>(a) as i64 <= extend::<W>(b) as i64) != (T & 1 != 0),
        _ => condition_of::<T>(&cpu.env.lazy),
    };
    decide(cpu, rest, holds)
}

/// Notes the result where it belongs, and goes on.
#[inline(always)]
fn conclude<const O: u8, const W: u32, const T: u8>(
    cpu: &mut Cpu<World>,
    op: &Op,
    rest: &[Op],
    a: u64,
    b: u64,
) -> Went {
    let result = compute::<O, W>(cpu, a, b);
    if !only_flags(O) {
        set_register::<W>(cpu, op.to, result);
    }
    go_on::<O, W, T>(cpu, rest, a, b)
}

fn registers<const O: u8, const T: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let (a, b) = (cut::<W>(register(cpu, op.to)), cut::<W>(register(cpu, op.from)));
    conclude::<O, W, T>(cpu, op, rest, a, b)
}

fn register_immediate<const O: u8, const T: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let a = cut::<W>(register(cpu, op.to));
    conclude::<O, W, T>(cpu, op, rest, a, cut::<W>(op.immediate()))
}

fn register_memory<const O: u8, const T: u8, const S: bool, const W: u32>(
    cpu: &mut Cpu<World>,
    op: &Op,
    rest: &[Op],
) -> Went {
    let Some(b) = load::<W>(cpu, address::<S>(cpu, op)) else {
        return slow(rest);
    };
    let a = cut::<W>(register(cpu, op.to));
    conclude::<O, W, T>(cpu, op, rest, a, b)
}

/// Memory op `b`.
#[inline(always)]
fn memory<const O: u8, const T: u8, const S: bool, const W: u32>(
    cpu: &mut Cpu<World>,
    op: &Op,
    rest: &[Op],
    b: u64,
) -> Went {
    let at = address::<S>(cpu, op);
    if only_flags(O) {
        let Some(a) = load::<W>(cpu, at) else {
            return slow(rest);
        };
        compute::<O, W>(cpu, a, b);
        return go_on::<O, W, T>(cpu, rest, a, b);
    }
    // With the right to write, so that the store can't fail once flags are noted.
    let Some(a) = load_to_write::<W>(cpu, at) else {
        return slow(rest);
    };
    let result = compute::<O, W>(cpu, a, b);
    store::<W>(cpu, at, result);
    follow(cpu, rest)
}

fn memory_register<const O: u8, const T: u8, const S: bool, const W: u32>(
    cpu: &mut Cpu<World>,
    op: &Op,
    rest: &[Op],
) -> Went {
    let b = cut::<W>(register(cpu, op.from));
    memory::<O, T, S, W>(cpu, op, rest, b)
}

fn memory_immediate<const O: u8, const T: u8, const S: bool, const W: u32>(
    cpu: &mut Cpu<World>,
    op: &Op,
    rest: &[Op],
) -> Went {
    memory::<O, T, S, W>(cpu, op, rest, cut::<W>(op.immediate()))
}

fn one_register<const O: u8, const T: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let a = cut::<W>(register(cpu, op.to));
    conclude::<O, W, T>(cpu, op, rest, a, 1)
}

fn one_memory<const O: u8, const T: u8, const S: bool, const W: u32>(
    cpu: &mut Cpu<World>,
    op: &Op,
    rest: &[Op],
) -> Went {
    memory::<O, T, S, W>(cpu, op, rest, 1)
}

/// The function for an operation of two operands.
pub(super) fn binary(op: &Op, operation: u8, form: Form, width: Width) -> Run {
    match operation {
        ADD => by_form::<ADD>(op, form, width),
        OR => by_form::<OR>(op, form, width),
        ADC => by_form::<ADC>(op, form, width),
        SBB => by_form::<SBB>(op, form, width),
        AND => by_form::<AND>(op, form, width),
        SUB => by_form::<SUB>(op, form, width),
        XOR => by_form::<XOR>(op, form, width),
        CMP => by_form::<CMP>(op, form, width),
        _ => by_form::<TEST>(op, form, width),
    }
}

fn by_form<const O: u8>(op: &Op, form: Form, width: Width) -> Run {
    match form {
        Form::Registers => by_width!(width, registers, O, ANYTHING),
        Form::RegisterImmediate => by_width!(width, register_immediate, O, ANYTHING),
        Form::RegisterMemory => by_address!(op, width, register_memory, O, ANYTHING),
        Form::MemoryRegister => by_address!(op, width, memory_register, O, ANYTHING),
        Form::MemoryImmediate => by_address!(op, width, memory_immediate, O, ANYTHING),
    }
}

/// The function for an operation of two operands, and the jump by condition `T` behind it. Not every operation has one.
pub(super) fn binary_then<const T: u8>(op: &Op, operation: u8, form: Form, width: Width) -> Option<Run> {
    match operation {
        ADD => in_register_then::<ADD, T>(form, width),
        AND => in_register_then::<AND, T>(form, width),
        SUB => in_register_then::<SUB, T>(form, width),
        CMP => anywhere_then::<CMP, T>(op, form, width),
        TEST => anywhere_then::<TEST, T>(op, form, width),
        _ => None,
    }
}

fn in_register_then<const O: u8, const T: u8>(form: Form, width: Width) -> Option<Run> {
    Some(match form {
        Form::Registers => by_width!(width, registers, O, T),
        Form::RegisterImmediate => by_width!(width, register_immediate, O, T),
        _ => return None,
    })
}

fn anywhere_then<const O: u8, const T: u8>(op: &Op, form: Form, width: Width) -> Option<Run> {
    Some(match form {
        Form::MemoryRegister => by_address!(op, width, memory_register, O, T),
        Form::MemoryImmediate => by_address!(op, width, memory_immediate, O, T),
        _ => return in_register_then::<O, T>(form, width),
    })
}

/// The function for `inc` or `dec` of a register, and the jump by condition `T` behind it.
pub(super) fn unary_then<const T: u8>(operation: u8, width: Width) -> Option<Run> {
    Some(match operation {
        INC => by_width!(width, one_register, INC, T),
        DEC => by_width!(width, one_register, DEC, T),
        _ => return None,
    })
}

/// The function for `inc`, `dec`, `neg` or `not`.
pub(super) fn unary(op: &Op, operation: u8, in_memory: bool, width: Width) -> Run {
    match operation {
        INC => by_place::<INC>(op, in_memory, width),
        DEC => by_place::<DEC>(op, in_memory, width),
        NEG => by_place::<NEG>(op, in_memory, width),
        _ => by_place::<NOT>(op, in_memory, width),
    }
}

fn by_place<const O: u8>(op: &Op, in_memory: bool, width: Width) -> Run {
    if in_memory {
        by_address!(op, width, one_memory, O, ANYTHING)
    } else {
        by_width!(width, one_register, O, ANYTHING)
    }
}
