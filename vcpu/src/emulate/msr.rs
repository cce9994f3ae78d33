//! `rdmsr wrmsr` of the registers that the core itself uses (SDM vol. 4); the platform has the others.

use super::environment::{Memory, Platform, Stop, Translation};
use super::exception::Exception;
use super::state::{RAX, RCX, RDX, cr0, efer};
use super::width::Width;
use super::{Cpu, Flow};
use iced_x86::Instruction;

/// Numbers of the MSRs that instructions use.
pub mod index {
    /// `sysenter`'s code selector.
    pub const SYSENTER_CS: u32 = 0x174;
    /// `sysenter`'s stack.
    pub const SYSENTER_ESP: u32 = 0x175;
    /// `sysenter`'s target.
    pub const SYSENTER_EIP: u32 = 0x176;
    /// Extended features.
    pub const EFER: u32 = 0xc000_0080;
    /// `syscall`'s selectors.
    pub const STAR: u32 = 0xc000_0081;
    /// `syscall`'s target.
    pub const LSTAR: u32 = 0xc000_0082;
    /// `syscall`'s target from compatibility mode.
    pub const CSTAR: u32 = 0xc000_0083;
    /// Flags that `syscall` clears.
    pub const SFMASK: u32 = 0xc000_0084;
    /// FS base.
    pub const FS_BASE: u32 = 0xc000_0100;
    /// GS base.
    pub const GS_BASE: u32 = 0xc000_0101;
    /// The GS base that `swapgs` brings in.
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    /// What `rdtscp` and `rdpid` say.
    pub const TSC_AUX: u32 = 0xc000_0103;
}

const GP0: Stop = Stop::Fault(Exception::gp(0));
/// EFER bits that a guest may set.
const EFER_KNOWN: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE | efer::FFXSR;

impl<E: Memory + Platform> Cpu<E> {
    pub(super) fn rdmsr(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        self.require_cpl0()?;
        let number = self.state.low(RCX, Width::B4) as u32;
        let (sys, msrs) = (&self.state.sys, &self.state.msrs);
        let value = match number {
            index::SYSENTER_CS => msrs.sysenter_cs,
            index::SYSENTER_ESP => msrs.sysenter_esp,
            index::SYSENTER_EIP => msrs.sysenter_eip,
            index::EFER => sys.efer,
            index::STAR => msrs.star,
            index::LSTAR => msrs.lstar,
            index::CSTAR => msrs.cstar,
            index::SFMASK => msrs.sfmask,
            index::FS_BASE => sys.fs.base,
            index::GS_BASE => sys.gs.base,
            index::KERNEL_GS_BASE => msrs.kernel_gs_base,
            index::TSC_AUX => msrs.tsc_aux,
            _ => self.env.read_msr(number)?,
        };
        self.set_edx_eax(value);
        Ok(Flow::Next)
    }

    pub(super) fn wrmsr(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        self.require_cpl0()?;
        let number = self.state.low(RCX, Width::B4) as u32;
        let value = self.state.low(RDX, Width::B4) << 32 | self.state.low(RAX, Width::B4);
        let canonical = self.state.canonical(value);
        let msrs = &mut self.state.msrs;
        match number {
            index::SYSENTER_ESP
            | index::SYSENTER_EIP
            | index::LSTAR
            | index::CSTAR
            | index::FS_BASE
            | index::GS_BASE
            | index::KERNEL_GS_BASE
                if !canonical =>
            {
                return Err(GP0);
            }
            index::SYSENTER_CS => msrs.sysenter_cs = value & 0xffff_ffff,
            index::SYSENTER_ESP => msrs.sysenter_esp = value,
            index::SYSENTER_EIP => msrs.sysenter_eip = value,
            index::EFER => self.write_efer(value)?,
            index::STAR => msrs.star = value,
            index::LSTAR => msrs.lstar = value,
            index::CSTAR => msrs.cstar = value,
            index::SFMASK => msrs.sfmask = value & 0xffff_ffff,
            index::FS_BASE => self.state.sys.fs.base = value,
            index::GS_BASE => self.state.sys.gs.base = value,
            index::KERNEL_GS_BASE => msrs.kernel_gs_base = value,
            index::TSC_AUX => msrs.tsc_aux = value & 0xffff_ffff,
            _ => self.env.write_msr(number, value)?,
        }
        Ok(Flow::Next)
    }

    fn write_efer(&mut self, value: u64) -> Result<(), Stop> {
        let old = self.state.sys.efer;
        let toggles_long = (old ^ value) & efer::LME != 0 && self.state.sys.cr0 & cr0::PG != 0;
        if value & !EFER_KNOWN != 0 || toggles_long {
            return Err(GP0);
        }
        // LMA follows paging, not this write.
        self.state.sys.efer = value & !efer::LMA | old & efer::LMA;
        self.env.translation(Translation::ControlsChanged, &self.state);
        Ok(())
    }

    /// A 64-bit value in EDX:EAX, the upper halves cleared.
    pub(super) fn set_edx_eax(&mut self, value: u64) {
        self.state.gpr[RAX] = value & 0xffff_ffff;
        self.state.gpr[RDX] = value >> 32;
    }
}
