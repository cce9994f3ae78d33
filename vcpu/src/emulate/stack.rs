//! The stack: `push pop pusha popa pushf popf enter leave`, and the primitives that calls use.

use super::environment::{Access, AccessKind, Memory, Platform, Stop};
use super::flags::{self, AC, DF, ID, IF, IOPL, NT, RF, STATUS, TF, VIF, VIP, VM};
use super::state::{RBP, RSP};
use super::width::Width;
use super::{Cpu, Flow};
use iced_x86::{Instruction, OpKind, Register};
use umbra_memslots::Gva;

impl<E: Memory + Platform> Cpu<E> {
    /// The width that a push or pop moves.
    pub(super) fn stack_operand(insn: &Instruction) -> Width {
        Width::of(insn.stack_pointer_increment().unsigned_abs() as usize)
    }

    /// The stack pointer as far as the stack's address width goes.
    #[inline]
    pub(super) fn stack_pointer(&self) -> u64 {
        self.state.low(RSP, self.state.stack_width())
    }

    /// Writes the stack pointer; bits beyond the stack's address width stay (a 32-bit write clears the upper half).
    #[inline]
    pub(super) fn set_stack_pointer(&mut self, value: u64) {
        let width = self.state.stack_width();
        self.state.set_low(RSP, value, width);
    }

    /// Pushes one value. Nothing changes if it faults.
    #[inline]
    pub(super) fn push_value(&mut self, value: u64, width: Width) -> Result<(), Stop> {
        let pointer = self
            .state
            .stack_width()
            .cut(self.stack_pointer().wrapping_sub(width.bytes()));
        let at = self.linear(Register::SS, pointer, width.size(), AccessKind::Write)?;
        self.store(at, value, width)?;
        self.set_stack_pointer(pointer);
        Ok(())
    }

    /// Checks that one value could be pushed.
    pub(super) fn probe_push(&mut self, width: Width) -> Result<(), Stop> {
        let pointer = self
            .state
            .stack_width()
            .cut(self.stack_pointer().wrapping_sub(width.bytes()));
        let at = self.linear(Register::SS, pointer, width.size(), AccessKind::Write)?;
        self.check_alignment(at, width.bytes())?;
        let access = self.access(AccessKind::Write);
        self.env.probe(at, width.size(), access)
    }

    /// The value `depth` bytes above the top of the stack, which is not moved.
    #[inline]
    pub(super) fn peek(&mut self, depth: u64, width: Width) -> Result<u64, Stop> {
        let pointer = self.state.stack_width().cut(self.stack_pointer().wrapping_add(depth));
        let at = self.linear(Register::SS, pointer, width.size(), AccessKind::Read)?;
        self.load(at, width, AccessKind::Read)
    }

    /// Writes words of `step` bytes that are pushed together, all of them or none. A page fault names the first of them
    /// that can't be pushed: the highest.
    pub(super) fn write_pushed(&mut self, at: Gva, bytes: &[u8], step: usize, access: Access) -> Result<(), Stop> {
        match self.write_frame(at, bytes, access) {
            Ok(()) => Ok(()),
            Err(stop) => self.not_pushed(at, bytes.len(), step, access, stop),
        }
    }

    /// As [`Cpu::write_pushed`], for words of 8 bytes.
    #[inline(always)]
    pub(super) fn write_pushed_words<const N: usize>(
        &mut self,
        at: Gva,
        words: [u64; N],
        access: Access,
    ) -> Result<(), Stop> {
        match self.write_frame_words(at, words, access) {
            Ok(()) => Ok(()),
            Err(stop) => self.not_pushed(at, 8 * N, 8, access, stop),
        }
    }

    /// Why words could not be pushed: `stop`, unless one of them says so first.
    #[cold]
    fn not_pushed(&mut self, at: Gva, length: usize, step: usize, access: Access, stop: Stop) -> Result<(), Stop> {
        for offset in (0..length).step_by(step).rev() {
            self.env.probe(at.wrapping_add(offset as u64), step, access)?;
        }
        Err(stop)
    }

    /// Takes `bytes` off the stack.
    #[inline]
    pub(super) fn release(&mut self, bytes: u64) {
        self.set_stack_pointer(self.stack_pointer().wrapping_add(bytes));
    }

    pub(super) fn push(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::stack_operand(insn);
        let value = match insn.op0_kind() {
            OpKind::Register if insn.op0_register().is_segment_register() => {
                u64::from(self.state.segment(insn.op0_register()).selector)
            }
            _ => self.value(insn, 0, width)?,
        };
        self.push_value(value, width)?;
        Ok(Flow::Next)
    }

    pub(super) fn pop(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::stack_operand(insn);
        let value = self.peek(0, width)?;
        let before = self.state.gpr[RSP];
        // An address that uses RSP is computed after the increment, and `pop rsp` ends with the value popped.
        self.release(width.bytes());
        let written = if insn.op0_kind() == OpKind::Register && insn.op0_register().is_segment_register() {
            self.load_segment_register(insn.op0_register(), value as u16)
        } else {
            self.set_value(insn, 0, width, value)
        };
        if written.is_err() {
            self.state.gpr[RSP] = before;
        }
        written?;
        Ok(if insn.op0_register() == Register::SS {
            Flow::NextWithShadow { traps: false }
        } else {
            Flow::Next
        })
    }

    pub(super) fn pusha(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Width::of(insn.stack_pointer_increment().unsigned_abs() as usize / 8);
        let mut bytes = [0; 32];
        // Register 0 was pushed first and lies highest.
        for (place, value) in bytes
            .chunks_exact_mut(width.size())
            .zip(self.state.gpr[..8].iter().rev())
        {
            place.copy_from_slice(&value.to_le_bytes()[..width.size()]);
        }
        let length = 8 * width.size();
        let pointer = self
            .state
            .stack_width()
            .cut(self.stack_pointer().wrapping_sub(length as u64));
        let at = self.linear(Register::SS, pointer, length, AccessKind::Write)?;
        let access = self.access(AccessKind::Write);
        self.write_pushed(at, &bytes[..length], width.size(), access)?;
        self.set_stack_pointer(pointer);
        Ok(Flow::Next)
    }

    pub(super) fn popa(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Width::of(insn.stack_pointer_increment().unsigned_abs() as usize / 8);
        let length = 8 * width.size();
        let mut bytes = [0; 32];
        let at = self.linear(Register::SS, self.stack_pointer(), length, AccessKind::Read)?;
        let access = self.access(AccessKind::Read);
        self.read_memory(at, &mut bytes[..length], access)?;
        for (place, index) in bytes.chunks_exact(width.size()).zip((0..8).rev()) {
            if index != RSP {
                let value = place.iter().rev().fold(0, |n, byte| (n << 8) | u64::from(*byte));
                self.state.set_low(index, value, width);
            }
        }
        self.release(length as u64);
        Ok(Flow::Next)
    }

    pub(super) fn pushf(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::stack_operand(insn);
        if self.state.virtual_8086() && self.state.iopl() < 3 {
            return Err(self.denied_by_iopl(width));
        }
        self.push_value(self.state.rflags & !(VM | RF), width)?;
        Ok(Flow::Next)
    }

    pub(super) fn popf(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::stack_operand(insn);
        if self.state.virtual_8086() && self.state.iopl() < 3 {
            return Err(self.denied_by_iopl(width));
        }
        let value = self.peek(0, width)?;
        self.release(width.bytes());
        let mut mask = STATUS | TF | DF | NT | AC | ID;
        if self.state.cpl() <= self.state.iopl() {
            mask |= IF;
        }
        if self.state.cpl() == 0 {
            mask |= IOPL | VIF | VIP;
        }
        let value = if self.state.cpl() == 0 {
            value & !(VIF | VIP)
        } else {
            value
        };
        self.set_flags_from_stack(mask, value, width);
        Ok(Flow::Next)
    }

    /// Replaces the flags of `mask` that `width` reaches.
    pub(super) fn set_flags_from_stack(&mut self, mask: u64, value: u64, width: Width) {
        self.state
            .set_flags(mask & width.mask() | flags::FIXED, value | flags::FIXED);
    }

    pub(super) fn enter(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let size = u64::from(insn.immediate16());
        let level = u64::from(insn.immediate8_2nd()) & 31;
        // The first push is of RBP with the operand size; iced counts it with the whole frame.
        let width = match insn.code() {
            iced_x86::Code::Enterw_imm16_imm8 => Width::B2,
            iced_x86::Code::Enterd_imm16_imm8 => Width::B4,
            _ => Width::B8,
        };
        let stack = self.state.stack_width();
        let step = width.bytes();
        let top = self.stack_pointer();
        // A frame pointer wider than the stack's addresses keeps ESP's upper bits (measured on Intel silicon).
        let frame = self.state.gpr[RSP] & !stack.mask() | stack.cut(top.wrapping_sub(step));
        let end = stack.cut(top.wrapping_sub((1 + level) * step + size));
        let below = |from: u64, count: u64| stack.cut(from.wrapping_sub(count * step));
        let base = self.state.low(RBP, stack);
        // Everything is checked before anything is written: the frame pointers to copy, the pushes, and a write at the
        // final stack pointer.
        for index in 1..level {
            let at = self.linear(Register::SS, below(base, index), width.size(), AccessKind::Read)?;
            self.load(at, width, AccessKind::Read)?;
        }
        for pointer in (1..=1 + level).map(|index| below(top, index)).chain([end]) {
            let at = self.linear(Register::SS, pointer, width.size(), AccessKind::Write)?;
            self.check_alignment(at, step)?;
            let access = self.access(AccessKind::Write);
            self.env.probe(at, width.size(), access)?;
        }
        // The frames may overlap: each pointer is read after the one before was pushed.
        for index in 0..=level {
            let word = if index == 0 {
                self.state.low(RBP, width)
            } else if index == level {
                frame
            } else {
                let at = self.linear(Register::SS, below(base, index), width.size(), AccessKind::Read)?;
                self.load(at, width, AccessKind::Read)?
            };
            let at = self.linear(Register::SS, below(top, index + 1), width.size(), AccessKind::Write)?;
            self.store(at, word, width)?;
        }
        self.state.set_low(RBP, frame, width);
        self.set_stack_pointer(end);
        Ok(Flow::Next)
    }

    pub(super) fn leave(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = match insn.code() {
            iced_x86::Code::Leavew => Width::B2,
            iced_x86::Code::Leaved => Width::B4,
            _ => Width::B8,
        };
        let stack = self.state.stack_width();
        let pointer = self.state.low(RBP, stack);
        let at = self.linear(Register::SS, pointer, width.size(), AccessKind::Read)?;
        let value = self.load(at, width, AccessKind::Read)?;
        self.set_stack_pointer(pointer.wrapping_add(width.bytes()));
        self.state.set_low(RBP, value, width);
        Ok(Flow::Next)
    }
}
