//! A [`Memslots`] snapshot as a `vm_memory` guest memory, and a [`MemSlot`] as a region of it.
//!
//! The view has the slots that own a mapping; slots known by numbers only are not in it. A slot that is being deleted
//! or moved still is, because the guest may be using it until KVM has lost it, and because the change may be refused.
//! Writes through the view mark the slot's dirty pages.
//!
//! Read-only slots can be written through this view: the host fills them with it (firmware). Code that acts for the
//! guest, that is devices, uses [`DeviceMemory`](super::DeviceMemory).

use crate::addr::PAGE_SHIFT;
use crate::dirty::DirtyBitmap;
use crate::host_access::HostRun;
use crate::slot::MemSlot;
use crate::snapshot::Memslots;
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestMemoryResult,
    GuestUsize, MemoryRegionAddress, VolatileSlice,
};

impl GuestMemoryBackend for Memslots {
    type R = MemSlot;

    fn num_regions(&self) -> usize {
        GuestMemoryBackend::iter(self).count()
    }

    #[inline]
    fn find_region(&self, address: GuestAddress) -> Option<&MemSlot> {
        self.find_gpa(address.into()).filter(|slot| slot.backing().is_some())
    }

    fn iter(&self) -> impl Iterator<Item = &MemSlot> {
        Memslots::iter(self).filter(|slot| slot.backing().is_some())
    }
}

impl MemSlot {
    /// `count` bytes from `offset` on; an error unless all of them are in the slot.
    fn host_run(&self, offset: MemoryRegionAddress, count: usize) -> GuestMemoryResult<HostRun<'_>> {
        let gpa = self
            .range()
            .start()
            .base()
            .checked_add(offset.0)
            .ok_or(GuestMemoryError::InvalidBackendAddress)?;
        HostRun::new(self, gpa, count)
            .filter(|run| run.len() == count)
            .ok_or(GuestMemoryError::InvalidBackendAddress)
    }
}

impl GuestMemoryRegion for MemSlot {
    type B = DirtyBitmap;

    fn len(&self) -> GuestUsize {
        self.bytes()
    }

    fn start_addr(&self) -> GuestAddress {
        self.range().start().base().into()
    }

    fn bitmap(&self) -> DirtySlice<'_> {
        DirtySlice {
            log: self.dirty().map(AsRef::as_ref),
            offset: 0,
        }
    }

    fn get_host_address(&self, address: MemoryRegionAddress) -> GuestMemoryResult<*mut u8> {
        Ok(self.host_run(address, 1)?.as_ptr())
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> GuestMemoryResult<VolatileSlice<'_, DirtySlice<'_>>> {
        let log = self.bitmap().slice_at(usize::try_from(offset.0).unwrap_or(usize::MAX));
        Ok(self.host_run(offset, count)?.volatile_slice(log))
    }
}

impl GuestMemoryRegionBytes for MemSlot {}

/// The dirty log of a slot from some byte on; nothing if the slot does not log.
#[derive(Clone, Copy, Debug)]
pub struct DirtySlice<'a> {
    log: Option<&'a DirtyBitmap>,
    offset: usize,
}

impl WithBitmapSlice<'_> for DirtySlice<'_> {
    type S = Self;
}

impl BitmapSlice for DirtySlice<'_> {}

impl Bitmap for DirtySlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if let Some(log) = self.log {
            log.mark_dirty(self.offset.saturating_add(offset), len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.log
            .is_some_and(|log| log.dirty_at(self.offset.saturating_add(offset)))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            log: self.log,
            offset: self.offset.saturating_add(offset),
        }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyBitmap {
    type S = DirtySlice<'a>;
}

/// Offsets are in bytes from the start of the slot.
impl Bitmap for DirtyBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len > 0 {
            self.mark(page_of(offset), page_of(offset.saturating_add(len - 1)));
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.is_dirty(page_of(offset))
    }

    fn slice_at(&self, offset: usize) -> DirtySlice<'_> {
        DirtySlice {
            log: Some(self),
            offset,
        }
    }
}

fn page_of(offset: usize) -> u64 {
    offset as u64 >> PAGE_SHIFT
}
