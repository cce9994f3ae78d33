//! [`ReservedBits`]: for each level, the bits that make a present entry fault. One table for all modes, from which
//! nothing else in the crate deviates.
//!
//! SDM vol. 3A: 4.3 (tables 4-4, 4-5, 4-6), 4.4.1 and 4.4.2 (4-8 to 4-11), 4.5.5 (4-15 to 4-20); APM vol. 2, 5.3 for
//! bit 8. KVM's `__reset_rsvds_bits_mask`.

use super::control::{GuestCpu, PagingRegs, cr4, efer};
use super::entry::GuestPte;
use super::mode::PagingMode;
use crate::shadow::bits::bits;

/// Reserved bits by level (1–5) and whether the entry maps a page of that level.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ReservedBits {
    /// `[level - 1][maps a page]`.
    masks: [[u64; 2]; 5],
}

impl ReservedBits {
    /// The reserved bits under these registers.
    #[must_use]
    pub const fn new(regs: &PagingRegs) -> Self {
        match PagingMode::of(regs) {
            PagingMode::None => Self { masks: [[0; 2]; 5] },
            PagingMode::Bits32 => Self::bits32(regs),
            PagingMode::Pae => Self::pae(regs),
            PagingMode::Level4 | PagingMode::Level5 => Self::long(regs),
        }
    }

    /// The reserved bits of an entry of `level` (1–5).
    #[inline]
    #[must_use]
    pub const fn mask(&self, level: u8, maps_page: bool) -> u64 {
        self.masks[level as usize - 1][maps_page as usize]
    }

    /// Whether a present entry of `level` (1–5) has one set.
    #[inline]
    #[must_use]
    pub const fn violated_by(&self, level: u8, maps_page: bool, entry: GuestPte) -> bool {
        entry.raw() & self.mask(level, maps_page) != 0
    }

    const fn bits32(regs: &PagingRegs) -> Self {
        // Of a 4 MiB page, bits 20-13 are address bits 39-32 as far as there are such; bit 21 never is one.
        let large = if regs.cr4 & cr4::PSE == 0 {
            0
        } else if regs.cpu.pse36 {
            let width = physical_bits(&regs.cpu);
            let width = if width > 40 { 40 } else { width };
            bits(width - 32 + 13, 21)
        } else {
            bits(13, 21)
        };
        Self {
            masks: [[0; 2], [0, large], [0; 2], [0; 2], [0; 2]],
        }
    }

    const fn pae(regs: &PagingRegs) -> Self {
        // Nothing is ignored above the address, except that bit 63 may be NX.
        let high = bits(physical_bits(&regs.cpu), 62) | no_execute(regs);
        let pdpte = pdpte_reserved(&regs.cpu);
        Self {
            masks: [[high; 2], [high, high | bits(13, 20)], [pdpte; 2], [0; 2], [0; 2]],
        }
    }

    const fn long(regs: &PagingRegs) -> Self {
        let high = bits(physical_bits(&regs.cpu), 51) | no_execute(regs);
        let global = if regs.cpu.upper_global_reserved {
            GuestPte::GLOBAL
        } else {
            0
        };
        let gigabyte = if regs.cpu.gigabyte_pages {
            bits(13, 29)
        } else {
            bits(13, 29) | GuestPte::SIZE
        };
        let top = high | global | GuestPte::SIZE;
        Self {
            masks: [
                [high; 2],
                [high, high | bits(13, 20)],
                [high, high | gigabyte],
                [top; 2],
                [top; 2],
            ],
        }
    }
}

/// Reserved bits of a PDPTE of PAE paging: checked when the registers are loaded, not when they are used.
#[must_use]
pub const fn pdpte_reserved(cpu: &GuestCpu) -> u64 {
    bits(1, 2) | bits(5, 8) | bits(physical_bits(cpu), 63)
}

/// NX is reserved where it isn't enabled.
const fn no_execute(regs: &PagingRegs) -> u64 {
    if regs.efer & efer::NXE == 0 {
        GuestPte::NO_EXECUTE
    } else {
        0
    }
}

const fn physical_bits(cpu: &GuestCpu) -> u32 {
    match cpu.physical_bits {
        ..32 => 32,
        53.. => 52,
        bits => bits,
    }
}
