//! [`SlotRequest`]: a change as the ioctl takes it, unchecked; and [`SlotChange`]: what a checked one amounts to.

use crate::addr::{Gpa, Hva};
use crate::generation::Generation;
use crate::slot::{AddressSpaceId, GuestMemfd, MemSlot, SlotFlags, SlotId};

/// The argument of `KVM_SET_USER_MEMORY_REGION` or, with `guest_memfd`, of `KVM_SET_USER_MEMORY_REGION2`.
///
/// Every value of every field is allowed here; [`crate::SlotTable::apply`] is who checks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SlotRequest {
    /// Address space in the upper 16 bits, slot id in the lower.
    pub slot: u32,
    /// `KVM_MEM_*` bits.
    pub flags: u32,
    /// Where in the guest.
    pub guest_phys_addr: Gpa,
    /// Size in bytes; 0 deletes.
    pub memory_size: u64,
    /// Where in the host.
    pub userspace_addr: Hva,
    /// Which of the two ioctls: `None` is the old one, which knows only the flags LOG_DIRTY and READ_ONLY. The contents
    /// matter only with [`SlotFlags::GUEST_MEMFD`].
    pub guest_memfd: Option<GuestMemfd>,
}

impl SlotRequest {
    /// Creates, moves or re-flags a slot, whichever the state of the table makes of it.
    pub const fn set(slot: u32, flags: SlotFlags, at: Gpa, bytes: u64, hva: Hva) -> Self {
        Self {
            slot,
            flags: flags.bits(),
            guest_phys_addr: at,
            memory_size: bytes,
            userspace_addr: hva,
            guest_memfd: None,
        }
    }

    /// Deletes a slot.
    pub const fn delete(slot: u32) -> Self {
        Self::set(slot, SlotFlags::empty(), Gpa::new(0), 0, Hva::new(0))
    }

    /// The request that would bring about a state like `slot`'s: what a mirror passes to the kernel.
    pub fn describing(slot: &MemSlot) -> Self {
        Self {
            slot: slot.id().in_space(slot.space()),
            flags: (slot.flags() - SlotFlags::INVALID).bits(),
            guest_phys_addr: slot.range().start().base(),
            memory_size: slot.bytes(),
            userspace_addr: slot.hva(),
            guest_memfd: slot.guest_memfd(),
        }
    }

    /// The lower half of the slot number.
    pub const fn id(&self) -> SlotId {
        SlotId::new((self.slot & 0xffff) as u16)
    }

    /// The upper half of the slot number: an address space's index, if there is such a space.
    pub const fn space_index(&self) -> u16 {
        (self.slot >> 16) as u16
    }
}

/// A checked change (`enum kvm_mr_change`), with the slots as they are before and after.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SlotChange {
    /// A slot appears (`KVM_MR_CREATE`).
    Create {
        /// The new slot.
        new: MemSlot,
    },
    /// A slot disappears (`KVM_MR_DELETE`).
    Delete {
        /// The slot as it was.
        old: MemSlot,
    },
    /// A slot goes to other frames, perhaps with other flags (`KVM_MR_MOVE`).
    Move {
        /// The slot as it was.
        old: MemSlot,
        /// The slot as it will be.
        new: MemSlot,
    },
    /// A slot stays and gets other flags (`KVM_MR_FLAGS_ONLY`).
    SetFlags {
        /// The slot as it was.
        old: MemSlot,
        /// The slot as it will be.
        new: MemSlot,
    },
}

impl SlotChange {
    /// The slot before, if there was one.
    pub fn before(&self) -> Option<&MemSlot> {
        match self {
            Self::Create { .. } => None,
            Self::Delete { old } | Self::Move { old, .. } | Self::SetFlags { old, .. } => Some(old),
        }
    }

    /// The slot after, if there is one.
    pub fn after(&self) -> Option<&MemSlot> {
        match self {
            Self::Delete { .. } => None,
            Self::Create { new } | Self::Move { new, .. } | Self::SetFlags { new, .. } => Some(new),
        }
    }

    /// The slot after, or the one before if there is none after: for what both have in common.
    fn either(&self) -> &MemSlot {
        match self {
            Self::Delete { old } => old,
            Self::Create { new } | Self::Move { new, .. } | Self::SetFlags { new, .. } => new,
        }
    }

    /// The address space that changes.
    pub fn space(&self) -> AddressSpaceId {
        self.either().space()
    }

    /// The slot that changes.
    pub fn id(&self) -> SlotId {
        self.either().id()
    }

    /// The ioctl argument that makes this change.
    pub fn request(&self) -> SlotRequest {
        match self {
            Self::Delete { old } => SlotRequest::delete(old.id().in_space(old.space())),
            Self::Create { new } | Self::Move { new, .. } | Self::SetFlags { new, .. } => SlotRequest::describing(new),
        }
    }

    /// The change that undoes this one.
    #[must_use]
    pub fn inverse(&self) -> Self {
        match self.clone() {
            Self::Create { new } => Self::Delete { old: new },
            Self::Delete { old } => Self::Create { new: old },
            Self::Move { old, new } => Self::Move { old: new, new: old },
            Self::SetFlags { old, new } => Self::SetFlags { old: new, new: old },
        }
    }
}

/// What an accepted request did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// The change, or `None` if the request described the present state.
    pub change: Option<SlotChange>,
    /// The generation of the address space now.
    pub generation: Generation,
}
