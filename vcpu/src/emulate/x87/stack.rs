//! Instructions on the register stack itself, and conditional moves.

use super::super::environment::{Memory, Platform, Stop};
use super::super::flags::{CF, PF, ZF};
use super::super::float::Number;
use super::super::{Cpu, Flow};
use super::C1;
use iced_x86::{Instruction, Mnemonic as M};

impl<E: Memory + Platform> Cpu<E> {
    pub(in super::super) fn fxch(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let other = insn.op_register(insn.op_count() - 1).number();
        let _ = (self.operand(&mut env, 0), self.operand(&mut env, other));
        let indefinite = Number::INDEFINITE.to_f80();
        let (first, second) = (self.st(0).unwrap_or(indefinite), self.st(other).unwrap_or(indefinite));
        if self.x87_end(insn, &env) {
            self.set_st(0, second);
            self.set_st(other, first);
        }
        Ok(Flow::Next)
    }

    /// `ffree ffreep`.
    pub(in super::super) fn ffree(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let fpu = &mut self.state.fpu;
        let top = fpu.top();
        fpu.tags &= !(1 << ((top + insn.op0_register().number()) & 7));
        if insn.mnemonic() == M::Ffreep {
            self.pop_st();
        }
        self.set_conditions(C1, 0);
        Ok(Flow::Next)
    }

    /// `fincstp fdecstp`: the tags stay with their registers.
    pub(in super::super) fn x87_rotate(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let by = if insn.mnemonic() == M::Fincstp { 1 } else { 7 };
        let top = self.state.fpu.top();
        self.state.fpu.set_top((top + by) & 7);
        self.set_conditions(C1, 0);
        Ok(Flow::Next)
    }

    pub(in super::super) fn fnop(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        Ok(Flow::Next)
    }

    /// `feni fdisi fsetpm`, which the 8087 and the 287 had.
    pub(in super::super) fn x87_nothing(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        self.check_x87()?;
        Ok(Flow::Next)
    }

    /// `fcmovcc`: both registers must be in use whatever the condition says.
    pub(in super::super) fn fcmov(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let other = insn.op1_register().number();
        let _ = (self.operand(&mut env, 0), self.operand(&mut env, other));
        let (flags, wanted) = match insn.mnemonic() {
            M::Fcmovb => (CF, true),
            M::Fcmove => (ZF, true),
            M::Fcmovbe => (CF | ZF, true),
            M::Fcmovu => (PF, true),
            M::Fcmovnb => (CF, false),
            M::Fcmovne => (ZF, false),
            M::Fcmovnbe => (CF | ZF, false),
            _ => (PF, false),
        };
        let holds = self.state.flag(flags) == wanted;
        let result = match (self.st(0), self.st(other)) {
            (Some(_), Some(other)) if holds => other,
            (Some(top), Some(_)) => top,
            _ => Number::INDEFINITE.to_f80(),
        };
        if self.x87_end_keeping_c1(insn, &env) {
            self.set_st(0, result);
        }
        Ok(Flow::Next)
    }
}
