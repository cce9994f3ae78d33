//! [`SlotFollower`]: keeps a [`DirectMmu`] in step with a slot table.

use super::mmu::DirectMmu;
use crate::tables::TableSpace;
use alloc::sync::Arc;
use umbra_memslots::{AddressSpaceId, Generation, MemSlot, ObserverError, SlotChange, SlotObserver};

/// Follows a [`umbra_memslots::SlotTable`] on behalf of a [`DirectMmu`].
///
/// Without it everything stays right: knowledge about MMIO is dated, and never looked for when slots change. With it, the
/// rare clearing of the tables when the generation in SPTEs wraps is done by the thread that changes the slots, before
/// any vCPU sees the new number, and not by the first vCPU that meets it.
#[derive(Clone, Debug)]
pub struct SlotFollower<S>(Arc<DirectMmu<S>>);

impl<S> SlotFollower<S> {
    /// A follower for `mmu`, to be given to [`umbra_memslots::SlotTable::add_observer`].
    #[must_use]
    pub fn new(mmu: Arc<DirectMmu<S>>) -> Self {
        Self(mmu)
    }
}

impl<S: TableSpace + Send + Sync> SlotObserver for SlotFollower<S> {
    fn before_remove(&mut self, _slot: &MemSlot) {}

    fn after_commit(&mut self, _change: &SlotChange) -> Result<(), ObserverError> {
        Ok(())
    }

    fn roll_back(&mut self, _change: &SlotChange) -> Result<(), ObserverError> {
        Ok(())
    }

    fn generation_changes(&mut self, space: AddressSpaceId, next: Generation) {
        self.0.generation_changes(space, next);
    }
}
