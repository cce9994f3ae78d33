//! Far transfers: `jmp`, `call` and `ret` to another code segment, through call gates too (SDM vol. 3A section 5.8).

use super::descriptor::{Descriptor, gp, is_null, not_present, selector_code, system};
use super::environment::{Access, AccessKind, Memory, Platform, Stop};
use super::exception::{self, Exception};
use super::segment::{null_segment, real_segment};
use super::state::RSP;
use super::task::Cause;
use super::width::Width;
use super::{Cpu, Flow};
use crate::regs::Segment;
use iced_x86::{Code, Instruction, OpKind, Register};
use umbra_memslots::Gva;

/// A stack to go to: its segment and its pointer.
pub(super) struct NewStack {
    pub(super) segment: Segment,
    pub(super) pointer: u64,
}

impl<E: Memory + Platform> Cpu<E> {
    /// Runs `operation`; if it stops, the CPU's state is as before. (What it wrote to memory must be checked before.)
    pub(super) fn whole(&mut self, operation: impl FnOnce(&mut Self) -> Result<Flow, Stop>) -> Result<Flow, Stop> {
        let (gpr, rip, rflags, sys) = (self.state.gpr, self.state.rip, self.state.rflags, self.state.sys);
        operation(self).inspect_err(|_| {
            self.state.gpr = gpr;
            self.state.rip = rip;
            self.state.rflags = rflags;
            self.state.sys = sys;
        })
    }

    /// The target of a far branch and its operand width.
    fn far_target(&mut self, insn: &Instruction) -> Result<(u64, u16, Width), Stop> {
        Ok(match insn.op0_kind() {
            OpKind::FarBranch16 => (u64::from(insn.far_branch16()), insn.far_branch_selector(), Width::B2),
            OpKind::FarBranch32 => (u64::from(insn.far_branch32()), insn.far_branch_selector(), Width::B4),
            _ => {
                let (offset, selector) = self.far_operand(insn)?;
                (offset, selector, Width::of(insn.memory_size().size() - 2))
            }
        })
    }

    pub(super) fn jmp_far(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let (offset, selector, _) = self.far_target(insn)?;
        let back = self.next_rip(insn);
        if self.state.real_segments() {
            return self.jump_real(offset, selector);
        }
        self.whole(|cpu| {
            let descriptor = cpu.far_descriptor(selector)?;
            if descriptor.is_code() {
                let cpl = cpu.state.cpl();
                cpu.check_code(descriptor, selector, (selector & 3) as u8, cpl)?;
                return cpu.enter_code(descriptor, selector, cpl, offset);
            }
            if let Some(task) = cpu.task_target(descriptor, selector)? {
                return cpu.switch_task(task, Cause::Jump, back);
            }
            let (target, selector, offset) = cpu.call_gate(descriptor, selector)?;
            let cpl = cpu.state.cpl();
            if !target.is_conforming() && target.dpl() != cpl {
                return Err(gp(selector));
            }
            cpu.enter_code(target, selector, cpl, offset)
        })
    }

    pub(super) fn call_far(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let (offset, selector, width) = self.far_target(insn)?;
        let back = self.next_rip(insn);
        let old_cs = u64::from(self.state.sys.cs.selector);
        self.whole(|cpu| {
            if cpu.state.real_segments() {
                let flow = cpu.jump_real_check(offset)?;
                cpu.push_frame(&[old_cs, back], width, cpu.access(AccessKind::Write))?;
                cpu.set_real_cs(selector);
                return Ok(flow);
            }
            let descriptor = cpu.far_descriptor(selector)?;
            let cpl = cpu.state.cpl();
            if descriptor.is_code() {
                cpu.check_code(descriptor, selector, (selector & 3) as u8, cpl)?;
                let access = cpu.access(AccessKind::Write);
                // The frame is pushed by the rules of the new code, which from compatibility mode may be of 64 bits.
                if descriptor.long() == cpu.state.sys.cs.long {
                    cpu.probe_frame(2, width, access)?;
                }
                let flow = cpu.enter_code(descriptor, selector, cpl, offset)?;
                cpu.push_frame(&[old_cs, back], width, access)?;
                return Ok(flow);
            }
            if let Some(task) = cpu.task_target(descriptor, selector)? {
                return cpu.switch_task(task, Cause::Call, back);
            }
            let width = match descriptor.kind() {
                system::CALL_GATE if cpu.state.long_mode() => Width::B8,
                system::CALL_GATE => Width::B4,
                _ => Width::B2,
            };
            let parameters = descriptor.raw >> 32 & 31;
            let (target, selector, offset) = cpu.call_gate(descriptor, selector)?;
            if target.is_conforming() || target.dpl() == cpl {
                cpu.push_frame(&[old_cs, back], width, cpu.access(AccessKind::Write))?;
                return cpu.enter_code(target, selector, cpl, offset);
            }
            cpu.call_inward(target, selector, offset, width, parameters, [old_cs, back])
        })
    }

    /// A call through a gate to a more privileged level: new stack, old one's pointer and parameters copied.
    fn call_inward(
        &mut self,
        target: Descriptor,
        selector: u16,
        offset: u64,
        width: Width,
        parameters: u64,
        [old_cs, back]: [u64; 2],
    ) -> Result<Flow, Stop> {
        let level = target.dpl();
        let stack = self.stack_from_tss(level)?;
        let mut words = vec![u64::from(self.state.sys.ss.selector), self.state.gpr[RSP]];
        if !self.state.long_mode() {
            for index in (0..parameters).rev() {
                words.push(self.peek(index * width.bytes(), width)?);
            }
        }
        words.extend([old_cs, back]);
        let access = Self::implicit(AccessKind::Write);
        let flow = self.enter_code(target, selector, level, offset)?;
        self.state.sys.ss = stack.segment;
        self.set_stack_pointer(stack.pointer);
        self.push_frame(&words, width, access)?;
        Ok(flow)
    }

    pub(super) fn ret_far(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = match insn.code() {
            Code::Retfw | Code::Retfw_imm16 => Width::B2,
            Code::Retfd | Code::Retfd_imm16 => Width::B4,
            _ => Width::B8,
        };
        let extra = if insn.op_count() == 1 {
            u64::from(insn.immediate16())
        } else {
            0
        };
        let step = width.bytes();
        self.whole(|cpu| {
            let offset = cpu.peek(0, width)?;
            let selector = cpu.peek(step, width)? as u16;
            if cpu.state.real_segments() {
                let flow = cpu.jump_real_check(offset)?;
                cpu.release(2 * step + extra);
                cpu.set_real_cs(selector);
                return Ok(flow);
            }
            let cpl = cpu.state.cpl();
            let rpl = (selector & 3) as u8;
            let descriptor = cpu.return_descriptor(selector)?;
            if rpl == cpl {
                cpu.release(2 * step);
                let flow = cpu.enter_code(descriptor, selector, cpl, offset)?;
                // By the rules of the new code, which from compatibility mode may be of 64 bits.
                cpu.release(extra);
                return Ok(flow);
            }
            let pointer = cpu.peek(2 * step + extra, width)?;
            let stack_selector = cpu.peek(3 * step + extra, width)? as u16;
            cpu.return_outward(descriptor, selector, offset, stack_selector, pointer, extra)
        })
    }

    /// Leaves for a less privileged level: code, stack, and data segments that it must not see are emptied.
    pub(super) fn return_outward(
        &mut self,
        descriptor: Descriptor,
        selector: u16,
        offset: u64,
        stack_selector: u16,
        pointer: u64,
        extra: u64,
    ) -> Result<Flow, Stop> {
        let level = (selector & 3) as u8;
        let stack = self.return_stack(stack_selector, level, descriptor.long() && self.state.long_mode())?;
        let flow = self.enter_code(descriptor, selector, level, offset)?;
        self.load_return_stack(stack, stack_selector, level);
        self.set_stack_pointer(pointer.wrapping_add(extra));
        self.drop_privileged_segments(level);
        Ok(flow)
    }

    /// The stack segment that a return to `level` loads; long mode accepts a null one below level 3, which is `None`.
    #[inline(always)]
    pub(super) fn return_stack(
        &mut self,
        selector: u16,
        level: u8,
        to_long_code: bool,
    ) -> Result<Option<Descriptor>, Stop> {
        let rpl = (selector & 3) as u8;
        if is_null(selector) {
            if to_long_code && level < 3 && rpl == level {
                return Ok(None);
            }
            return Err(Exception::gp(0).into());
        }
        let mut descriptor = self.descriptor(selector, exception::GP)?;
        if rpl != level || !descriptor.is_writable_data() || descriptor.dpl() != level {
            return Err(gp(selector));
        }
        if !descriptor.present() {
            return Err(Exception::with_code(exception::SS, selector_code(selector)).into());
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(Some(descriptor))
    }

    /// Loads SS with what [`Cpu::return_stack`] found.
    #[inline(always)]
    pub(super) fn load_return_stack(&mut self, stack: Option<Descriptor>, selector: u16, level: u8) {
        self.state.sys.ss = match stack {
            Some(descriptor) => descriptor.segment(selector),
            None => null_segment(selector, level),
        };
    }

    /// Data segments that `level` could not have loaded become null.
    pub(super) fn drop_privileged_segments(&mut self, level: u8) {
        for register in [Register::DS, Register::ES, Register::FS, Register::GS] {
            let segment = self.state.segment(register);
            let conforming = segment.kind & 12 == 12;
            if !segment.unusable && segment.dpl < level && !conforming {
                *self.state.segment_mut(register) = null_segment(0, 0);
            }
        }
    }

    /// The descriptor of a far branch's selector.
    #[inline(always)]
    fn far_descriptor(&mut self, selector: u16) -> Result<Descriptor, Stop> {
        if is_null(selector) {
            return Err(Exception::gp(0).into());
        }
        self.descriptor(selector, exception::GP)
    }

    /// Whether code at `cpl` may go to a code segment with requested level `rpl`.
    pub(super) fn check_code(&self, descriptor: Descriptor, selector: u16, rpl: u8, cpl: u8) -> Result<(), Stop> {
        let allowed = if descriptor.is_conforming() {
            descriptor.dpl() <= cpl
        } else {
            rpl <= cpl && descriptor.dpl() == cpl
        };
        if !descriptor.is_code() || !allowed {
            return Err(gp(selector));
        }
        self.check_code_present(descriptor, selector)
    }

    #[inline]
    fn check_code_present(&self, descriptor: Descriptor, selector: u16) -> Result<(), Stop> {
        if self.state.long_mode() && descriptor.long() && descriptor.db() {
            return Err(gp(selector));
        }
        if descriptor.present() {
            Ok(())
        } else {
            Err(not_present(selector))
        }
    }

    /// The code descriptor that a return names.
    #[inline(always)]
    pub(super) fn return_descriptor(&mut self, selector: u16) -> Result<Descriptor, Stop> {
        let descriptor = self.far_descriptor(selector)?;
        let rpl = (selector & 3) as u8;
        let level = if descriptor.is_conforming() {
            descriptor.dpl() <= rpl
        } else {
            descriptor.dpl() == rpl
        };
        if rpl < self.state.cpl() || !descriptor.is_code() || !level {
            return Err(gp(selector));
        }
        self.check_code_present(descriptor, selector)?;
        Ok(descriptor)
    }

    /// Resolves a call gate to the code descriptor, selector and offset behind it.
    fn call_gate(&mut self, gate: Descriptor, selector: u16) -> Result<(Descriptor, u16, u64), Stop> {
        let long = self.state.long_mode();
        let is_gate = gate.kind() == system::CALL_GATE || (!long && gate.kind() == system::CALL_GATE_16);
        if gate.non_system() || !is_gate {
            return Err(gp(selector));
        }
        let cpl = self.state.cpl();
        if gate.dpl() < cpl || gate.dpl() < (selector & 3) as u8 {
            return Err(gp(selector));
        }
        if !gate.present() {
            return Err(not_present(selector));
        }
        let mut offset = gate.gate_offset();
        if gate.kind() == system::CALL_GATE_16 {
            offset &= 0xffff;
        }
        if long {
            let high = self.descriptor_high(gate)?;
            if high >> 40 & 0x1f != 0 {
                return Err(gp(selector));
            }
            offset |= high << 32;
        }
        let target_selector = gate.gate_selector();
        let target = self.far_descriptor(target_selector)?;
        if !target.is_code() || target.dpl() > cpl || (long && (!target.long() || target.db())) {
            return Err(gp(target_selector));
        }
        if !target.present() {
            return Err(not_present(target_selector));
        }
        Ok((target, target_selector, offset))
    }

    /// Loads CS with `cpl` as its privilege and goes to `offset` in it.
    pub(super) fn enter_code(
        &mut self,
        mut descriptor: Descriptor,
        selector: u16,
        cpl: u8,
        offset: u64,
    ) -> Result<Flow, Stop> {
        self.check_offset(&mut descriptor, offset)?;
        self.load_code(descriptor, selector, cpl);
        Ok(Flow::Jump(offset))
    }

    /// Whether `offset` can be gone to in a code segment, which is then used.
    #[inline(always)]
    pub(super) fn check_offset(&mut self, descriptor: &mut Descriptor, offset: u64) -> Result<(), Stop> {
        let long = self.state.long_mode() && descriptor.long();
        let reachable = if long {
            self.state.canonical(offset)
        } else {
            offset <= u64::from(descriptor.segment(0).limit)
        };
        if !reachable {
            return Err(Exception::gp(0).into());
        }
        self.mark_accessed(descriptor)
    }

    /// Loads CS with `cpl` as its privilege.
    #[inline(always)]
    pub(super) fn load_code(&mut self, descriptor: Descriptor, selector: u16, cpl: u8) {
        self.state.sys.cs = descriptor.segment(selector & !3 | u16::from(cpl));
        // The privilege level lives in SS.DPL; a change of level loads SS right after.
        self.state.sys.ss.dpl = cpl;
    }

    fn jump_real_check(&self, offset: u64) -> Result<Flow, Stop> {
        if offset > u64::from(self.state.sys.cs.limit) {
            return Err(Exception::gp(0).into());
        }
        Ok(Flow::Jump(offset))
    }

    fn jump_real(&mut self, offset: u64, selector: u16) -> Result<Flow, Stop> {
        let flow = self.jump_real_check(offset)?;
        self.set_real_cs(selector);
        Ok(flow)
    }

    /// Loads CS in real or virtual-8086 mode.
    pub(super) fn set_real_cs(&mut self, selector: u16) {
        self.state.sys.cs = real_segment(&self.state.sys.cs, selector, self.state.virtual_8086());
    }

    /// The stack for `level` that the task state names (SDM vol. 3A section 7.2.1, 7.7).
    pub(super) fn stack_from_tss(&mut self, level: u8) -> Result<NewStack, Stop> {
        let task = self.state.sys.tr;
        let access = Self::implicit(AccessKind::Read);
        let invalid = Stop::Fault(Exception::with_code(exception::TS, selector_code(task.selector)));
        if self.state.long_mode() {
            let pointer = self.long_stack(4 + 8 * u64::from(level))?;
            return Ok(NewStack {
                segment: null_segment(u16::from(level), level),
                pointer,
            });
        }
        let wide = matches!(task.kind, 9 | 11);
        let (offset, width) = if wide {
            (4 + 8 * u64::from(level), Width::B4)
        } else {
            (2 + 4 * u64::from(level), Width::B2)
        };
        if offset + width.bytes() + 1 > u64::from(task.limit) {
            return Err(invalid);
        }
        let at = Gva::new(self.wrap_linear(task.base.wrapping_add(offset)));
        let pointer = self.load_as(at, width, access)?;
        let selector = self.load_as(at.wrapping_add(width.bytes()), Width::B2, access)? as u16;
        let bad = Stop::Fault(Exception::with_code(exception::TS, selector_code(selector)));
        if is_null(selector) {
            return Err(bad);
        }
        let mut descriptor = self.descriptor(selector, exception::TS)?;
        if (selector & 3) as u8 != level || !descriptor.is_writable_data() || descriptor.dpl() != level {
            return Err(bad);
        }
        if !descriptor.present() {
            return Err(Exception::with_code(exception::SS, selector_code(selector)).into());
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(NewStack {
            segment: descriptor.segment(selector),
            pointer,
        })
    }

    /// A stack pointer at `offset` of a 64-bit TSS.
    #[inline(always)]
    pub(super) fn long_stack(&mut self, offset: u64) -> Result<u64, Stop> {
        let task = self.state.sys.tr;
        if offset + 7 > u64::from(task.limit) {
            return Err(Exception::with_code(exception::TS, selector_code(task.selector)).into());
        }
        let at = Gva::new(task.base.wrapping_add(offset));
        let pointer = self.load_as(at, Width::B8, Self::implicit(AccessKind::Read))?;
        if !self.state.canonical(pointer) {
            return Err(Exception::with_code(exception::SS, 0).into());
        }
        Ok(pointer)
    }

    /// Checks that a frame of `count` words could be pushed.
    fn probe_frame(&mut self, count: u64, width: Width, access: Access) -> Result<(), Stop> {
        let length = count * width.bytes();
        let bottom = self.state.stack_width().cut(self.stack_pointer().wrapping_sub(length));
        let at = self.linear(Register::SS, bottom, length as usize, AccessKind::Write)?;
        self.env.probe(at, length as usize, access)
    }

    /// Pushes `words`, the first one first, all of them or none.
    pub(super) fn push_frame(&mut self, words: &[u64], width: Width, access: Access) -> Result<(), Stop> {
        let step = width.size();
        let length = words.len() * step;
        // Only a call gate's parameters need more.
        let (mut few, mut many) = ([0; 80], Vec::new());
        let bytes = match few.get_mut(..length) {
            Some(bytes) => bytes,
            None => {
                many.resize(length, 0);
                &mut many[..]
            }
        };
        for (bytes, word) in bytes.chunks_exact_mut(step).zip(words.iter().rev()) {
            bytes.copy_from_slice(&word.to_le_bytes()[..step]);
        }
        let bottom = self
            .state
            .stack_width()
            .cut(self.stack_pointer().wrapping_sub(length as u64));
        let at = self.linear(Register::SS, bottom, length, AccessKind::Write)?;
        self.write_pushed(at, bytes, step, access)?;
        self.set_stack_pointer(bottom);
        Ok(())
    }
}
