//! A slot and its names: [`AddressSpaceId`], [`SlotId`], [`SlotFlags`], [`MemSlot`]. Plain data.

use crate::addr::{Gfn, Gpa, Hva, PAGE_SHIFT};
use crate::backing::Backing;
use crate::dirty::DirtyBitmap;
use crate::range::GfnRange;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

/// One of the sets of slots of a virtual machine (KVM's `as_id`, the upper 16 bits of the ioctl's slot number).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum AddressSpaceId {
    /// What a vCPU sees normally (0).
    #[default]
    Normal,
    /// What a vCPU sees in system management mode (1).
    Smm,
}

impl AddressSpaceId {
    /// The most address spaces that a table can have.
    pub const COUNT: u8 = 2;
    /// Every address space, by index.
    pub const ALL: [Self; 2] = [Self::Normal, Self::Smm];

    /// 0 or 1, as the ioctl numbers them.
    #[inline]
    pub const fn index(self) -> u8 {
        match self {
            Self::Normal => 0,
            Self::Smm => 1,
        }
    }

    /// The space of an index, if there is one.
    pub const fn from_index(index: u16) -> Option<Self> {
        match index {
            0 => Some(Self::Normal),
            1 => Some(Self::Smm),
            _ => None,
        }
    }
}

impl fmt::Display for AddressSpaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.index())
    }
}

/// The number of a slot within its address space (the lower 16 bits of the ioctl's slot number).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct SlotId(u16);

impl SlotId {
    /// Wraps a number. Which are in range is for [`crate::SlotLimits`] to say.
    #[inline]
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The ioctl's slot number for this id in `space`.
    pub const fn in_space(self, space: AddressSpaceId) -> u32 {
        (space.index() as u32) << 16 | self.0 as u32
    }
}

impl fmt::Debug for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotId({})", self.0)
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

bitflags::bitflags! {
    /// A slot's flags, with the numbers of the ioctl (`KVM_MEM_*`) and, for [`SlotFlags::INVALID`], of the kernel.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct SlotFlags: u32 {
        /// Writes are logged in the slot's dirty bitmap (`KVM_MEM_LOG_DIRTY_PAGES`).
        const LOG_DIRTY = 1 << 0;
        /// Guest writes are refused and arrive as MMIO (`KVM_MEM_READONLY`).
        const READ_ONLY = 1 << 1;
        /// Private memory comes from a guest_memfd (`KVM_MEM_GUEST_MEMFD`).
        const GUEST_MEMFD = 1 << 2;
        /// The slot is being deleted or moved: whoever finds it tries again (`KVM_MEMSLOT_INVALID`). Never accepted in
        /// a request.
        const INVALID = 1 << 16;
    }
}

/// Where a slot's private memory comes from (`KVM_SET_USER_MEMORY_REGION2`'s `guest_memfd` fields).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GuestMemfd {
    /// File descriptor made by `KVM_CREATE_GUEST_MEMFD`. Only the kernel can check it.
    pub fd: u32,
    /// Where in that file the slot starts, in bytes; page aligned.
    pub offset: u64,
}

/// A run of guest frames that is host memory.
///
/// Cheap to clone (it shares its backing and its dirty bitmap). Values come from [`crate::SlotTable`] only, so each
/// satisfies the update rules: at least one page and at most 2^31 - 1, no wrap in guest or host addresses.
#[derive(Clone)]
pub struct MemSlot {
    range: GfnRange,
    hva: Hva,
    backing: Option<Arc<dyn Backing>>,
    dirty: Option<Arc<DirtyBitmap>>,
    guest_memfd: Option<Box<GuestMemfd>>,
    flags: SlotFlags,
    id: SlotId,
    space: AddressSpaceId,
}

impl MemSlot {
    pub(crate) fn new(space: AddressSpaceId, id: SlotId, range: GfnRange, hva: Hva) -> Self {
        Self {
            range,
            hva,
            backing: None,
            dirty: None,
            guest_memfd: None,
            flags: SlotFlags::empty(),
            id,
            space,
        }
    }

    /// The slot's number within its address space.
    #[inline]
    pub fn id(&self) -> SlotId {
        self.id
    }

    /// The address space the slot is in.
    #[inline]
    pub fn space(&self) -> AddressSpaceId {
        self.space
    }

    /// The frames.
    #[inline]
    pub fn range(&self) -> GfnRange {
        self.range
    }

    /// Size in bytes, a multiple of the page size below 2^43.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.range.pages() << PAGE_SHIFT
    }

    /// The host address of the first byte.
    #[inline]
    pub fn hva(&self) -> Hva {
        self.hva
    }

    /// The flags.
    #[inline]
    pub fn flags(&self) -> SlotFlags {
        self.flags
    }

    /// Whether guest writes are refused.
    #[inline]
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(SlotFlags::READ_ONLY)
    }

    /// Whether the slot is being deleted or moved, so that the finder must try again (see [`SlotFlags::INVALID`]).
    #[inline]
    pub fn is_invalid(&self) -> bool {
        self.flags.contains(SlotFlags::INVALID)
    }

    /// The memory behind the slot, if this process may access it.
    #[inline]
    pub fn backing(&self) -> Option<&Arc<dyn Backing>> {
        self.backing.as_ref()
    }

    /// The log of written pages, if writes are logged.
    #[inline]
    pub fn dirty(&self) -> Option<&Arc<DirtyBitmap>> {
        self.dirty.as_ref()
    }

    /// The source of private memory, if there is one.
    #[inline]
    pub fn guest_memfd(&self) -> Option<GuestMemfd> {
        self.guest_memfd.as_deref().copied()
    }

    /// The page-aligned host address of a frame of this slot; `None` if the frame is not in it.
    #[inline]
    pub fn hva_of(&self, gfn: Gfn) -> Option<Hva> {
        let page = gfn.checked_offset_from(self.range.start())?;
        if page >= self.range.pages() {
            return None;
        }
        Some(self.hva.wrapping_add(page << PAGE_SHIFT))
    }

    /// The host address of a guest-physical address of this slot; `None` if it is not in it.
    #[inline]
    pub fn hva_of_gpa(&self, gpa: Gpa) -> Option<Hva> {
        Some(self.hva_of(gpa.gfn())?.wrapping_add(gpa.page_offset()))
    }

    /// The guest-physical address of a host address of this slot; `None` if it is not in it.
    pub fn gpa_of_hva(&self, hva: Hva) -> Option<Gpa> {
        let offset = hva.checked_offset_from(self.hva)?;
        (offset < self.bytes()).then(|| self.range.start().base().wrapping_add(offset))
    }

    /// One past the last host address.
    pub(crate) fn hva_end(&self) -> Hva {
        self.hva.wrapping_add(self.bytes())
    }

    /// Records that `bytes` bytes from `offset` on were written, if writes are logged. What lies past the end of the
    /// slot is ignored.
    #[inline]
    pub fn mark_dirty(&self, offset: u64, bytes: u64) {
        if let Some(dirty) = &self.dirty
            && bytes > 0
        {
            dirty.mark(offset >> PAGE_SHIFT, (offset.saturating_add(bytes - 1)) >> PAGE_SHIFT);
        }
    }

    pub(crate) fn with_flags(mut self, flags: SlotFlags) -> Self {
        self.flags = flags;
        self
    }

    pub(crate) fn with_backing(mut self, backing: Option<Arc<dyn Backing>>) -> Self {
        self.backing = backing;
        self
    }

    pub(crate) fn with_dirty(mut self, dirty: Option<Arc<DirtyBitmap>>) -> Self {
        self.dirty = dirty;
        self
    }

    pub(crate) fn with_guest_memfd(mut self, guest_memfd: Option<GuestMemfd>) -> Self {
        self.guest_memfd = guest_memfd.map(Box::new);
        self
    }

    pub(crate) fn at(mut self, range: GfnRange) -> Self {
        self.range = range;
        self
    }
}

/// Equality of what the slot *is* (place, size, host address, flags, identity), not of who shares its memory.
impl PartialEq for MemSlot {
    fn eq(&self, other: &Self) -> bool {
        (self.space, self.id, self.range, self.hva, self.flags, &self.guest_memfd)
            == (
                other.space,
                other.id,
                other.range,
                other.hva,
                other.flags,
                &other.guest_memfd,
            )
    }
}

impl Eq for MemSlot {}

impl fmt::Debug for MemSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemSlot")
            .field("space", &self.space)
            .field("id", &self.id)
            .field("range", &self.range)
            .field("hva", &self.hva)
            .field("flags", &self.flags)
            .field("backed", &self.backing.is_some())
            .finish_non_exhaustive()
    }
}
