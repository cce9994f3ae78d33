//! `syscall sysret sysenter sysexit swapgs` (SDM vol. 2, APM vol. 2 section 6.1).

use super::environment::{Memory, Platform, Stop, Translation};
use super::exception::Exception;
use super::flags::{FIXED, IF, RF, VM};
use super::state::{RCX, RDX, RSP, efer};
use super::width::Width;
use super::{Cpu, Flow};
use crate::regs::Segment;
use iced_x86::{Code, Instruction};

impl<E: Memory + Platform> Cpu<E> {
    pub(super) fn syscall(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.call_system(self.next_rip(insn))?;
        self.env.translation(Translation::PrivilegeChanged, &self.state);
        Ok(Flow::Done)
    }

    /// `syscall`, which returns to `next`. RIP and RF are as they are to be.
    #[inline]
    pub(crate) fn call_system(&mut self, next: u64) -> Result<(), Stop> {
        let sys = &self.state.sys;
        if sys.efer & efer::SCE == 0 || !self.state.protected() {
            return Err(Exception::UD.into());
        }
        if !self.state.long_mode() {
            return Err(Stop::Unsupported);
        }
        let msrs = &self.state.msrs;
        let target = if self.state.long_code() { msrs.lstar } else { msrs.cstar };
        let selector = (msrs.star >> 32) as u16 & !3;
        let cleared = msrs.sfmask | RF;
        self.state.gpr[RCX] = next;
        self.state.gpr[11] = self.state.rflags & !RF;
        self.state.sys.cs = flat_code(selector, 0, true);
        self.state.sys.ss = flat_data(selector.wrapping_add(8), 0);
        self.state.rflags = self.state.rflags & !cleared | FIXED;
        self.state.rip = target;
        Ok(())
    }

    pub(super) fn sysret(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.return_from_system(insn.code() == Code::Sysretq)?;
        self.env.translation(Translation::PrivilegeChanged, &self.state);
        Ok(Flow::Done)
    }

    /// `sysret`, to 64-bit code if `long`. RIP and RF are as they are to be.
    #[inline]
    pub(crate) fn return_from_system(&mut self, long: bool) -> Result<(), Stop> {
        if self.state.sys.efer & efer::SCE == 0 || !self.state.protected() {
            return Err(Exception::UD.into());
        }
        if self.state.cpl() != 0 {
            return Err(Exception::gp(0).into());
        }
        if !self.state.long_mode() {
            return Err(Stop::Unsupported);
        }
        let target = self.state.gpr[RCX];
        if long && !self.state.canonical(target) {
            return Err(Exception::gp(0).into());
        }
        let base = (self.state.msrs.star >> 48) as u16;
        let code = if long { base.wrapping_add(16) } else { base };
        self.state.sys.cs = flat_code(code | 3, 3, long);
        self.state.sys.ss = flat_data(base.wrapping_add(8) | 3, 3);
        self.state.rflags = self.state.gpr[11] & 0x003c_7fd7 & !(RF | VM) | FIXED;
        self.state.rip = if long { target } else { target & 0xffff_ffff };
        Ok(())
    }

    pub(super) fn sysenter(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        let msrs = self.state.msrs;
        if !self.state.protected() || msrs.sysenter_cs & 0xfffc == 0 {
            return Err(Exception::gp(0).into());
        }
        let long = self.state.long_mode();
        let width = if long { Width::B8 } else { Width::B4 };
        let selector = msrs.sysenter_cs as u16 & !3;
        self.state.set_flags(VM | IF | RF, 0);
        self.state.sys.cs = flat_code(selector, 0, long);
        self.state.sys.ss = flat_data(selector.wrapping_add(8), 0);
        self.state.gpr[RSP] = width.cut(msrs.sysenter_esp);
        self.state.rip = width.cut(msrs.sysenter_eip);
        self.env.translation(Translation::PrivilegeChanged, &self.state);
        Ok(Flow::Done)
    }

    pub(super) fn sysexit(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let msrs = self.state.msrs;
        if !self.state.protected() || msrs.sysenter_cs & 0xfffc == 0 || self.state.cpl() != 0 {
            return Err(Exception::gp(0).into());
        }
        let long = insn.code() == Code::Sysexitq;
        let (target, stack) = (self.state.gpr[RDX], self.state.gpr[RCX]);
        if long && !(self.state.canonical(target) && self.state.canonical(stack)) {
            return Err(Exception::gp(0).into());
        }
        let selector = msrs.sysenter_cs as u16 & !3;
        let width = if long { Width::B8 } else { Width::B4 };
        let code = selector.wrapping_add(if long { 32 } else { 16 });
        self.state.sys.cs = flat_code(code | 3, 3, long);
        self.state.sys.ss = flat_data(code.wrapping_add(8) | 3, 3);
        self.state.gpr[RSP] = width.cut(stack);
        self.state.rip = width.cut(target);
        self.env.translation(Translation::PrivilegeChanged, &self.state);
        Ok(Flow::Done)
    }

    pub(super) fn swapgs(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        self.swap_gs_bases()?;
        Ok(Flow::Next)
    }

    /// `swapgs`, but for RIP.
    #[inline]
    pub(crate) fn swap_gs_bases(&mut self) -> Result<(), Stop> {
        if !self.state.long_code() {
            return Err(Exception::UD.into());
        }
        if self.state.cpl() != 0 {
            return Err(Exception::gp(0).into());
        }
        core::mem::swap(&mut self.state.sys.gs.base, &mut self.state.msrs.kernel_gs_base);
        Ok(())
    }
}

/// The flat code segment that these instructions load without looking at memory.
const fn flat_code(selector: u16, dpl: u8, long: bool) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        kind: 11,
        dpl,
        non_system: true,
        present: true,
        available: false,
        long,
        db: !long,
        granularity: true,
        unusable: false,
    }
}

/// The flat stack segment that these instructions load.
const fn flat_data(selector: u16, dpl: u8) -> Segment {
    Segment {
        kind: 3,
        long: false,
        db: true,
        ..flat_code(selector, dpl, false)
    }
}
