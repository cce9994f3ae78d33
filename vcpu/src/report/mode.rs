//! Which kind of code a processor in a given state executes.

use crate::regs::SystemRegs;

/// CR0.PE, EFER.LMA; RFLAGS.VM.
const CR0_PE: u64 = 1;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_VM: u64 = 1 << 17;

/// An operating mode (SDM vol. 3A section 2.2), as far as it decides how bytes become instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuMode {
    /// Real-address mode.
    Real,
    /// Virtual-8086 mode.
    Virtual8086,
    /// Protected mode, 16-bit code segment.
    Protected16,
    /// Protected mode, 32-bit code segment.
    Protected32,
    /// Long mode, compatibility sub-mode, 16-bit code segment.
    Compatibility16,
    /// Long mode, compatibility sub-mode, 32-bit code segment.
    Compatibility32,
    /// 64-bit mode.
    Long,
}

impl CpuMode {
    /// The mode of a state.
    pub const fn of(system: &SystemRegs, rflags: u64) -> Self {
        if system.cr0 & CR0_PE == 0 {
            return Self::Real;
        }
        if system.efer & EFER_LMA != 0 {
            return match (system.cs.long, system.cs.db) {
                (true, _) => Self::Long,
                (false, true) => Self::Compatibility32,
                (false, false) => Self::Compatibility16,
            };
        }
        match (rflags & RFLAGS_VM != 0, system.cs.db) {
            (true, _) => Self::Virtual8086,
            (false, true) => Self::Protected32,
            (false, false) => Self::Protected16,
        }
    }

    /// Default operand width of code in bits: 16, 32 or 64.
    pub const fn code_bits(self) -> u32 {
        match self {
            Self::Real | Self::Virtual8086 | Self::Protected16 | Self::Compatibility16 => 16,
            Self::Protected32 | Self::Compatibility32 => 32,
            Self::Long => 64,
        }
    }

    /// The linear address of an instruction pointer.
    pub const fn linear(self, cs_base: u64, rip: u64) -> u64 {
        match self {
            Self::Long => rip,
            _ => cs_base.wrapping_add(rip) & 0xffff_ffff,
        }
    }

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Real => "real mode",
            Self::Virtual8086 => "virtual-8086 mode",
            Self::Protected16 => "16-bit protected mode",
            Self::Protected32 => "32-bit protected mode",
            Self::Compatibility16 => "16-bit compatibility mode",
            Self::Compatibility32 => "32-bit compatibility mode",
            Self::Long => "64-bit mode",
        }
    }
}
