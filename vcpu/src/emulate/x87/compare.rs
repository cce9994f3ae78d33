//! Comparison and classification.

use super::super::environment::{Memory, Platform, Stop};
use super::super::float::{Env, Kind, Number, flag, ops};
use super::super::sse::float::order_flags;
use super::super::{Cpu, Flow};
use super::{C0, C1, C2, C3};
use iced_x86::{Instruction, Mnemonic as M, OpKind};
use std::cmp::Ordering;

/// The order of two operands; without one it is invalid for `fcom`, and for `fucom` if a NaN signals.
fn order(env: &mut Env, a: Option<Number>, b: Option<Number>, strict: bool) -> Option<Ordering> {
    let (a, b) = (a?, b?);
    let order = ops::compare(&a, &b);
    if order.is_some() {
        if a.denormal || b.denormal {
            env.flags |= flag::DE;
        }
    } else {
        let bad = |number: &Number| number.kind == Kind::Unsupported || number.is_signaling();
        if strict || bad(&a) || bad(&b) {
            env.flags |= flag::IE;
        }
    }
    order
}

impl<E: Memory + Platform> Cpu<E> {
    /// `fcom` and relatives, `ftst`: the order in C3, C2 and C0.
    pub(in super::super) fn fcom(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let source = match insn.mnemonic() {
            M::Ftst => Some(Number::zero(false)),
            M::Fcompp | M::Fucompp => self.operand(&mut env, 1),
            _ if insn.op0_kind() == OpKind::Memory => Some(self.x87_memory(insn)?),
            _ => self.operand(&mut env, insn.op1_register().number()),
        };
        let top = self.operand(&mut env, 0);
        let strict = !matches!(insn.mnemonic(), M::Fucom | M::Fucomp | M::Fucompp);
        let order = order(&mut env, top, source, strict);
        // The conditions are there even if an exception is not masked.
        let conditions = match order {
            None => C3 | C2 | C0,
            Some(Ordering::Less) => C0,
            Some(Ordering::Equal) => C3,
            Some(Ordering::Greater) => 0,
        };
        self.set_conditions(C3 | C2 | C0, conditions);
        if self.x87_end(insn, &env) {
            let pops = match insn.mnemonic() {
                M::Fcompp | M::Fucompp => 2,
                M::Fcomp | M::Fucomp | M::Ficomp => 1,
                _ => 0,
            };
            for _ in 0..pops {
                self.pop_st();
            }
        }
        Ok(Flow::Next)
    }

    /// `fcomi` and relatives: the order in ZF, PF and CF.
    pub(in super::super) fn fcomi(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let source = self.operand(&mut env, insn.op1_register().number());
        let top = self.operand(&mut env, 0);
        let strict = matches!(insn.mnemonic(), M::Fcomi | M::Fcomip);
        let order = order(&mut env, top, source, strict);
        self.set_status(order_flags(order));
        if self.x87_end_keeping_c1(insn, &env) && matches!(insn.mnemonic(), M::Fcomip | M::Fucomip) {
            self.pop_st();
        }
        Ok(Flow::Next)
    }

    /// `fxam`: the kind of ST(0) in C3, C2 and C0, its sign in C1, also of an empty register.
    pub(in super::super) fn fxam(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let fpu = &self.state.fpu;
        let number = Number::from_f80(fpu.x87[fpu.top()]);
        let kind = match number.kind {
            _ if self.st(0).is_none() => C3 | C0,
            Kind::Unsupported => 0,
            Kind::Nan => C0,
            Kind::Infinity => C2 | C0,
            Kind::Zero => C3,
            Kind::Finite if number.denormal => C3 | C2,
            Kind::Finite => C2,
        };
        let sign = if number.negative { C1 } else { 0 };
        self.set_conditions(C3 | C2 | C1 | C0, kind | sign);
        Ok(Flow::Next)
    }
}
