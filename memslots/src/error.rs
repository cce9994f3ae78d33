//! [`SlotError`]: why a change of slots was refused: the rule, the slots, the ranges, and the kernel's error number.

use crate::addr::{Gfn, Gpa, Hva};
use crate::limits::MAX_PAGES_PER_SLOT;
use crate::observer::ObserverError;
use crate::range::GfnRange;
use crate::slot::{AddressSpaceId, SlotFlags, SlotId};
use alloc::boxed::Box;

/// The error numbers with which Linux refuses a change of slots.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Errno {
    /// `EIO`: only for an observer that gave no number.
    Io,
    /// `ENOMEM`
    NoMemory,
    /// `EEXIST`
    Exists,
    /// `EINVAL`
    Invalid,
    /// Another number, from an observer.
    Other(i32),
}

impl Errno {
    /// The number on Linux, positive.
    pub const fn raw(self) -> i32 {
        match self {
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Exists => 17,
            Self::Invalid => 22,
            Self::Other(raw) => raw,
        }
    }
}

/// Why flags were refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FlagRule {
    /// The old ioctl takes only LOG_DIRTY and READ_ONLY.
    OldIoctl,
    /// No host knows the flag, or it is internal to the kernel.
    Unknown,
    /// This host does not have it.
    NotOnThisHost,
    /// Private memory (GUEST_MEMFD) can be neither logged nor read-only.
    NotWithGuestMemfd,
}

impl core::fmt::Display for FlagRule {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::OldIoctl => "KVM_SET_USER_MEMORY_REGION takes only LOG_DIRTY and READ_ONLY",
            Self::Unknown => "there are no such flags",
            Self::NotOnThisHost => "this host does not support them",
            Self::NotWithGuestMemfd => "a slot with GUEST_MEMFD can be neither dirty-logged nor read-only",
        })
    }
}

/// Why a change of slots was refused. The table is unchanged, except after [`SlotError::RollbackFailed`].
///
/// [`SlotError::errno`] is what `KVM_SET_USER_MEMORY_REGION(2)` returns for the same request in the same state.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The flags are not all allowed.
    #[error("slot {slot:#x}: flags {:#x} of {flags:#x} are not allowed: {rule}", .refused)]
    Flags {
        /// The ioctl's slot number.
        slot: u32,
        /// The request's flags.
        flags: u32,
        /// Those that are refused.
        refused: u32,
        /// Why.
        rule: FlagRule,
    },
    /// The id is past the host's number of slots.
    #[error("slot id {id} is not below the host's limit of {max_slots} slots per address space")]
    IdOutOfRange {
        /// The id.
        id: SlotId,
        /// The number of slots per address space.
        max_slots: u16,
    },
    /// There is no such address space.
    #[error("slot {slot:#x} names address space {index}, and this machine has {spaces}")]
    NoSuchSpace {
        /// The ioctl's slot number.
        slot: u32,
        /// Its upper half.
        index: u16,
        /// How many address spaces there are.
        spaces: u8,
    },
    /// The size is not whole pages.
    #[error("slot {slot:#x}: size {size:#x} is not a multiple of the page size 0x1000")]
    SizeUnaligned {
        /// The ioctl's slot number.
        slot: u32,
        /// The size in bytes.
        size: u64,
    },
    /// The guest address is not page aligned.
    #[error("slot {slot:#x}: guest address {gpa} is not page aligned")]
    GpaUnaligned {
        /// The ioctl's slot number.
        slot: u32,
        /// The address.
        gpa: Gpa,
    },
    /// The host address is not page aligned.
    #[error("slot {slot:#x}: host address {hva} is not page aligned")]
    HvaUnaligned {
        /// The ioctl's slot number.
        slot: u32,
        /// The address.
        hva: Hva,
    },
    /// The host range is not user memory (or carries a tag in its upper bits).
    #[error("slot {slot:#x}: host range {hva}..+{size:#x} does not end at or below the user address limit {limit}")]
    HvaNotUserMemory {
        /// The ioctl's slot number.
        slot: u32,
        /// Start of the range.
        hva: Hva,
        /// Its size in bytes.
        size: u64,
        /// One past the highest user address.
        limit: Hva,
    },
    /// The offset in the guest_memfd is unaligned, or offset + size wraps.
    #[error("slot {slot:#x}: guest_memfd offset {offset:#x} is not page aligned, or {offset:#x} + {size:#x} wraps")]
    GuestMemfdOffset {
        /// The ioctl's slot number.
        slot: u32,
        /// The offset in bytes.
        offset: u64,
        /// The slot's size in bytes.
        size: u64,
    },
    /// The guest range runs past 2^64.
    #[error("slot {slot:#x}: guest range {gpa}..+{size:#x} wraps around 2^64")]
    GpaWraps {
        /// The ioctl's slot number.
        slot: u32,
        /// Start of the range.
        gpa: Gpa,
        /// Its size in bytes.
        size: u64,
    },
    /// More pages than a slot may have.
    #[error("slot {slot:#x}: {pages} pages are more than the {MAX_PAGES_PER_SLOT} that a slot may have")]
    TooManyPages {
        /// The ioctl's slot number.
        slot: u32,
        /// The number of pages.
        pages: u64,
    },
    /// Size 0 deletes, but there is nothing to delete.
    #[error("slot {slot:#x} does not exist: size 0 deletes a slot and cannot create one")]
    NothingToDelete {
        /// The ioctl's slot number.
        slot: u32,
    },
    /// All slots together would have more pages than a 64-bit number counts.
    #[error("{pages} more pages would overflow the machine's total")]
    TotalPagesOverflow {
        /// The pages of the new slot.
        pages: u64,
    },
    /// A slot with private memory can only be deleted, and none can get private memory later.
    #[error("slot {id} of space {space} at {range} exists: with GUEST_MEMFD a slot can only be created and deleted")]
    GuestMemfdImmutable {
        /// The slot's address space.
        space: AddressSpaceId,
        /// The slot.
        id: SlotId,
        /// Where it is.
        range: GfnRange,
    },
    /// An existing slot's host address cannot change.
    #[error(
        "slot {id} of space {space} at {range} has host address {present}, which cannot become {requested}: delete it first"
    )]
    HvaChange {
        /// The slot's address space.
        space: AddressSpaceId,
        /// The slot.
        id: SlotId,
        /// Where it is.
        range: GfnRange,
        /// Its host address.
        present: Hva,
        /// The request's.
        requested: Hva,
    },
    /// An existing slot's size cannot change.
    #[error("slot {id} of space {space} at {range} has {} pages, which cannot become {requested}: delete it first", .range.pages())]
    SizeChange {
        /// The slot's address space.
        space: AddressSpaceId,
        /// The slot.
        id: SlotId,
        /// Where it is.
        range: GfnRange,
        /// The request's number of pages.
        requested: u64,
    },
    /// An existing slot cannot become read-only or writable.
    #[error("slot {id} of space {space} at {range} has flags {present:?}: READ_ONLY cannot change, delete it first")]
    ReadOnlyChange {
        /// The slot's address space.
        space: AddressSpaceId,
        /// The slot.
        id: SlotId,
        /// Where it is.
        range: GfnRange,
        /// Its flags.
        present: SlotFlags,
    },
    /// The frames are taken by another slot.
    #[error("slot {id} of space {space} cannot be at {range}: slot {other} is at {other_range}")]
    Overlap {
        /// The address space.
        space: AddressSpaceId,
        /// The slot of the request.
        id: SlotId,
        /// Where it should be.
        range: GfnRange,
        /// The slot in the way (the lowest, if several are).
        other: SlotId,
        /// Where that is.
        other_range: GfnRange,
    },
    /// The range reaches past the guest-physical width of this host.
    #[error("slot {id} of space {space} cannot be at {range}: the host's highest guest frame is {max_gfn}")]
    AboveMaxGfn {
        /// The address space.
        space: AddressSpaceId,
        /// The slot of the request.
        id: SlotId,
        /// Where it should be.
        range: GfnRange,
        /// The highest frame allowed.
        max_gfn: Gfn,
    },
    /// No memory for the slot's dirty bitmap.
    #[error("slot {id} of space {space}")]
    NoMemory {
        /// The address space.
        space: AddressSpaceId,
        /// The slot of the request.
        id: SlotId,
        /// How much was missing.
        source: crate::dirty::NoMemory,
    },
    /// Every slot id of the address space is taken (only when the table chooses the id).
    #[error("all {max_slots} slots of address space {space} are taken")]
    NoFreeSlot {
        /// The address space.
        space: AddressSpaceId,
        /// How many it has.
        max_slots: u16,
    },
    /// The host range of the request does not lie in the mapping that was given with it.
    #[error("host range {hva}..+{size:#x} does not lie in the mapping {backing}..+{backing_size:#x}")]
    OutsideBacking {
        /// Start of the range.
        hva: Hva,
        /// Its size in bytes.
        size: u64,
        /// Start of the mapping.
        backing: Hva,
        /// Its size in bytes.
        backing_size: u64,
    },
    /// An observer (the KVM mirror) refused; everything is as before.
    #[error("slot {id} of space {space}: the change was rolled back")]
    Refused {
        /// The address space.
        space: AddressSpaceId,
        /// The slot of the request.
        id: SlotId,
        /// Who and why.
        source: Box<ObserverError>,
    },
    /// An observer refused, and undoing the change in another observer failed too: that one now differs from the table.
    #[error("slot {id} of space {space}: the change could not be rolled back everywhere")]
    RollbackFailed {
        /// The address space.
        space: AddressSpaceId,
        /// The slot of the request.
        id: SlotId,
        /// The first failure to undo.
        source: Box<ObserverError>,
    },
}

impl SlotError {
    /// The kernel's error number for this rule. For a refusal by an observer: the observer's number, else EIO.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Overlap { .. } => Errno::Exists,
            Self::NoMemory { .. } => Errno::NoMemory,
            Self::Refused { source, .. } | Self::RollbackFailed { source, .. } => match source.errno {
                Some(12) => Errno::NoMemory,
                Some(17) => Errno::Exists,
                Some(22) => Errno::Invalid,
                Some(5) | None => Errno::Io,
                Some(raw) => Errno::Other(raw),
            },
            Self::Flags { .. }
            | Self::IdOutOfRange { .. }
            | Self::NoSuchSpace { .. }
            | Self::SizeUnaligned { .. }
            | Self::GpaUnaligned { .. }
            | Self::HvaUnaligned { .. }
            | Self::HvaNotUserMemory { .. }
            | Self::GuestMemfdOffset { .. }
            | Self::GpaWraps { .. }
            | Self::TooManyPages { .. }
            | Self::NothingToDelete { .. }
            | Self::TotalPagesOverflow { .. }
            | Self::GuestMemfdImmutable { .. }
            | Self::HvaChange { .. }
            | Self::SizeChange { .. }
            | Self::ReadOnlyChange { .. }
            | Self::AboveMaxGfn { .. }
            | Self::NoFreeSlot { .. }
            | Self::OutsideBacking { .. } => Errno::Invalid,
        }
    }
}

/// Why a dirty log was refused (`KVM_GET_DIRTY_LOG`, `KVM_CLEAR_DIRTY_LOG`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DirtyLogError {
    /// The virtual machine logs to rings; there are no bitmaps.
    #[error("dirty pages are logged in rings, not in bitmaps")]
    Ring,
    /// The slot number is out of range.
    #[error("slot {slot:#x} is not one of {max_slots} slots in {spaces} address spaces")]
    BadSlot {
        /// The ioctl's slot number.
        slot: u32,
        /// Slots per address space.
        max_slots: u16,
        /// Number of address spaces.
        spaces: u8,
    },
    /// There is no such slot, or it does not log.
    #[error("slot {slot:#x} does not exist or does not log dirty pages")]
    NoLog {
        /// The ioctl's slot number.
        slot: u32,
    },
    /// The range to clear breaks the alignment rules.
    #[error(transparent)]
    Range(#[from] crate::dirty::BadClearRange),
}

impl DirtyLogError {
    /// The kernel's error number, positive: ENXIO, EINVAL or ENOENT.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Ring => Errno::Other(6),
            Self::NoLog { .. } => Errno::Other(2),
            Self::BadSlot { .. } | Self::Range(_) => Errno::Invalid,
        }
    }
}
