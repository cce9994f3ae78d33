//! `add adc sub sbb cmp inc dec neg xadd cmpxchg cmpxchg8b cmpxchg16b` and the sign extensions of the accumulator.

use super::environment::{AccessKind, Memory, Platform, Stop};
use super::exception::Exception;
use super::flags::{self, AF, CF, OF, PF, SF, ZF};
use super::state::{RAX, RBX, RCX, RDX};
use super::width::Width;
use super::{Cpu, Flow};
use iced_x86::{Code, Instruction, OpKind};

impl<E: Memory + Platform> Cpu<E> {
    pub(super) fn add(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let b = self.value(insn, 1, width)?;
        self.modify(insn, width, flags::STATUS, |a| flags::add(a, b, 0, width))?;
        Ok(Flow::Next)
    }

    pub(super) fn adc(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let b = self.value(insn, 1, width)?;
        let carry = self.state.rflags & CF;
        self.modify(insn, width, flags::STATUS, |a| flags::add(a, b, carry, width))?;
        Ok(Flow::Next)
    }

    pub(super) fn sub(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let b = self.value(insn, 1, width)?;
        self.modify(insn, width, flags::STATUS, |a| flags::sub(a, b, 0, width))?;
        Ok(Flow::Next)
    }

    pub(super) fn sbb(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let b = self.value(insn, 1, width)?;
        let borrow = self.state.rflags & CF;
        self.modify(insn, width, flags::STATUS, |a| flags::sub(a, b, borrow, width))?;
        Ok(Flow::Next)
    }

    pub(super) fn cmp(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let a = self.value(insn, 0, width)?;
        let b = self.value(insn, 1, width)?;
        self.set_status(flags::sub(a, b, 0, width).1);
        Ok(Flow::Next)
    }

    pub(super) fn inc(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        self.modify(insn, width, PF | AF | ZF | SF | OF, |a| flags::add(a, 1, 0, width))?;
        Ok(Flow::Next)
    }

    pub(super) fn dec(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        self.modify(insn, width, PF | AF | ZF | SF | OF, |a| flags::sub(a, 1, 0, width))?;
        Ok(Flow::Next)
    }

    pub(super) fn neg(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        self.modify(insn, width, flags::STATUS, |a| flags::sub(0, a, 0, width))?;
        Ok(Flow::Next)
    }

    pub(super) fn xadd(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let b = self.value(insn, 1, width)?;
        // With the same register twice, the sum stays: the destination is written last.
        if insn.op0_kind() == OpKind::Register {
            let a = self.state.get(insn.op0_register());
            let (sum, status) = flags::add(a, b, 0, width);
            self.state.set(insn.op1_register(), a);
            self.state.set(insn.op0_register(), sum);
            self.set_status(status);
            return Ok(Flow::Next);
        }
        let old = self.modify(insn, width, flags::STATUS, |a| flags::add(a, b, 0, width))?;
        self.state.set(insn.op1_register(), old);
        Ok(Flow::Next)
    }

    pub(super) fn cmpxchg(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let new = self.value(insn, 1, width)?;
        let expected = self.state.low(RAX, width);
        if insn.op0_kind() == OpKind::Register {
            // A register that is not equal is not written: the upper half of a 32-bit one stays.
            let old = self.state.get(insn.op0_register());
            self.set_status(flags::sub(expected, old, 0, width).1);
            if old == expected {
                self.state.set(insn.op0_register(), new);
            } else {
                self.state.set_low(RAX, old, width);
            }
            return Ok(Flow::Next);
        }
        // Memory is always written, with its old value if they differ: the write is checked either way.
        let old = self.modify(insn, width, flags::STATUS, |old| {
            let status = flags::sub(expected, old, 0, width).1;
            (if old == expected { new } else { old }, status)
        })?;
        if old != expected {
            self.state.set_low(RAX, old, width);
        }
        Ok(Flow::Next)
    }

    pub(super) fn cmpxchg_wide(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let wide = insn.code() == Code::Cmpxchg16b_m128;
        let half = if wide { Width::B8 } else { Width::B4 };
        let length = 2 * half.size();
        let at = self.memory_operand(insn, length, AccessKind::Write)?;
        if wide && !at.get().is_multiple_of(16) {
            return Err(Exception::gp(0).into());
        }
        self.check_alignment(at, length as u64)?;
        let access = self.access(AccessKind::Write);
        let pair = |low: u64, high: u64| {
            let mut bytes = [0; 16];
            bytes[..half.size()].copy_from_slice(&low.to_le_bytes()[..half.size()]);
            bytes[half.size()..length].copy_from_slice(&high.to_le_bytes()[..half.size()]);
            bytes
        };
        let expected = pair(self.state.gpr[RAX], self.state.gpr[RDX]);
        let new = pair(self.state.gpr[RBX], self.state.gpr[RCX]);
        for _ in 0..1 << 16 {
            let mut old = [0; 16];
            self.read_memory(at, &mut old[..length], access)?;
            let equal = old[..length] == expected[..length];
            let write = if equal { &new } else { &old };
            if !self.exchange_memory(at, &old[..length], &write[..length], access)? {
                continue;
            }
            if !equal {
                let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, byte| (n << 8) | u64::from(*byte));
                self.state.set_low(RAX, number(&old[..half.size()]), half);
                self.state.set_low(RDX, number(&old[half.size()..length]), half);
            }
            self.state.set_flags(ZF, flags::when(equal, ZF));
            return Ok(Flow::Next);
        }
        Err(Stop::Contended)
    }

    /// `cbw cwde cdqe`: the accumulator's lower half, sign-extended into the whole.
    pub(super) fn extend_accumulator(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let (from, to) = match insn.code() {
            Code::Cbw => (Width::B1, Width::B2),
            Code::Cwde => (Width::B2, Width::B4),
            _ => (Width::B4, Width::B8),
        };
        let value = from.extend(self.state.gpr[RAX]);
        self.state.set_low(RAX, value, to);
        Ok(Flow::Next)
    }

    /// `cwd cdq cqo`: the accumulator's sign in every bit of the data register.
    pub(super) fn extend_into_data(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = match insn.code() {
            Code::Cwd => Width::B2,
            Code::Cdq => Width::B4,
            _ => Width::B8,
        };
        let negative = self.state.gpr[RAX] & width.sign() != 0;
        self.state.set_low(RDX, if negative { u64::MAX } else { 0 }, width);
        Ok(Flow::Next)
    }
}
