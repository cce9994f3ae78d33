//! `add or adc sbb and sub xor cmp test` and `inc dec neg not`, for every form and width.

use super::memory::{address, load, load_to_write, store};
use super::{Op, Run, Went, by_address, by_width, carry, cut, follow, register, set_register, slow};
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
        ADD | ADC | INC => {
            let keep = carry_if(cpu, O != ADD);
            let result = cut::<W>(a.wrapping_add(b).wrapping_add(u64::from(O == ADC && keep)));
            cpu.env.lazy.set::<W>(result, (a & b) | ((a | b) & !result));
            if O == INC {
                cpu.env.lazy.keep_carry(keep);
            }
            result
        }
        SUB | SBB | CMP | DEC => {
            let keep = carry_if(cpu, O == SBB || O == DEC);
            let result = cut::<W>(a.wrapping_sub(b).wrapping_sub(u64::from(O == SBB && keep)));
            cpu.env.lazy.set::<W>(result, (!a & b) | ((!a | b) & result));
            if O == DEC {
                cpu.env.lazy.keep_carry(keep);
            }
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

/// Notes the result where it belongs, and goes on.
#[inline(always)]
fn conclude<const O: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op], a: u64, b: u64) -> Went {
    let result = compute::<O, W>(cpu, a, b);
    if !only_flags(O) {
        set_register::<W>(cpu, op.to, result);
    }
    follow(cpu, rest)
}

fn registers<const O: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let (a, b) = (cut::<W>(register(cpu, op.to)), cut::<W>(register(cpu, op.from)));
    conclude::<O, W>(cpu, op, rest, a, b)
}

fn register_immediate<const O: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let a = cut::<W>(register(cpu, op.to));
    conclude::<O, W>(cpu, op, rest, a, cut::<W>(op.immediate()))
}

fn register_memory<const O: u8, const S: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let Some(b) = load::<W>(cpu, address::<S>(cpu, op)) else {
        return slow(rest);
    };
    let a = cut::<W>(register(cpu, op.to));
    conclude::<O, W>(cpu, op, rest, a, b)
}

/// Memory op `b`.
#[inline(always)]
fn memory<const O: u8, const S: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op], b: u64) -> Went {
    let at = address::<S>(cpu, op);
    if only_flags(O) {
        let Some(a) = load::<W>(cpu, at) else {
            return slow(rest);
        };
        compute::<O, W>(cpu, a, b);
        return follow(cpu, rest);
    }
    // With the right to write, so that the store can't fail once flags are noted.
    let Some(a) = load_to_write::<W>(cpu, at) else {
        return slow(rest);
    };
    let result = compute::<O, W>(cpu, a, b);
    store::<W>(cpu, at, result);
    follow(cpu, rest)
}

fn memory_register<const O: u8, const S: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let b = cut::<W>(register(cpu, op.from));
    memory::<O, S, W>(cpu, op, rest, b)
}

fn memory_immediate<const O: u8, const S: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    memory::<O, S, W>(cpu, op, rest, cut::<W>(op.immediate()))
}

fn one_register<const O: u8, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    let a = cut::<W>(register(cpu, op.to));
    conclude::<O, W>(cpu, op, rest, a, 1)
}

fn one_memory<const O: u8, const S: bool, const W: u32>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    memory::<O, S, W>(cpu, op, rest, 1)
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
        Form::Registers => by_width!(width, registers, O),
        Form::RegisterImmediate => by_width!(width, register_immediate, O),
        Form::RegisterMemory => by_address!(op, width, register_memory, O),
        Form::MemoryRegister => by_address!(op, width, memory_register, O),
        Form::MemoryImmediate => by_address!(op, width, memory_immediate, O),
    }
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
        by_address!(op, width, one_memory, O)
    } else {
        by_width!(width, one_register, O)
    }
}
