//! The modes of CPL 3 code, and what the core's state looks like in them.

use super::layout::{HOLE, PAD, PAD_16, slot};
use super::segments;
use umbra_vcpu::emulate::CpuState;
use umbra_vcpu::emulate::state::{cr0, cr4, efer};
use umbra_vcpu::regs::{DescriptorTable, Segment};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// 64-bit mode.
    Long,
    /// Compatibility mode, a 32-bit code segment.
    Compat32,
    /// Compatibility mode, a 16-bit code segment.
    Compat16,
}

impl Mode {
    /// Default size of operands, as decoders count.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Long => 64,
            Self::Compat32 => 32,
            Self::Compat16 => 16,
        }
    }

    pub const fn is_long(self) -> bool {
        matches!(self, Self::Long)
    }

    /// General-purpose and XMM registers that instructions can name.
    pub const fn registers(self) -> u64 {
        if self.is_long() { 16 } else { 8 }
    }

    /// RIP of the instruction in slot `index`.
    pub const fn hole(self, index: usize) -> u64 {
        if self.is_long() { slot(index) + HOLE } else { HOLE }
    }

    /// Where a near branch in slot `index` should go.
    pub const fn pad(self, index: usize) -> u64 {
        match self {
            Self::Long => slot(index) + PAD,
            Self::Compat32 => PAD,
            Self::Compat16 => PAD_16,
        }
    }

    /// The core's state but for what a case brings along.
    pub fn template(self) -> CpuState {
        let mut state = CpuState::default();
        let sys = &mut state.sys;
        let flat = Segment {
            dpl: 3,
            present: true,
            non_system: true,
            kind: 3,
            selector: segments::USER_DATA,
            ..Segment::default()
        };
        sys.cs = Segment {
            long: true,
            kind: 11,
            selector: segments::USER_CODE_64,
            ..flat
        };
        (sys.ss, sys.ds, sys.es) = (flat, flat, flat);
        if !self.is_long() {
            sys.gdt = DescriptorTable {
                base: segments::GDT,
                limit: segments::GDT_LIMIT,
            };
            sys.ldt = Segment {
                selector: 0x50,
                base: segments::LDT,
                limit: (8 * segments::ENTRIES - 1) as u32,
                kind: 2,
                present: true,
                ..Segment::default()
            };
        }
        sys.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::NE | cr0::ET | cr0::MP;
        sys.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
        sys.efer = efer::LMA | efer::LME | efer::SCE | efer::NXE;
        state
    }
}
