//! `mul imul div idiv`. All six status flags are undefined after a division; they stay as they were.

use super::environment::{Memory, Platform, Stop};
use super::exception::{self, Exception};
use super::flags::{CF, OF, when};
use super::state::{RAX, RDX};
use super::width::Width;
use super::{Cpu, Flow};
use iced_x86::Instruction;

const DIVIDE_ERROR: Stop = Stop::Fault(Exception::new(exception::DE));

impl<E: Memory + Platform> Cpu<E> {
    /// Writes a double-width value to AX or to DX:AX, EDX:EAX, RDX:RAX.
    fn set_double(&mut self, value: u128, width: Width) {
        if width == Width::B1 {
            self.state.set_low(RAX, value as u64, Width::B2);
        } else {
            self.state.set_low(RAX, value as u64, width);
            self.state.set_low(RDX, (value >> width.bits()) as u64, width);
        }
    }

    fn double(&self, width: Width) -> u128 {
        if width == Width::B1 {
            u128::from(self.state.low(RAX, Width::B2))
        } else {
            let high = u128::from(self.state.low(RDX, width));
            (high << width.bits()) | u128::from(self.state.low(RAX, width))
        }
    }

    pub(super) fn mul(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let b = self.value(insn, 0, width)?;
        let product = u128::from(self.state.low(RAX, width)) * u128::from(b);
        self.set_double(product, width);
        let spills = product >> width.bits() != 0;
        self.multiply_flags(spills);
        Ok(Flow::Next)
    }

    /// One, two or three operands.
    pub(super) fn imul(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let (a, b) = match insn.op_count() {
            1 => (self.state.low(RAX, width), self.value(insn, 0, width)?),
            2 => (self.value(insn, 0, width)?, self.value(insn, 1, width)?),
            _ => (self.value(insn, 1, width)?, self.value(insn, 2, width)?),
        };
        let product = i128::from(width.extend(a) as i64) * i128::from(width.extend(b) as i64);
        let low = width.cut(product as u64);
        let spills = product != i128::from(width.extend(low) as i64);
        if insn.op_count() == 1 {
            self.set_double(product as u128, width);
        } else {
            self.state.set(insn.op0_register(), low);
        }
        self.multiply_flags(spills);
        Ok(Flow::Next)
    }

    /// CF and OF are defined; the others are not and stay as they were.
    fn multiply_flags(&mut self, spills: bool) {
        self.state.set_flags(CF | OF, when(spills, CF | OF));
    }

    pub(super) fn div(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let divisor = u128::from(self.value(insn, 0, width)?);
        let dividend = self.double(width);
        let quotient = dividend.checked_div(divisor).ok_or(DIVIDE_ERROR)?;
        if quotient > u128::from(width.mask()) {
            return Err(DIVIDE_ERROR);
        }
        self.set_quotient(quotient as u64, (dividend % divisor) as u64, width);
        Ok(Flow::Next)
    }

    pub(super) fn idiv(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let divisor = i128::from(width.extend(self.value(insn, 0, width)?) as i64);
        let shift = 128 - 2 * width.bits();
        let dividend = ((self.double(width) << shift) as i128) >> shift;
        // Also refuses the one quotient that i128 itself can't hold.
        let quotient = dividend.checked_div(divisor).ok_or(DIVIDE_ERROR)?;
        if quotient != i128::from(width.extend(quotient as u64) as i64) {
            return Err(DIVIDE_ERROR);
        }
        let remainder = dividend.wrapping_rem(divisor);
        self.set_quotient(quotient as u64, remainder as u64, width);
        Ok(Flow::Next)
    }

    fn set_quotient(&mut self, quotient: u64, remainder: u64, width: Width) {
        if width == Width::B1 {
            let both = Width::B1.cut(quotient) | (Width::B1.cut(remainder) << 8);
            self.state.set_low(RAX, both, Width::B2);
        } else {
            self.state.set_low(RAX, quotient, width);
            self.state.set_low(RDX, remainder, width);
        }
    }
}
