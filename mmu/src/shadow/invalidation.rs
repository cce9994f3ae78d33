//! Memory behind frames that is taken away by the host (swapped out, migrated, unmapped), and slots that change: KVM's
//! `mmu_notifier` with its sequence count.
//!
//! A fault finds memory without the lock. What it found is worth nothing if an invalidation began since, and it must not
//! be installed while one is going on: the sequence is compared, and the ranges are looked at, with the lock held.

use super::mmu::ShadowMmu;
use super::pages::Writer;
use super::ports::TlbControl;
use crate::observer::{MmuObserver, NoObserver};
use crate::sync::Ordering;
use crate::tables::TableSpace;
use umbra_memslots::{AddressSpaceId, GfnRange};

/// Pages that are zapped in one go (`BATCH_ZAP_PAGES`).
const BATCH: usize = 10;

impl<S: TableSpace> ShadowMmu<S> {
    /// The memory of the frames is about to go: it is unmapped, and isn't mapped again until
    /// [`ShadowMmu::invalidate_end`]. Faults there are to be retried.
    pub fn invalidate_begin(&self, tlb: &mut impl TlbControl, range: GfnRange) {
        self.change(
            &mut NoObserver,
            || tlb.flush_all(),
            |writer| {
                self.found_is_void();
                writer.pages.invalidations.push(range);
                writer.unmap(range);
            },
        );
    }

    /// The frames have memory again. To be called once for each [`ShadowMmu::invalidate_begin`], with the same range.
    pub fn invalidate_end(&self, range: GfnRange) {
        self.change(
            &mut NoObserver,
            || {},
            |writer| {
                self.found_is_void();
                let ranges = &mut writer.pages.invalidations;
                if let Some(position) = ranges.iter().position(|&other| other == range) {
                    ranges.swap_remove(position);
                }
            },
        );
    }

    /// The frames' slot goes or changes: all mappings of them go, and all shadows of tables in them.
    pub fn zap_range<O: MmuObserver>(&self, observer: &mut O, tlb: &mut impl TlbControl, range: GfnRange) {
        self.change(
            observer,
            || tlb.flush_all(),
            |writer| {
                self.found_is_void();
                writer.zap_range(range);
            },
        );
    }

    /// Everything goes (`kvm_mmu_zap_all_fast`): at once from sight, and then page by page, so that others get the lock
    /// in between.
    pub fn zap_all<O: MmuObserver>(&self, observer: &mut O, tlb: &mut impl TlbControl) {
        self.change(
            observer,
            || tlb.flush_all(),
            |writer| {
                self.found_is_void();
                let in_use = writer.in_use();
                writer.observer.zap_all_fast(AddressSpaceId::Normal, in_use);
                writer.pages.valid += 1;
                self.root_epoch.fetch_add(1, Ordering::Release);
            },
        );
        while self.change(observer, || tlb.flush_all(), |writer| writer.zap_obsolete(BATCH)) {}
    }

    /// What faults have found until now may not be true any more.
    pub(super) fn found_is_void(&self) {
        self.sequence.fetch_add(1, Ordering::Release);
    }
}

impl<S: TableSpace, O: MmuObserver> Writer<'_, S, O> {
    /// Whether memory of any of the frames is being taken away.
    pub(super) fn is_being_invalidated(&self, range: GfnRange) -> bool {
        self.pages.invalidations.iter().any(|other| other.overlaps(range))
    }
}
