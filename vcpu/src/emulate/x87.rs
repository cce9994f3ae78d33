//! x87 control: what an operating system does with the unit besides saving and restoring it (SDM vol. 1 section 8.1).

use super::environment::{Memory, Platform, Stop};
use super::exception::{self, Exception};
use super::state::{RAX, cr0};
use super::width::Width;
use super::{Cpu, Flow};
use iced_x86::{Instruction, OpKind};

/// Exception flags, ES and B of the status word.
const EXCEPTIONS: u16 = 0x80ff;
/// ES: an unmasked exception waits.
const ERROR_SUMMARY: u16 = 0x80;

impl<E: Memory + Platform> Cpu<E> {
    /// #NM if the unit is absent or belongs to another task.
    fn check_x87(&self) -> Result<(), Stop> {
        if self.state.sys.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(Exception::new(exception::NM).into());
        }
        Ok(())
    }

    pub(super) fn fninit(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        self.check_x87()?;
        self.state.fpu.init_x87();
        Ok(Flow::Next)
    }

    pub(super) fn fnclex(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        self.check_x87()?;
        self.state.fpu.status &= !EXCEPTIONS;
        Ok(Flow::Next)
    }

    /// `emms`: every register is empty. AMD's processors also set the top of the stack to 0.
    pub(super) fn emms(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        self.check_mmx()?;
        self.state.fpu.tags = 0;
        self.state.fpu.set_top(0);
        Ok(Flow::Next)
    }

    /// `fwait`: #NM only if CR0.MP asks for it together with TS.
    pub(super) fn fwait(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        if self.state.sys.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
            return Err(Exception::new(exception::NM).into());
        }
        self.check_x87_error()?;
        Ok(Flow::Next)
    }

    /// #MF if an exception waits and is reported that way.
    pub(super) fn check_x87_error(&self) -> Result<(), Stop> {
        if self.state.fpu.status & ERROR_SUMMARY != 0 && self.state.sys.cr0 & cr0::NE != 0 {
            return Err(Exception::new(exception::MF).into());
        }
        Ok(())
    }

    pub(super) fn fnstcw(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_x87()?;
        let value = u64::from(self.state.fpu.control);
        self.set_value(insn, 0, Width::B2, value)?;
        Ok(Flow::Next)
    }

    pub(super) fn fnstsw(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_x87()?;
        let value = u64::from(self.state.fpu.status);
        if insn.op0_kind() == OpKind::Register {
            self.state.set_low(RAX, value, Width::B2);
        } else {
            self.set_value(insn, 0, Width::B2, value)?;
        }
        Ok(Flow::Next)
    }

    pub(super) fn fldcw(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_x87()?;
        self.check_x87_error()?;
        let value = self.value(insn, 0, Width::B2)? as u16;
        let fpu = &mut self.state.fpu;
        fpu.control = value & 0x1f7f | 0x40;
        // A flag whose mask was just taken away waits from now on.
        let waits = fpu.status & !fpu.control & 0x3f != 0;
        fpu.status &= !(ERROR_SUMMARY | 0x8000);
        if waits {
            fpu.status |= ERROR_SUMMARY | 0x8000;
        }
        Ok(Flow::Next)
    }
}
