//! Shadow pages are taken out of use. KVM's `__kvm_mmu_prepare_zap_page`.

use super::leaf;
use super::mappings::FrameKey;
use super::pages::{Writer, first_of};
use super::role::PageRole;
use crate::observer::MmuObserver;
use crate::pool::entries;
use crate::sync::Ordering;
use crate::tables::{EntryLocation, TableId, TableSpace};
use alloc::vec::Vec;
use umbra_memslots::GfnRange;

impl<S: TableSpace, O: MmuObserver> Writer<'_, S, O> {
    /// Unlinks and empties a page and takes it out of use, with all unsync pages below it: nobody would find them when
    /// they are to be synchronised.
    pub(super) fn zap(&mut self, table: TableId) {
        let Some(page) = self.page(table) else { return };
        let (gfn, role) = (page.gfn, page.role);
        self.observer.prepare_zap_page(gfn, role);
        if role.level() > 1 {
            for child in self.unsync_below(table) {
                self.zap(child);
            }
        }
        self.take_out(table);
    }

    fn take_out(&mut self, table: TableId) {
        let Some(page) = self.pages.pages.get_mut(table) else {
            return;
        };
        let (gfn, role, unsync, age) = (page.gfn, page.role, page.unsync, page.age);
        let parents = core::mem::take(&mut page.parents);
        if page.is_root {
            // A root is linked from vCPUs: this cuts it off, and so must come before the table is counted as recycled.
            self.root_epoch.fetch_add(1, Ordering::Release);
        }
        self.pages.by_key.remove(&(gfn, role));
        for parent in parents {
            self.pool.space().store(parent, self.layout.empty());
            self.needs_flush = true;
        }
        self.pool.about_to_recycle();
        for at in entries(table) {
            self.drop_entry(at);
        }
        if unsync {
            self.observer.sync_page(gfn, role);
        }
        self.pages.pages.remove(table);
        self.pages.by_age.remove(&age);
        self.unused.push(table);
    }

    /// Removes all pages.
    pub(super) fn zap_all(&mut self) {
        let tables: Vec<TableId> = self.pages.pages.tables().collect();
        for table in tables {
            self.zap(table);
        }
    }

    /// Removes up to `count` pages that went out of sight when everything was zapped. Says whether there are more.
    pub(super) fn zap_obsolete(&mut self, count: usize) -> bool {
        let valid = self.pages.valid;
        let is_obsolete = |table: &TableId| self.page(*table).is_some_and(|page| page.valid != valid);
        // Those that were made since are the youngest.
        let oldest = self.pages.by_age.values().copied();
        let obsolete: Vec<TableId> = oldest.take_while(is_obsolete).take(count).collect();
        for &table in &obsolete {
            self.zap(table);
        }
        !obsolete.is_empty()
    }

    /// Removes all mappings of the frames, and all shadows of guest tables in them.
    pub(super) fn zap_range(&mut self, range: GfnRange) {
        for at in self.mappings_in(range) {
            self.drop_entry(at);
        }
        let keys = (range.start(), PageRole::MIN)..=(range.last(), PageRole::MAX);
        let tables: Vec<TableId> = self.pages.by_key.range(keys).map(|(_, &table)| table).collect();
        for table in tables {
            self.zap(table);
        }
    }

    /// All leaves that map any of the frames.
    pub(super) fn mappings_in(&self, range: GfnRange) -> Vec<EntryLocation> {
        let mut mappings = Vec::new();
        for level in 1..=leaf::MAX_LEVEL {
            let keys = FrameKey::new(level, first_of(range.start(), level))..=FrameKey::new(level, range.last());
            mappings.extend(self.pages.reverse.range(keys).flat_map(|(_, found)| found.as_slice()));
        }
        mappings
    }
}
