//! [`PageRole`]: what a shadow page is a shadow *as*. One guest table has as many shadows as it has roles.
//!
//! The word is KVM's `union kvm_mmu_page_role` (`arch/x86/include/asm/kvm_host.h`), bit for bit, as its traces print it;
//! three bits of our own are hidden.

use super::bits::BitSpan;
use crate::access_mask::AccessMask;
use core::fmt;
use umbra_memslots::AddressSpaceId;

const LEVEL: BitSpan = BitSpan::fixed(0, 3);
const HAS_4_BYTE_GPTE: BitSpan = BitSpan::fixed(4, 4);
const QUADRANT: BitSpan = BitSpan::fixed(5, 6);
const DIRECT: BitSpan = BitSpan::fixed(7, 7);
const ACCESS: BitSpan = BitSpan::fixed(8, 10);
const EFER_NX: BitSpan = BitSpan::fixed(12, 12);
const CR0_WP: BitSpan = BitSpan::fixed(13, 13);
const SMEP_ANDNOT_WP: BitSpan = BitSpan::fixed(14, 14);
const SMAP_ANDNOT_WP: BitSpan = BitSpan::fixed(15, 15);
const GUEST_MODE: BitSpan = BitSpan::fixed(17, 17);
// Ours, in the bits that KVM leaves unused. Entries are read differently, so their shadows aren't the same.
const CR4_PSE: BitSpan = BitSpan::fixed(20, 20);
const LONG_MODE: BitSpan = BitSpan::fixed(21, 21);
const GUEST_NX: BitSpan = BitSpan::fixed(22, 22);
const SMM: BitSpan = BitSpan::fixed(24, 31);

/// The role of a shadow page. Two vCPUs with equal roles share the page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PageRole(u32);

/// What of a role comes from the vCPU's registers and is the same for all its pages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct VcpuRole {
    /// The guest's entries have four bytes.
    pub has_4_byte_gpte: bool,
    /// Those may map 4 MiB pages.
    pub cr4_pse: bool,
    /// Bits 62–52 of the guest's entries are ignored; in PAE entries they are reserved.
    pub long_mode: bool,
    /// NX is in force in the guest.
    pub efer_nx: bool,
    /// CR0.WP.
    pub cr0_wp: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// It runs a guest of its guest, on a nested table of that.
    pub guest_mode: bool,
    /// Whose memslots.
    pub address_space: AddressSpaceId,
}

impl PageRole {
    /// The least role there is, for ranges of keys.
    pub(super) const MIN: Self = Self(0);
    /// The greatest.
    pub(super) const MAX: Self = Self(u32::MAX);

    /// The role of a root: of `level`, allowing everything.
    #[must_use]
    pub const fn root(vcpu: VcpuRole, level: u8, quadrant: u8, direct: bool) -> Self {
        let raw = LEVEL.put(level as u64)
            | HAS_4_BYTE_GPTE.put(vcpu.has_4_byte_gpte as u64)
            | QUADRANT.put(quadrant as u64)
            | DIRECT.put(direct as u64)
            | ACCESS.put(AccessMask::ALL.bits() as u64)
            // The walker of shadow tables always has NX in force.
            | EFER_NX.put(1)
            | GUEST_NX.put(vcpu.efer_nx as u64)
            | CR0_WP.put(vcpu.cr0_wp as u64)
            | SMEP_ANDNOT_WP.put((vcpu.smep && !vcpu.cr0_wp) as u64)
            | SMAP_ANDNOT_WP.put((vcpu.smap && !vcpu.cr0_wp) as u64)
            | GUEST_MODE.put(vcpu.guest_mode as u64)
            | CR4_PSE.put((vcpu.cr4_pse && vcpu.has_4_byte_gpte) as u64)
            | LONG_MODE.put(vcpu.long_mode as u64)
            | SMM.put(vcpu.address_space.index() as u64);
        #[expect(clippy::cast_possible_truncation, reason = "all spans are within 32 bits")]
        Self(raw as u32)
    }

    /// The role of a page linked from entry `index` of a page with this role (`kvm_mmu_child_role`).
    #[must_use]
    pub const fn child(self, index: u16, access: AccessMask, direct: bool) -> Self {
        let changed = LEVEL.mask() | QUADRANT.mask() | DIRECT.mask() | ACCESS.mask();
        // Two pages shadow one guest table of 1024 entries: which half is the low bit of the entry that leads there.
        let quadrant = if self.has_4_byte_gpte() { index as u64 & 1 } else { 0 };
        let raw = (self.0 as u64 & !changed)
            | LEVEL.put(self.level() as u64 - 1)
            | QUADRANT.put(quadrant)
            | DIRECT.put(direct as u64)
            | ACCESS.put(access.bits() as u64);
        #[expect(clippy::cast_possible_truncation, reason = "all spans are within 32 bits")]
        Self(raw as u32)
    }

    /// One of the spans of up to four bits.
    const fn field(self, span: BitSpan) -> u8 {
        #[expect(clippy::cast_possible_truncation, reason = "four bits at most")]
        let field = span.take(self.0 as u64) as u8;
        field
    }

    /// The word as the kernel has it.
    #[must_use]
    pub const fn word(self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "all spans are within 32 bits")]
        let ours = (CR4_PSE.mask() | LONG_MODE.mask() | GUEST_NX.mask()) as u32;
        self.0 & !ours
    }

    /// The level of the page's entries, 1 to 5.
    #[must_use]
    pub const fn level(self) -> u8 {
        self.field(LEVEL)
    }

    /// Whether it shadows a table of 1024 four-byte entries.
    #[must_use]
    pub const fn has_4_byte_gpte(self) -> bool {
        HAS_4_BYTE_GPTE.take(self.0 as u64) != 0
    }

    /// Which part of such a table: a quarter at level 2, a half at level 1.
    #[must_use]
    pub const fn quadrant(self) -> u8 {
        self.field(QUADRANT)
    }

    /// Whether it shadows no table: the entries follow from the gfn alone.
    #[must_use]
    pub const fn is_direct(self) -> bool {
        DIRECT.take(self.0 as u64) != 0
    }

    /// Whether it shadows a nested table, which leads from addresses of the guest's guest to the guest's.
    #[must_use]
    pub const fn is_guest_mode(self) -> bool {
        GUEST_MODE.take(self.0 as u64) != 0
    }

    /// What the tables above allow.
    #[must_use]
    pub const fn access(self) -> AccessMask {
        AccessMask::from_masked(self.field(ACCESS))
    }
}

impl fmt::Debug for PageRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direct = if self.is_direct() { " direct" } else { "" };
        write!(
            f,
            "PageRole({:#x}: level {} {:?}{direct})",
            self.0,
            self.level(),
            self.access()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_is_the_kernels() {
        let vcpu = VcpuRole {
            has_4_byte_gpte: false,
            cr4_pse: false,
            long_mode: true,
            efer_nx: true,
            cr0_wp: true,
            smep: true,
            smap: true,
            guest_mode: false,
            address_space: AddressSpaceId::Normal,
        };
        // level 4, access 7, nx, wp.
        let root = PageRole::root(vcpu, 4, 0, false);
        assert_eq!(root.word(), 0x3704);
        assert_eq!(root.child(5, AccessMask::USER, true).word(), 0x3483);
        let smm = VcpuRole {
            cr0_wp: false,
            address_space: AddressSpaceId::Smm,
            ..vcpu
        };
        assert_eq!(PageRole::root(smm, 4, 0, false).word(), 0x0100_d704);
        let nested = VcpuRole {
            guest_mode: true,
            ..vcpu
        };
        let root = PageRole::root(nested, 4, 0, false);
        assert_eq!(root.word(), 0x2_3704);
        assert!(root.is_guest_mode() && root.child(5, AccessMask::ALL, false).is_guest_mode());
    }

    #[test]
    fn halves_of_a_1024_entry_table_are_told_apart() {
        let vcpu = VcpuRole {
            has_4_byte_gpte: true,
            cr4_pse: true,
            long_mode: false,
            efer_nx: false,
            cr0_wp: true,
            smep: false,
            smap: false,
            guest_mode: false,
            address_space: AddressSpaceId::Normal,
        };
        let directory = PageRole::root(vcpu, 2, 3, false);
        assert_eq!((directory.level(), directory.quadrant()), (2, 3));
        assert_eq!(directory.child(6, AccessMask::ALL, false).quadrant(), 0);
        assert_eq!(directory.child(7, AccessMask::ALL, false).quadrant(), 1);
    }
}
