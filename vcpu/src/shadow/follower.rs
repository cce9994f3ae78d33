//! [`ShadowFollower`]: keeps shadow tables in step with a slot table.

use super::tables::SharedTables;
use super::tlb::ShadowTlb;
use std::sync::Arc;
use umbra_memslots::{AddressSpaceId, Generation, GfnRange, MemSlot, ObserverError, SlotChange, SlotObserver};
use umbra_mmu::NoObserver;
use umbra_mmu::shadow::ShadowMmu;

/// Removes from shadow tables what a change of the memory slots makes untrue. To be added before the slots' mirror in KVM:
/// what a CPU can reach goes first, then the memory.
pub struct ShadowFollower {
    mmu: Arc<ShadowMmu<SharedTables>>,
    tlb: ShadowTlb,
}

impl ShadowFollower {
    /// A follower for `mmu`, whose tables the CPU behind `tlb` walks.
    pub fn new(mmu: Arc<ShadowMmu<SharedTables>>, tlb: ShadowTlb) -> Self {
        Self { mmu, tlb }
    }

    fn zap(&mut self, range: GfnRange) {
        self.mmu.zap_range(&mut NoObserver, &mut self.tlb, range);
    }
}

impl SlotObserver for ShadowFollower {
    fn before_remove(&mut self, slot: &MemSlot) {
        self.zap(slot.range());
    }

    /// A slot that stays may have become read-only or be backed by other memory.
    fn after_commit(&mut self, change: &SlotChange) -> Result<(), ObserverError> {
        if let (Some(before), Some(_)) = (change.before(), change.after()) {
            self.zap(before.range());
        }
        Ok(())
    }

    fn roll_back(&mut self, change: &SlotChange) -> Result<(), ObserverError> {
        for slot in [change.before(), change.after()].into_iter().flatten() {
            self.zap(slot.range());
        }
        Ok(())
    }

    fn generation_changes(&mut self, space: AddressSpaceId, next: Generation) {
        self.mmu.generation_changes(&mut NoObserver, &mut self.tlb, space, next);
    }
}
