//! [`PagingState`]: the registers, decoded once, in the form in which walks use them.

use super::access::{Access, AccessKind};
use super::control::{PagingRegs, cr0, cr4, efer, rflags};
use super::mode::PagingMode;
use super::reserved::ReservedBits;
use umbra_memslots::Gpa;

/// Everything that a walk depends on besides memory. A value, to be made again when a register changes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PagingState {
    /// The way of translation.
    pub mode: PagingMode,
    /// The reserved bits.
    pub reserved: ReservedBits,
    /// Where the root table is (of PAE: where the PDPTEs were loaded from; of no paging: 0).
    pub root: Gpa,
    /// The PDPTE registers of PAE paging.
    pub pdptes: [u64; 4],
    /// 4 MiB pages with 32-bit paging. (In the other modes the size bit always counts.)
    pub pse: bool,
    /// CR0.WP.
    pub wp: bool,
    /// NX is in force: EFER.NXE, with 64-bit entries.
    pub nx: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// EFLAGS.AC.
    pub ac: bool,
    /// Protection keys are in force: `Some(PKRU)`.
    pub keys: Option<u32>,
}

impl PagingState {
    /// Decodes the registers.
    #[must_use]
    pub const fn new(regs: &PagingRegs) -> Self {
        let mode = PagingMode::of(regs);
        let address = match mode {
            PagingMode::None => 0,
            PagingMode::Bits32 => regs.cr3 & 0xffff_f000,
            PagingMode::Pae => regs.cr3 & 0xffff_ffe0,
            PagingMode::Level4 | PagingMode::Level5 => regs.cr3 & 0x000f_ffff_ffff_f000,
        };
        let paging = !matches!(mode, PagingMode::None);
        let keys = if mode.is_long() && regs.cr4 & cr4::PKE != 0 {
            Some(regs.pkru)
        } else {
            None
        };
        Self {
            mode,
            reserved: ReservedBits::new(regs),
            root: Gpa::new(address),
            pdptes: regs.pdptes,
            pse: regs.cr4 & cr4::PSE != 0,
            wp: regs.cr0 & cr0::WP != 0,
            nx: regs.efer & efer::NXE != 0 && regs.cr4 & cr4::PAE != 0,
            smep: paging && regs.cr4 & cr4::SMEP != 0,
            smap: paging && regs.cr4 & cr4::SMAP != 0,
            ac: regs.rflags & rflags::AC != 0,
            keys,
        }
    }

    /// Whether the protection key of a user-mode page forbids an access (SDM vol. 3A, 4.6.2).
    #[inline]
    #[must_use]
    pub const fn key_denies(&self, key: u8, access: Access) -> bool {
        let Some(pkru) = self.keys else { return false };
        let rights = pkru >> (2 * (key as u32 & 0xf));
        let (access_disabled, write_disabled) = (rights & 1 != 0, rights & 2 != 0);
        match access.kind {
            AccessKind::Fetch => false,
            AccessKind::Read => access_disabled,
            AccessKind::Write => access_disabled || (write_disabled && (access.is_user() || self.wp)),
        }
    }
}
