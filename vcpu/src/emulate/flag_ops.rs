//! Flags by name: `clc stc cmc cld std cli sti clac stac lahf sahf salc`.

use super::environment::{Memory, Platform, Stop, Translation};
use super::exception::Exception;
use super::flags::{self, AC, AF, CF, DF, IF, PF, SF, ZF};
use super::state::{RAX, cr4};
use super::width::Width;
use super::{Cpu, Flow};
use iced_x86::{Instruction, Mnemonic, Register};

impl<E: Memory + Platform> Cpu<E> {
    /// The flags that any program may change.
    pub(super) fn flag_op(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let (mask, value) = match insn.mnemonic() {
            Mnemonic::Clc => (CF, 0),
            Mnemonic::Stc => (CF, CF),
            Mnemonic::Cmc => (CF, !self.state.rflags),
            Mnemonic::Cld => (DF, 0),
            _ => (DF, DF),
        };
        self.state.set_flags(mask, value);
        Ok(Flow::Next)
    }

    /// What stops an instruction for which IOPL is too low. With CR4.VME, or CR4.PVI outside virtual-8086 mode, there is
    /// a virtual interrupt flag for those of 16 bits (SDM vol. 3B sections 21.3, 21.4), which the core does not have.
    pub(super) fn denied_by_iopl(&self, width: Width) -> Stop {
        let virtual_flag = match (self.state.virtual_8086(), self.state.cpl()) {
            (true, _) => cr4::VME,
            (false, 3) => cr4::PVI,
            _ => 0,
        };
        if width == Width::B2 && self.state.sys.cr4 & virtual_flag != 0 {
            Stop::Unsupported
        } else {
            Exception::gp(0).into()
        }
    }

    /// `cli` and `sti`, by IOPL.
    pub(super) fn interrupt_flag(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        if self.state.protected() && self.state.cpl() > self.state.iopl() {
            // Their operand size makes no difference.
            return Err(self.denied_by_iopl(Width::B2));
        }
        let set = insn.mnemonic() == Mnemonic::Sti;
        // Interrupts wait for the instruction after an `sti` that did enable them.
        let shadow = set && !self.state.flag(IF);
        self.state.set_flags(IF, flags::when(set, IF));
        Ok(if shadow {
            Flow::NextWithShadow { traps: true }
        } else {
            Flow::Next
        })
    }

    /// `clac` and `stac`.
    pub(super) fn alignment_flag(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        if self.state.cpl() != 0 {
            return Err(Exception::UD.into());
        }
        self.state
            .set_flags(AC, flags::when(insn.mnemonic() == Mnemonic::Stac, AC));
        self.env.translation(Translation::PrivilegeChanged, &self.state);
        Ok(Flow::Next)
    }

    pub(super) fn lahf(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        self.state.set(Register::AH, self.state.rflags & 0xff | flags::FIXED);
        Ok(Flow::Next)
    }

    pub(super) fn sahf(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        let value = self.state.get(Register::AH);
        self.state.set_flags(CF | PF | AF | ZF | SF, value);
        Ok(Flow::Next)
    }

    pub(super) fn salc(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        let value = if self.state.flag(CF) { 0xff } else { 0 };
        self.state.set_low(RAX, value, Width::B1);
        Ok(Flow::Next)
    }
}
