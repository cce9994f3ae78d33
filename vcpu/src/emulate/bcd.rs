//! Decimal arithmetic of the legacy modes: `aaa aas aam aad daa das` (SDM vol. 2).

use super::environment::{Memory, Platform, Stop};
use super::exception::{self, Exception};
use super::flags::{self, AF, CF, when};
use super::state::RAX;
use super::width::Width;
use super::{Cpu, Flow};
use iced_x86::{Instruction, Mnemonic, Register};

impl<E: Memory + Platform> Cpu<E> {
    /// `daa` and `das`.
    pub(super) fn decimal_packed(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let old = self.state.get(Register::AL);
        let subtract = insn.mnemonic() == Mnemonic::Das;
        let low = old & 15 > 9 || self.state.flag(AF);
        let high = old > 0x99 || self.state.flag(CF);
        let correction = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
        let new = if subtract {
            old.wrapping_sub(correction)
        } else {
            old + correction
        } & 0xff;
        // A borrow out of the low digit's correction counts as well.
        let carry = high || (subtract && low && old < 6);
        self.state.set_low(RAX, new, Width::B1);
        self.set_status(flags::of_result(new, Width::B1) | when(low, AF) | when(carry, CF));
        Ok(Flow::Next)
    }

    /// `aaa` and `aas`.
    pub(super) fn decimal_unpacked(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let old = self.state.low(RAX, Width::B2);
        let adjust = old & 15 > 9 || self.state.flag(AF);
        let new = match (adjust, insn.mnemonic()) {
            (false, _) => old,
            (true, Mnemonic::Aas) => old.wrapping_sub(0x106),
            (true, _) => old + 0x106,
        };
        self.state.set_low(RAX, new & 0xff0f, Width::B2);
        self.state.set_flags(AF | CF, when(adjust, AF | CF));
        Ok(Flow::Next)
    }

    pub(super) fn aam(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let base = u64::from(insn.immediate8());
        if base == 0 {
            return Err(Exception::new(exception::DE).into());
        }
        let value = self.state.get(Register::AL);
        self.state
            .set_low(RAX, ((value / base) << 8) | (value % base), Width::B2);
        self.set_status(flags::of_result(value % base, Width::B1));
        Ok(Flow::Next)
    }

    pub(super) fn aad(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let base = u64::from(insn.immediate8());
        let value = (self.state.get(Register::AL) + self.state.get(Register::AH) * base) & 0xff;
        self.state.set_low(RAX, value, Width::B2);
        self.set_status(flags::of_result(value, Width::B1));
        Ok(Flow::Next)
    }
}
