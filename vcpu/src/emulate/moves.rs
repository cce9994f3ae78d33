//! Moves that compute nothing: `mov movzx movsx movsxd movbe bswap xchg cmovcc setcc lea xlat`, and `nop`s.

use super::environment::{AccessKind, Memory, Platform, Stop};
use super::flags;
use super::state::{RAX, register_width};
use super::width::Width;
use super::{Cpu, Flow};
use iced_x86::{Instruction, OpKind};

impl<E: Memory + Platform> Cpu<E> {
    pub(super) fn mov(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let value = self.value(insn, 1, width)?;
        self.set_value(insn, 0, width, value)?;
        Ok(Flow::Next)
    }

    pub(super) fn movzx(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let value = self.value(insn, 1, Self::width(insn, 1))?;
        self.state.set(insn.op0_register(), value);
        Ok(Flow::Next)
    }

    pub(super) fn movsx(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let from = Self::width(insn, 1);
        let value = from.extend(self.value(insn, 1, from)?);
        self.state.set(insn.op0_register(), value);
        Ok(Flow::Next)
    }

    pub(super) fn movbe(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let value = self.value(insn, 1, width)?;
        let swapped = value.swap_bytes() >> (64 - width.bits());
        self.set_value(insn, 0, width, swapped)?;
        Ok(Flow::Next)
    }

    /// Of a 16-bit register the result is undefined; it becomes zero, as on processors.
    pub(super) fn bswap(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let register = insn.op0_register();
        let value = self.state.get(register);
        let swapped = match register_width(register) {
            Width::B8 => value.swap_bytes(),
            Width::B4 => u64::from((value as u32).swap_bytes()),
            _ => 0,
        };
        self.state.set(register, swapped);
        Ok(Flow::Next)
    }

    /// With memory, locked whether there is a prefix or not.
    pub(super) fn xchg(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let register = insn.op1_register();
        let new = self.state.get(register);
        if insn.op0_kind() == OpKind::Register {
            let old = self.state.get(insn.op0_register());
            self.state.set(insn.op0_register(), new);
            self.state.set(register, old);
            return Ok(Flow::Next);
        }
        let at = self.memory_operand(insn, width.size(), AccessKind::Write)?;
        let (old, _) = self.modify_memory(at, width, true, |_| (new, 0))?;
        self.state.set(register, old);
        Ok(Flow::Next)
    }

    /// The source is read, and the upper half of a 32-bit destination cleared, whether the condition holds or not.
    pub(super) fn cmov(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let value = self.value(insn, 1, width)?;
        let register = insn.op0_register();
        let value = if self.condition(insn) {
            value
        } else {
            self.state.get(register)
        };
        self.state.set(register, value);
        Ok(Flow::Next)
    }

    pub(super) fn setcc(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let value = u64::from(self.condition(insn));
        self.set_value(insn, 0, Width::B1, value)?;
        Ok(Flow::Next)
    }

    /// Whether the condition in the instruction's name holds.
    pub(super) fn condition(&self, insn: &Instruction) -> bool {
        // iced counts its condition codes from 1 in the encoding's order.
        flags::condition((insn.condition_code() as u8).wrapping_sub(1) & 15, self.state.rflags)
    }

    pub(super) fn lea(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let address = self.effective_address(insn);
        self.state.set(insn.op0_register(), address);
        Ok(Flow::Next)
    }

    pub(super) fn xlat(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let at = self.memory_operand(insn, 1, AccessKind::Read)?;
        let value = self.load(at, Width::B1, AccessKind::Read)?;
        self.state.set_low(RAX, value, Width::B1);
        Ok(Flow::Next)
    }

    #[expect(clippy::unnecessary_wraps, reason = "one of the handlers")]
    pub(super) fn mfence(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        self.env.fence();
        Ok(Flow::Next)
    }

    #[expect(clippy::unnecessary_wraps, reason = "one of the handlers")]
    pub(super) fn pause(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        self.env.pause();
        Ok(Flow::Next)
    }

    /// `nop`, `endbr`, prefetches, `lfence`, `sfence`: loads and stores keep their order anyway.
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "one of the handlers")]
    pub(super) fn nothing(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        Ok(Flow::Next)
    }
}
