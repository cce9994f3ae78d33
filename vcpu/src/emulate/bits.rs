//! Bits: `bt bts btr btc bsf bsr popcnt lzcnt tzcnt`.

use super::environment::{AccessKind, Memory, Platform, Stop};
use super::flags::{CF, ZF, when};
use super::width::Width;
use super::{Cpu, Flow};
use iced_x86::{Instruction, OpKind};
use umbra_memslots::Gva;

impl<E: Memory + Platform> Cpu<E> {
    pub(super) fn bt(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let (bit, at) = self.bit_operand(insn, width, AccessKind::Read)?;
        let value = match at {
            Some(at) => self.load(at, width, AccessKind::Read)?,
            None => self.state.get(insn.op0_register()),
        };
        self.state.set_flags(CF, value >> bit & 1);
        Ok(Flow::Next)
    }

    pub(super) fn bts(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.change_bit(insn, |value, bit| value | bit)
    }

    pub(super) fn btr(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.change_bit(insn, |value, bit| value & !bit)
    }

    pub(super) fn btc(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.change_bit(insn, |value, bit| value ^ bit)
    }

    fn change_bit(&mut self, insn: &Instruction, change: impl Fn(u64, u64) -> u64) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let (bit, at) = self.bit_operand(insn, width, AccessKind::Write)?;
        let change = |old: u64| (change(old, 1 << bit), old >> bit & 1);
        let carry = match at {
            Some(at) => self.modify_memory(at, width, insn.has_lock_prefix(), change)?.1,
            None => {
                let (new, carry) = change(self.state.get(insn.op0_register()));
                self.state.set(insn.op0_register(), new);
                carry
            }
        };
        self.state.set_flags(CF, carry);
        Ok(Flow::Next)
    }

    /// The bit's number within its operand, and where the operand is if it is in memory. A bit number in a register is
    /// signed and reaches far beyond the operand named (SDM vol. 1 section 3.7.6, vol. 2 BT).
    fn bit_operand(&mut self, insn: &Instruction, width: Width, kind: AccessKind) -> Result<(u32, Option<Gva>), Stop> {
        let number = self.value(insn, 1, width)?;
        let bit = number as u32 & (width.bits() - 1);
        if insn.op0_kind() == OpKind::Register {
            return Ok((bit, None));
        }
        let mut offset = self.effective_address(insn);
        if insn.op1_kind() == OpKind::Register {
            let units = width.extend(number) as i64 >> width.bits().trailing_zeros();
            let distance = units.wrapping_mul(width.bytes() as i64) as u64;
            offset = Self::address_width(insn).cut(offset.wrapping_add(distance));
        }
        let at = self.linear(self.operand_segment(insn), offset, width.size(), kind)?;
        Ok((bit, Some(at)))
    }

    pub(super) fn bsf(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.scan(insn, |value| u64::from(value.trailing_zeros()))
    }

    pub(super) fn bsr(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.scan(insn, |value| u64::from(63 - value.leading_zeros()))
    }

    /// A source of zero leaves the destination alone (documented by AMD, done by all).
    fn scan(&mut self, insn: &Instruction, find: impl Fn(u64) -> u64) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let value = self.value(insn, 1, width)?;
        if value != 0 {
            self.state.set(insn.op0_register(), find(value));
        }
        self.state.set_flags(ZF, when(value == 0, ZF));
        Ok(Flow::Next)
    }

    pub(super) fn popcnt(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let value = self.value(insn, 1, width)?;
        self.state.set(insn.op0_register(), u64::from(value.count_ones()));
        self.set_status(when(value == 0, ZF));
        Ok(Flow::Next)
    }

    pub(super) fn lzcnt(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.count_zeros(insn, |value, width| {
            value.leading_zeros().saturating_sub(64 - width.bits())
        })
    }

    pub(super) fn tzcnt(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.count_zeros(insn, |value, width| value.trailing_zeros().min(width.bits()))
    }

    fn count_zeros(&mut self, insn: &Instruction, count: impl Fn(u64, Width) -> u32) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let value = self.value(insn, 1, width)?;
        let zeros = u64::from(count(value, width));
        self.state.set(insn.op0_register(), zeros);
        self.state
            .set_flags(CF | ZF, when(value == 0, CF) | when(zeros == 0, ZF));
        Ok(Flow::Next)
    }
}
