//! `iret` in every mode (SDM vol. 2 IRET).

use super::environment::{Memory, Platform, Stop, Translation};
use super::exception::{Exception, debug_cause};
use super::flags::{AC, DF, ID, IF, IOPL, NT, RF, STATUS, TF, VIF, VIP, VM};
use super::segment::real_segment;
use super::state::RSP;
use super::width::Width;
use super::{Cpu, Flow};
use crate::regs::Segment;
use iced_x86::{Code, Instruction, Register};

impl<E: Memory + Platform> Cpu<E> {
    pub(super) fn iret(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = match insn.code() {
            Code::Iretw => Width::B2,
            Code::Iretd => Width::B4,
            _ => Width::B8,
        };
        let single_step = self.state.flag(TF);
        let back = self.next_rip(insn);
        let flow = if self.state.long_code() && !self.state.real_segments() {
            self.iret_long(width)
        } else {
            self.whole(|cpu| {
                if cpu.state.real_segments() {
                    cpu.iret_real(width)
                } else if cpu.state.flag(NT) {
                    cpu.return_to_task(back)
                } else {
                    cpu.iret_protected(width)
                }
            })
        }?;
        self.env.handler_returned();
        let Flow::Jump(target) = flow else { return Ok(flow) };
        self.state.rip = target;
        if single_step {
            self.state.pending_debug |= debug_cause::SINGLE_STEP;
        }
        self.env.translation(Translation::PrivilegeChanged, &self.state);
        Ok(Flow::Done)
    }

    fn iret_real(&mut self, width: Width) -> Result<Flow, Stop> {
        let virtual_8086 = self.state.virtual_8086();
        if virtual_8086 && self.state.iopl() < 3 {
            return Err(self.denied_by_iopl(width));
        }
        let step = width.bytes();
        let target = self.peek(0, width)?;
        let selector = self.peek(step, width)? as u16;
        let flags = self.peek(2 * step, width)?;
        if target > 0xffff {
            return Err(Exception::gp(0).into());
        }
        self.release(3 * step);
        self.set_real_cs(selector);
        let iopl = if virtual_8086 { 0 } else { IOPL };
        self.set_flags_from_stack(STATUS | TF | IF | DF | NT | RF | AC | ID | iopl, flags, width);
        Ok(Flow::Jump(target))
    }

    fn iret_protected(&mut self, width: Width) -> Result<Flow, Stop> {
        let step = width.bytes();
        let target = self.peek(0, width)?;
        let selector = self.peek(step, width)? as u16;
        let flags = self.peek(2 * step, width)?;
        let cpl = self.state.cpl();
        if flags & VM != 0 && width == Width::B4 && cpl == 0 && !self.state.long_mode() {
            return self.iret_to_virtual(target, flags);
        }
        let level = (selector & 3) as u8;
        let descriptor = self.return_descriptor(selector)?;
        let mask = self.flags_of_return();
        let flow = if level != cpl {
            let pointer = self.peek(3 * step, width)?;
            let stack_selector = self.peek(4 * step, width)? as u16;
            self.return_outward(descriptor, selector, target, stack_selector, pointer, 0)?
        } else {
            self.release(3 * step);
            self.enter_code(descriptor, selector, level, target)?
        };
        self.set_flags_from_stack(mask, flags, width);
        Ok(flow)
    }

    /// Which flags the program may change is decided by the level it comes from.
    fn flags_of_return(&self) -> u64 {
        let cpl = self.state.cpl();
        let mut mask = STATUS | TF | DF | NT | RF | AC | ID;
        if cpl <= self.state.iopl() {
            mask |= IF;
        }
        if cpl == 0 {
            mask |= IOPL | VIF | VIP;
        }
        mask
    }

    fn iret_long(&mut self, width: Width) -> Result<Flow, Stop> {
        if self.state.flag(NT) {
            return Err(Exception::gp(0).into());
        }
        let step = width.bytes();
        let target = self.peek(0, width)?;
        let selector = self.peek(step, width)? as u16;
        let flags = self.peek(2 * step, width)?;
        self.return_from_handler(target, selector, flags, width, |cpu| {
            let pointer = cpu.peek(3 * step, width)?;
            Ok((pointer, cpu.peek(4 * step, width)? as u16))
        })?;
        Ok(Flow::Jump(target))
    }

    /// `iretq` in 64-bit mode without NT and TF, when the frame has been read.
    #[inline]
    pub(crate) fn return_with(
        &mut self,
        target: u64,
        selector: u64,
        flags: u64,
        pointer: u64,
        stack_selector: u64,
    ) -> Result<(), Stop> {
        let stack = (pointer, stack_selector as u16);
        self.return_from_handler(target, selector as u16, flags, Width::B8, |_| Ok(stack))?;
        self.state.rip = target;
        self.env.handler_returned();
        Ok(())
    }

    /// `iret` in 64-bit mode, where the old stack (which `read_stack` reads) is always in the frame; but for RIP. All is
    /// found out before anything in the CPU changes.
    #[inline(always)]
    fn return_from_handler(
        &mut self,
        target: u64,
        selector: u16,
        flags: u64,
        width: Width,
        read_stack: impl FnOnce(&mut Self) -> Result<(u64, u16), Stop>,
    ) -> Result<(), Stop> {
        let cpl = self.state.cpl();
        let level = (selector & 3) as u8;
        let mut descriptor = self.return_descriptor(selector)?;
        let (pointer, stack_selector) = read_stack(self)?;
        let to_long = descriptor.long();
        let stack = self.return_stack(stack_selector, level, to_long)?;
        self.check_offset(&mut descriptor, target)?;
        let mask = self.flags_of_return();
        self.load_code(descriptor, selector, level);
        self.load_return_stack(stack, stack_selector, level);
        // Going to 64-bit code loads all of RSP, to other code as much as its stack uses.
        if to_long {
            self.state.gpr[RSP] = pointer;
        } else {
            self.set_stack_pointer(pointer);
        }
        if level != cpl {
            self.drop_privileged_segments(level);
        }
        self.set_flags_from_stack(mask, flags, width);
        Ok(())
    }

    fn iret_to_virtual(&mut self, target: u64, flags: u64) -> Result<Flow, Stop> {
        let mut words = [0; 6];
        for (index, word) in words.iter_mut().enumerate() {
            *word = self.peek(4 * (3 + index as u64), Width::B4)?;
        }
        let [pointer, ss, es, ds, fs, gs] = words;
        let selector = self.peek(4, Width::B4)? as u16;
        if target > 0xffff {
            return Err(Exception::gp(0).into());
        }
        let mask = STATUS | TF | IF | DF | NT | RF | AC | ID | IOPL | VM | VIF | VIP;
        self.set_flags_from_stack(mask, flags, Width::B4);
        let empty = Segment::default();
        self.state.sys.cs = real_segment(&empty, selector, true);
        for (register, value) in [
            (Register::SS, ss),
            (Register::ES, es),
            (Register::DS, ds),
            (Register::FS, fs),
            (Register::GS, gs),
        ] {
            *self.state.segment_mut(register) = real_segment(&empty, value as u16, true);
        }
        self.state.gpr[RSP] = pointer;
        Ok(Flow::Jump(target))
    }
}
