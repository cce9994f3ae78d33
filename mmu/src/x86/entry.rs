//! [`GuestPte`]: an entry of a guest's page table, 4 or 8 bytes, zero-extended (SDM vol. 3A, tables 4-5, 4-6, 4-8 to
//! 4-11 and 4-14 to 4-20).

use crate::access_mask::AccessMask;
use crate::shadow::bits::bits;
use core::fmt;
use umbra_memslots::Gpa;

/// A guest's page-table entry, of any level and mode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct GuestPte(u64);

impl GuestPte {
    /// Bit 0: present.
    pub const PRESENT: u64 = 1;
    /// Bit 1: R/W.
    pub const WRITABLE: u64 = 1 << 1;
    /// Bit 2: U/S.
    pub const USER: u64 = 1 << 2;
    /// Bit 5: accessed.
    pub const ACCESSED: u64 = 1 << 5;
    /// Bit 6: dirty (of an entry that maps a page).
    pub const DIRTY: u64 = 1 << 6;
    /// Bit 7: the entry maps a large page (above level 1, where the mode allows).
    pub const SIZE: u64 = 1 << 7;
    /// Bit 8: global (of an entry that maps a page).
    pub const GLOBAL: u64 = 1 << 8;
    /// Bit 63: execute disable (64-bit entries, if EFER.NXE).
    pub const NO_EXECUTE: u64 = 1 << 63;

    /// Wraps the bits.
    #[inline]
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The bits.
    #[inline]
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Whether all bits of `mask` are set.
    #[inline]
    #[must_use]
    pub const fn has(self, mask: u64) -> bool {
        self.0 & mask == mask
    }

    /// The address in a 64-bit entry, bits 51–12.
    #[inline]
    #[must_use]
    pub const fn address(self) -> Gpa {
        Gpa::new(self.0 & bits(12, 51))
    }

    /// The address in a 32-bit entry that isn't of a 4 MiB page, bits 31–12.
    #[inline]
    #[must_use]
    pub const fn address32(self) -> Gpa {
        Gpa::new(self.0 & bits(12, 31))
    }

    /// The address in the PDE of a 4 MiB page: bits 31–22, and with PSE-36 bits 39–32 in bits 20–13.
    #[inline]
    #[must_use]
    pub const fn address_4m(self) -> Gpa {
        Gpa::new((self.0 & bits(22, 31)) | ((self.0 & bits(13, 20)) << 19))
    }

    /// What the entry permits by itself. Its NX bit counts if it is set: where it isn't enabled it is reserved, and a
    /// 32-bit entry has none.
    #[inline]
    #[must_use]
    pub const fn permits(self) -> AccessMask {
        let write = ((self.0 & Self::WRITABLE != 0) as u8) * AccessMask::WRITE.bits();
        let user = ((self.0 & Self::USER != 0) as u8) * AccessMask::USER.bits();
        let exec = ((self.0 & Self::NO_EXECUTE == 0) as u8) * AccessMask::EXEC.bits();
        AccessMask::from_masked(write | user | exec)
    }

    /// The protection key, bits 62–59.
    #[inline]
    #[must_use]
    pub const fn protection_key(self) -> u8 {
        (self.0 >> 59 & 0xf) as u8
    }
}

impl fmt::Debug for GuestPte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestPte({:#x})", self.0)
    }
}
