//! x87 control: what an operating system does with the unit besides saving and restoring it (SDM vol. 1 section 8.1).

use super::super::environment::{Memory, Platform, Stop};
use super::super::exception::{self, Exception};
use super::super::state::{RAX, cr0};
use super::super::width::Width;
use super::super::{Cpu, Flow};
use super::{BUSY, ERROR_SUMMARY};
use iced_x86::{Instruction, OpKind};

/// Exception flags, ES and B of the status word.
const EXCEPTIONS: u16 = 0x80ff;

impl<E: Memory + Platform> Cpu<E> {
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
        self.summarise();
        Ok(Flow::Next)
    }

    /// ES and B as flags and masks say: a flag whose mask was taken away waits from now on.
    pub(super) fn summarise(&mut self) {
        let fpu = &mut self.state.fpu;
        fpu.status &= !(ERROR_SUMMARY | BUSY);
        if fpu.status & !fpu.control & 0x3f != 0 {
            fpu.status |= ERROR_SUMMARY | BUSY;
        }
    }
}
