//! [`DeviceMemory`]: guest memory for code that acts on the guest's behalf: writes to read-only slots are refused.

use super::guest_ram::GuestRam;
use super::view::DirtySlice;
use crate::addr::Gpa;
use crate::dirty::DirtyBitmap;
use crate::range::GfnRange;
use crate::slot::MemSlot;
use crate::snapshot::Memslots;
use std::ops::Deref;
use std::sync::Arc;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryResult, Permissions,
};

/// A snapshot in which a device may do what the guest may do: read slots, and write those that are not read-only.
///
/// A `vm_memory::GuestMemory`, so virtio-queue takes it. It does not give out the memory behind it
/// (`physical_memory()` is `None`), which would let an access pass it by.
#[derive(Clone, Debug)]
pub struct DeviceMemory(Arc<Memslots>);

impl DeviceMemory {
    /// The device's view of a snapshot.
    pub fn new(slots: Arc<Memslots>) -> Self {
        Self(slots)
    }

    /// The snapshot.
    pub fn slots(&self) -> &Arc<Memslots> {
        &self.0
    }

    /// The first byte of an access that may not be written.
    fn read_only_in(&self, address: GuestAddress, count: usize) -> Option<GuestAddress> {
        let range = GfnRange::covering(Gpa::from(address), count as u64)?;
        let slot = self.0.overlapping(range).find(|slot: &&MemSlot| slot.is_read_only())?;
        Some(slot.range().start().base().max(address.into()).into())
    }
}

impl GuestMemory for DeviceMemory {
    type PhysicalMemory = Memslots;
    type Bitmap = DirtyBitmap;

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        (!access.has_write() || self.read_only_in(address, count).is_none())
            && GuestMemoryBackend::check_range(&*self.0, address, count)
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, DirtySlice<'a>>> {
        if access.has_write()
            && let Some(refused) = self.read_only_in(address, count)
        {
            return Err(GuestMemoryError::InvalidGuestAddress(refused));
        }
        Ok(GuestMemoryBackend::get_slices(&*self.0, address, count))
    }
}

/// A [`GuestRam`] as devices see it at each moment: a `vm_memory::GuestAddressSpace` of [`DeviceMemory`].
#[derive(Clone, Debug)]
pub struct DeviceRam(GuestRam);

impl DeviceRam {
    /// The devices' view of `ram`.
    pub fn new(ram: GuestRam) -> Self {
        Self(ram)
    }
}

impl GuestAddressSpace for DeviceRam {
    type M = DeviceMemory;
    type T = DeviceMemoryGuard;

    fn memory(&self) -> DeviceMemoryGuard {
        DeviceMemoryGuard(DeviceMemory::new(self.0.snapshot()))
    }
}

/// A [`DeviceMemory`] that was loaded from a [`DeviceRam`].
#[derive(Clone, Debug)]
pub struct DeviceMemoryGuard(DeviceMemory);

impl Deref for DeviceMemoryGuard {
    type Target = DeviceMemory;

    fn deref(&self) -> &DeviceMemory {
        &self.0
    }
}
