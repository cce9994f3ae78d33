//! Table memory is limited: when it gets scarce, the pages that were made first go (`make_mmu_pages_available`).

use super::pages::Writer;
use crate::observer::MmuObserver;
use crate::tables::{TableId, TableSpace};
use alloc::vec::Vec;

/// As many as one operation can need: a path of five levels, or four roots.
const NEEDED: u32 = 5;
/// So many are made free at once (`KVM_REFILL_PAGES`), but no more than a quarter of all.
const REFILL: u32 = 25;

impl<S: TableSpace, O: MmuObserver> Writer<'_, S, O> {
    /// Sees to it that an operation finds the tables that it needs. Says how many pages had to go.
    ///
    /// Roots go only if there is nothing else: their vCPUs have to load them again.
    pub(super) fn make_available(&mut self) -> u32 {
        let capacity = self.pool.space().capacity();
        if capacity - self.in_use() >= NEEDED {
            return 0;
        }
        let wanted = REFILL.min(capacity / 4).max(NEEDED);
        let mut zapped = 0;
        for roots in [false, true] {
            let oldest: Vec<TableId> = self.pages.by_age.values().copied().collect();
            for table in oldest {
                // Zapping one may take others along.
                let unused = u32::try_from(self.unused.len()).unwrap_or(u32::MAX);
                if capacity - self.in_use() + unused >= wanted {
                    break;
                }
                if self.page(table).is_some_and(|page| page.is_root == roots) {
                    self.zap(table);
                    zapped += 1;
                }
            }
        }
        self.flush_now();
        zapped
    }
}
