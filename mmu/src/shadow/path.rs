//! The way from a root to a leaf: shadows of the tables that the guest's walk went through, and below them pages that
//! follow from the gfn. KVM's `kvm_mmu_get_shadow_page` and `FNAME(fetch)`.

use super::leaf;
use super::pages::{Writer, first_of, frames_of};
use super::role::PageRole;
use super::root::{RootTables, entry_of};
use super::sync::GuestTables;
use crate::access_mask::AccessMask;
use crate::guest_walk::{GuestWalk, WalkEntry};
use crate::observer::MmuObserver;
use crate::tables::{EntryLocation, TableId, TableSpace};
use alloc::vec::Vec;
use umbra_memslots::{Gfn, GfnRange, GuestMemory, PAGE_SHIFT};

/// What is to be reached.
pub(super) struct Target<'a> {
    /// The guest's way there.
    pub(super) walk: &'a GuestWalk,
    /// What the leaf is to allow.
    pub(super) access: AccessMask,
    /// Where the walker finds the page, and the largest leaf that the memory allows; `None` for MMIO.
    pub(super) memory: Option<(u64, u8)>,
}

/// The way to a leaf.
pub(super) enum PathTo {
    /// The leaf's entry, and its level.
    Leaf(EntryLocation, u8),
    /// A guest entry was changed before its table was write-protected.
    Changed,
    /// All tables are in use.
    OutOfTables,
}

impl<S: TableSpace, O: MmuObserver> Writer<'_, S, O> {
    /// The page with this key, made if there is none. `None` if all tables are in use.
    ///
    /// A page that is found unsync is up to date afterwards, but remains unsync.
    pub(super) fn get(
        &mut self,
        guest: &GuestTables<'_, impl GuestMemory>,
        gfn: Gfn,
        role: PageRole,
        is_root: bool,
    ) -> Option<TableId> {
        if role.level() > 1 && !role.is_direct() {
            // The guest's writes must be known of from now on, which unsync pages don't care for.
            let unsync: Vec<TableId> = self.unsync_shadows(gfn).collect();
            for table in unsync {
                self.zap(table);
            }
        }
        let mut found = self.pages.by_key.get(&(gfn, role)).copied();
        if let Some(table) = found
            && self.page(table).is_some_and(|page| page.valid != self.pages.valid)
        {
            self.zap(table);
            found = None;
        }
        let table = match found {
            Some(table) => {
                if self.page(table).is_some_and(|page| page.unsync) {
                    self.sync_entries(guest, table);
                    self.flush_now();
                }
                self.clear_flood(table);
                table
            }
            None => self.create(gfn, role, is_root)?,
        };
        self.observer.get_page(gfn, role, found.is_none());
        if let Some(page) = self.pages.pages.get_mut(table) {
            page.is_root |= is_root;
        }
        Some(table)
    }

    fn unsync_shadows(&self, gfn: Gfn) -> impl Iterator<Item = TableId> {
        self.shadows_of(gfn)
            .map(|(_, table)| table)
            .filter(|&table| self.page(table).is_some_and(|page| page.unsync))
    }

    /// Makes and links the pages down to the leaf.
    pub(super) fn path(
        &mut self,
        guest: &GuestTables<'_, impl GuestMemory>,
        root: RootTables,
        target: &Target<'_>,
    ) -> PathTo {
        let walk = target.walk;
        let Some((mut table, mut level)) = root.start(walk.gva) else {
            return PathTo::Changed;
        };
        let entries = walk.entries();
        if entries.first().is_some_and(|entry| !still_there(guest, walk, entry)) {
            return PathTo::Changed;
        }
        let mut access = AccessMask::ALL;
        for (above, below) in entries.iter().zip(entries.iter().skip(1)) {
            // The guest table that the entry leads to, and what the entries so far allow.
            let gfn = below.gpa.gfn();
            access = access & above.pte.permits();
            let at = entry_of(table, level, walk.gva);
            let Some(page) = self.pages.pages.get_mut(table) else {
                return PathTo::Changed;
            };
            page.writes = 0;
            let role = page.role.child(at.index, access, false);
            let known = self.linked(at, level, gfn, role);
            let child = match known {
                Some(child) => child,
                None => {
                    let Some(child) = self.get(guest, gfn, role, false) else {
                        return PathTo::OutOfTables;
                    };
                    // Until now other vCPUs may have written to the table.
                    self.flush_now();
                    self.sync_below(guest, child);
                    child
                }
            };
            if !still_there(guest, walk, below) {
                return PathTo::Changed;
            }
            if known.is_none() {
                if self.page(table).is_none() || self.page(child).is_none() {
                    // Zapped on the way, because it was unsync and became a table of another level.
                    return PathTo::Changed;
                }
                self.link(at, child);
            }
            (table, level) = (child, level - 1);
        }
        self.clear_flood(table);
        // Not before: making the path may have found that pages are tables.
        let goal = self.goal(walk.gpa.gfn(), target.memory.map(|(_, largest)| largest), level);
        let address = target.memory.map(|(address, _)| align(address, goal));
        self.observer.spte_requested(walk.gpa.gfn(), address, goal);
        while level > goal {
            let at = entry_of(table, level, walk.gva);
            let gfn = first_of(walk.gpa.gfn(), level);
            // What was a large page's may have been linked with other rights.
            let Some(role) = self
                .page(table)
                .map(|page| page.role.child(at.index, target.access, true))
            else {
                return PathTo::Changed;
            };
            let child = match self.linked(at, level, gfn, role) {
                Some(child) => child,
                None => {
                    let Some(child) = self.get(guest, gfn, role, false) else {
                        return PathTo::OutOfTables;
                    };
                    self.link(at, child);
                    child
                }
            };
            (table, level) = (child, level - 1);
        }
        PathTo::Leaf(entry_of(table, goal, walk.gva), goal)
    }

    /// The level of the leaf for `gfn`: at most `level`, where the guest's own page or the shadow's root is
    /// (`kvm_mmu_hugepage_adjust`).
    pub(super) fn goal(&self, gfn: Gfn, largest: Option<u8>, level: u8) -> u8 {
        let largest = largest.unwrap_or(1).min(level).min(leaf::MAX_LEVEL);
        let fits = |&level: &u8| {
            let first = first_of(gfn, level);
            let going = GfnRange::new(first, frames_of(level)).is_none_or(|range| self.is_being_invalidated(range));
            !going && !self.is_shadowed(first, level)
        };
        (2..=largest).rev().find(fits).unwrap_or(1)
    }
}

/// The address of the first frame that a leaf of `level` maps together with the one at `address`.
pub(super) fn align(address: u64, level: u8) -> u64 {
    address & !((frames_of(level) << PAGE_SHIFT) - 1)
}

/// Whether an entry of the walk is what the walk read (`FNAME(gpte_changed)`): only now nobody can change its table
/// without our knowledge.
fn still_there(guest: &GuestTables<'_, impl GuestMemory>, walk: &GuestWalk, entry: &WalkEntry) -> bool {
    guest.memory.read_entry(entry.gpa, walk.entry_size()) == Ok(entry.pte.raw())
}
