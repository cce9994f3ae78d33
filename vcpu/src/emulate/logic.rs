//! `and or xor test not`: logic on whole operands.

use super::environment::{Memory, Platform, Stop};
use super::flags;
use super::{Cpu, Flow};
use iced_x86::Instruction;

impl<E: Memory + Platform> Cpu<E> {
    fn logic(&mut self, insn: &Instruction, operation: impl Fn(u64, u64) -> u64) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let b = self.value(insn, 1, width)?;
        self.modify(insn, width, flags::STATUS, |a| {
            let result = operation(a, b);
            (result, flags::of_result(result, width))
        })?;
        Ok(Flow::Next)
    }

    pub(super) fn and(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.logic(insn, |a, b| a & b)
    }

    pub(super) fn or(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.logic(insn, |a, b| a | b)
    }

    pub(super) fn xor(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.logic(insn, |a, b| a ^ b)
    }

    pub(super) fn test(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let a = self.value(insn, 0, width)?;
        let b = self.value(insn, 1, width)?;
        self.set_status(flags::of_result(a & b, width));
        Ok(Flow::Next)
    }

    pub(super) fn not(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        self.modify(insn, width, 0, |a| (width.cut(!a), 0))?;
        Ok(Flow::Next)
    }
}
