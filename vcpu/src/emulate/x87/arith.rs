//! The four operations, square root, absolute value and change of sign.

use super::super::environment::{Memory, Platform, Stop};
use super::super::float::{Env, Format, Number, convert, ops};
use super::super::{Cpu, Flow};
use super::load_store::format_of;
use iced_x86::{Instruction, Mnemonic as M, OpKind};

type Operation = fn(&mut Env, Number, Number, Format) -> Number;

/// What is done, and whether the operands change places.
fn operation(mnemonic: M) -> (Operation, bool) {
    match mnemonic {
        M::Fadd | M::Faddp | M::Fiadd => (ops::add, false),
        M::Fmul | M::Fmulp | M::Fimul => (ops::mul, false),
        M::Fsub | M::Fsubp | M::Fisub => (ops::sub, false),
        M::Fsubr | M::Fsubrp | M::Fisubr => (ops::sub, true),
        M::Fdiv | M::Fdivp | M::Fidiv => (ops::div, false),
        _ => (ops::div, true),
    }
}

/// Memory operands are integers.
pub(super) const fn is_integer(mnemonic: M) -> bool {
    matches!(
        mnemonic,
        M::Fiadd | M::Fimul | M::Fisub | M::Fisubr | M::Fidiv | M::Fidivr | M::Ficom | M::Ficomp
    )
}

impl<E: Memory + Platform> Cpu<E> {
    /// The memory operand, as a number.
    pub(super) fn x87_memory(&mut self, insn: &Instruction) -> Result<Number, Stop> {
        let width = Self::width(insn, 0);
        let bits = self.value(insn, 0, width)?;
        Ok(if is_integer(insn.mnemonic()) {
            convert::exact(width.extend(bits) as i64)
        } else {
            Number::unpack(bits, format_of(width))
        })
    }

    pub(in super::super) fn x87_arithmetic(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let from_memory = insn.op0_kind() == OpKind::Memory;
        let to = if from_memory { 0 } else { insn.op0_register().number() };
        let source = if from_memory {
            Some(self.x87_memory(insn)?)
        } else {
            self.operand(&mut env, insn.op1_register().number())
        };
        let target = self.operand(&mut env, to);
        let (operation, reversed) = operation(insn.mnemonic());
        let format = self.x87_format();
        let result = match (target, source) {
            (Some(target), Some(source)) if reversed => operation(&mut env, source, target, format),
            (Some(target), Some(source)) => operation(&mut env, target, source, format),
            _ => Number::INDEFINITE,
        };
        if self.x87_end(insn, &env) {
            self.set_st(to, result.to_f80());

            if matches!(
                insn.mnemonic(),
                M::Faddp | M::Fmulp | M::Fsubp | M::Fsubrp | M::Fdivp | M::Fdivrp
            ) {
                self.pop_st();
            }
        }
        Ok(Flow::Next)
    }

    pub(in super::super) fn fsqrt(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let format = self.x87_format();
        let operand = self.operand(&mut env, 0);
        let result = operand.map_or(Number::INDEFINITE, |number| ops::sqrt(&mut env, number, format));
        if self.x87_end(insn, &env) {
            self.set_st(0, result.to_f80());
        }
        Ok(Flow::Next)
    }

    /// `fabs fchs`: of any content whatever.
    pub(in super::super) fn x87_sign(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let _ = self.operand(&mut env, 0);
        let mut value = self.st(0);
        if let Some(value) = &mut value {
            if insn.mnemonic() == M::Fabs {
                value.sign_exponent &= 0x7fff;
            } else {
                value.sign_exponent ^= 0x8000;
            }
        }
        if self.x87_end(insn, &env) {
            self.set_st(0, value.unwrap_or(Number::INDEFINITE.to_f80()));
        }
        Ok(Flow::Next)
    }
}
