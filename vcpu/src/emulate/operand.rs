//! Reading, writing and read-modify-writing an instruction's integer operands.

use super::Cpu;
use super::environment::{AccessKind, Memory, Platform, Stop};
use super::flags;
use super::state::register_width;
use super::width::Width;
use iced_x86::{Instruction, OpKind};

/// How often a locked instruction retries against other CPUs before it lets the driver look at the world again.
const LOCK_ATTEMPTS: usize = 1 << 16;

impl<E: Memory + Platform> Cpu<E> {
    /// The width of operand `index`: of its register, or of the memory it names.
    #[inline]
    pub(super) fn width(insn: &Instruction, index: u32) -> Width {
        match insn.op_kind(index) {
            OpKind::Register => register_width(insn.op_register(index)),
            _ => Width::of(insn.memory_size().size()),
        }
    }

    /// The value of operand `index`, cut to `width`. Immediates are sign-extended as the instruction says.
    #[inline]
    pub(super) fn value(&mut self, insn: &Instruction, index: u32, width: Width) -> Result<u64, Stop> {
        match insn.op_kind(index) {
            OpKind::Register => Ok(width.cut(self.state.get(insn.op_register(index)))),
            OpKind::Memory => {
                let at = self.memory_operand(insn, width.size(), AccessKind::Read)?;
                self.load(at, width, AccessKind::Read)
            }
            _ => Ok(width.cut(insn.immediate(index))),
        }
    }

    /// Writes operand `index`.
    #[inline]
    pub(super) fn set_value(&mut self, insn: &Instruction, index: u32, width: Width, value: u64) -> Result<(), Stop> {
        if insn.op_kind(index) == OpKind::Register {
            self.state.set(insn.op_register(index), value);
            return Ok(());
        }
        let at = self.memory_operand(insn, width.size(), AccessKind::Write)?;
        self.store(at, value, width)
    }

    /// Replaces operand 0 by what `change` makes of it, atomically if the instruction is locked, and then the flags in
    /// `mask` by those that `change` gave. Returns the old value.
    #[inline]
    pub(super) fn modify(
        &mut self,
        insn: &Instruction,
        width: Width,
        mask: u64,
        change: impl Fn(u64) -> (u64, u64),
    ) -> Result<u64, Stop> {
        if insn.op0_kind() == OpKind::Register {
            let register = insn.op0_register();
            let old = self.state.get(register);
            let (new, status) = change(old);
            self.state.set(register, new);
            self.state.set_flags(mask, status);
            return Ok(old);
        }
        let at = self.memory_operand(insn, width.size(), AccessKind::Write)?;
        let (old, status) = self.modify_memory(at, width, insn.has_lock_prefix(), change)?;
        self.state.set_flags(mask, status);
        Ok(old)
    }

    /// Replaces an integer in memory by what `change` makes of it. Returns the old value and `change`'s flags.
    #[inline]
    pub(super) fn modify_memory(
        &mut self,
        at: umbra_memslots::Gva,
        width: Width,
        locked: bool,
        change: impl Fn(u64) -> (u64, u64),
    ) -> Result<(u64, u64), Stop> {
        self.check_alignment(at, width.bytes())?;
        let access = self.access(AccessKind::Write);
        if !locked {
            let old = self.load_as(at, width, access)?;
            let (new, status) = change(old);
            self.store_as(at, new, width, access)?;
            return Ok((old, status));
        }
        for _ in 0..LOCK_ATTEMPTS {
            let old = self.load_as(at, width, access)?;
            let (new, status) = change(old);
            let (before, after) = (old.to_le_bytes(), new.to_le_bytes());
            let length = width.size();
            if self.exchange_memory(at, &before[..length], &after[..length], access)? {
                return Ok((old, status));
            }
        }
        Err(Stop::Contended)
    }

    /// Sets the status flags CF, PF, AF, ZF, SF and OF.
    #[inline]
    pub(super) fn set_status(&mut self, status: u64) {
        self.state.set_flags(flags::STATUS, status);
    }
}
