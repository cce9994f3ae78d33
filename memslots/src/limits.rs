//! [`SlotLimits`]: what one host's kernel accepts, as data, so that the rules can be checked for any host on any host.

use crate::addr::{Gfn, Hva};
use crate::slot::{AddressSpaceId, SlotFlags};

/// The most pages of one slot: 2^31 - 1 (`KVM_MEM_MAX_NR_PAGES`).
pub const MAX_PAGES_PER_SLOT: u64 = (1 << 31) - 1;

/// The limits of a host, all fields plain so that they can be filled from its capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotLimits {
    /// Slots per address space (`KVM_CAP_NR_MEMSLOTS`, 32764 on x86). At most 32767 are used of it.
    pub max_slots: u16,
    /// Address spaces (`KVM_CAP_MULTI_ADDRESS_SPACE`): 1, or 2 with system management mode. Other values are taken as
    /// the nearer of the two.
    pub address_spaces: u8,
    /// Whether read-only slots exist (`KVM_CAP_READONLY_MEM`).
    pub read_only: bool,
    /// Whether the virtual machine can use guest_memfd (`KVM_CAP_GUEST_MEMFD` and a VM type that has it).
    pub guest_memfd: bool,
    /// The highest frame that a slot may cover (`kvm_mmu_max_gfn`): the host's physical width with two-level paging,
    /// 2^40 - 1 with shadow paging.
    pub max_gfn: Gfn,
    /// One past the highest address of user memory, for the kernel's `access_ok`: a slot's memory must end at or
    /// below it. `0x7fff_ffff_f000` on x86-64 with 4-level paging. Tagged addresses always lie above it.
    pub user_address_limit: Hva,
    /// How dirty pages are logged.
    pub dirty_log: DirtyLogMode,
}

/// How a virtual machine logs dirty pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DirtyLogMode {
    /// A bitmap per slot, all clean at first; getting it clears it.
    #[default]
    GetAndClear,
    /// A bitmap per slot that only an explicit clear resets (`KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`).
    ManualClear {
        /// Whether a new bitmap is all dirty (`KVM_DIRTY_LOG_INITIALLY_SET`).
        initially_set: bool,
    },
    /// A ring per vCPU (`KVM_CAP_DIRTY_LOG_RING`): slots have no bitmap.
    Ring,
}

impl SlotLimits {
    /// A present-day x86-64 kernel: 32764 slots in 2 spaces, read-only slots, no guest_memfd, frames up to 2^40 - 1,
    /// 47-bit user addresses, get-and-clear dirty logs.
    pub const X86_64: Self = Self {
        max_slots: 32764,
        address_spaces: AddressSpaceId::COUNT,
        read_only: true,
        guest_memfd: false,
        max_gfn: Gfn::from_masked((1 << 40) - 1),
        user_address_limit: Hva::new(0x7fff_ffff_f000),
        dirty_log: DirtyLogMode::GetAndClear,
    };

    /// The highest frame of a guest-physical width in bits (`kvm_mmu_max_gfn` with two-level paging). Widths outside
    /// 13..=52 are taken as the nearer of the two.
    pub const fn max_gfn_of_width(bits: u32) -> Gfn {
        let bits = if bits < 13 {
            13
        } else if bits > 52 {
            52
        } else {
            bits
        };
        Gfn::from_masked((1 << (bits - 12)) - 1)
    }

    /// [`SlotLimits::max_slots`] as it is used.
    pub(crate) fn slots(&self) -> u16 {
        self.max_slots.min(0x7fff)
    }

    /// [`SlotLimits::address_spaces`] as it is used.
    pub(crate) fn spaces(&self) -> u8 {
        self.address_spaces.clamp(1, AddressSpaceId::COUNT)
    }

    /// The flags that the host accepts together with `flags` (`check_memory_region_flags`).
    pub(crate) fn allowed_flags(&self, flags: SlotFlags) -> SlotFlags {
        let mut allowed = SlotFlags::LOG_DIRTY;
        if self.read_only {
            allowed |= SlotFlags::READ_ONLY;
        }
        if self.guest_memfd {
            allowed |= SlotFlags::GUEST_MEMFD;
        }
        if flags.contains(SlotFlags::GUEST_MEMFD) {
            // Private memory can be neither logged nor read-only.
            allowed -= SlotFlags::LOG_DIRTY | SlotFlags::READ_ONLY;
        }
        allowed
    }
}

impl Default for SlotLimits {
    fn default() -> Self {
        Self::X86_64
    }
}
