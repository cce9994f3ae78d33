//! The kernel's copy of our memory slots.

use super::memory::VmMemory;
use std::io;
use std::sync::Arc;
use umbra_memslots::{AddressSpaceId, Generation, MemSlot, ObserverError, SlotChange, SlotObserver};

/// Makes each change of a [`umbra_memslots::SlotTable`] in the kernel too (`KVM_SET_USER_MEMORY_REGION`, and `…2` for
/// guest_memfd), and refuses what the kernel refuses, so that the table rolls back.
///
/// A slot without a [`umbra_memslots::Backing`] is refused with `EFAULT`: a guest must not be given host addresses
/// that nobody vouches for.
pub struct SlotMirror {
    memory: Arc<VmMemory>,
}

impl SlotMirror {
    pub(super) fn new(memory: Arc<VmMemory>) -> Self {
        Self { memory }
    }

    fn make(&self, change: &SlotChange) -> Result<(), ObserverError> {
        let request = change.request();
        let result = match change.after() {
            None => self.memory.delete(request.slot),
            Some(slot) => match slot.backing() {
                Some(backing) => self.memory.set(&request, backing),
                None => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            },
        };
        result.map_err(|error| ObserverError {
            observer: "KVM",
            errno: error.raw_os_error(),
            source: error.into(),
        })
    }
}

impl SlotObserver for SlotMirror {
    fn before_remove(&mut self, _: &MemSlot) {
        // The kernel does its own two steps inside the ioctl.
    }

    fn after_commit(&mut self, change: &SlotChange) -> Result<(), ObserverError> {
        self.make(change)
    }

    fn roll_back(&mut self, change: &SlotChange) -> Result<(), ObserverError> {
        self.make(&change.inverse())
    }

    fn generation_changes(&mut self, _: AddressSpaceId, _: Generation) {}
}
