//! [`Pages`]: the shadow pages, by (gfn, role); who links to them; which entries map a frame. All under the MMU's lock.
//!
//! A shadow page is a table of the pool, and is named by it. What is kept beside the entries:
//!
//! * for each page its parents (the entries that link to it), so that it can be unlinked,
//! * for each frame its reverse map (the leaves that map it), so that it can be write-protected or unmapped,
//! * for each page the frames of its leaves, which the entries don't say.
//!
//! Whatever takes rights away asks for a flush. Tables that are taken out of use wait for it: until then a CPU may be
//! inside them.

use super::bits::bits;
use super::layout::SpteLayout;
use super::role::PageRole;
use super::{leaf, link};
use crate::observer::MmuObserver;
use crate::pool::{FreeTables, TablePool, entries};
use crate::sync::{AtomicU64, Ordering};
use crate::tables::{EntryLocation, TableId, TableSpace};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use umbra_memslots::{Gfn, GfnRange};

/// After that many emulated writes without a walk through it, a page is taken for ordinary data
/// (`detect_write_flooding`).
const FLOOD: u8 = 3;

/// What is known of a shadow page besides its entries.
pub(super) struct ShadowPage {
    pub(super) gfn: Gfn,
    pub(super) role: PageRole,
    parents: Vec<EntryLocation>,
    /// Frames of its leaves, by index.
    leaves: BTreeMap<u16, Gfn>,
    /// Emulated writes since it was last used.
    writes: u8,
    is_root: bool,
}

/// All shadow pages.
pub(super) struct Pages {
    free: FreeTables,
    pages: BTreeMap<TableId, ShadowPage>,
    by_key: BTreeMap<(Gfn, PageRole), TableId>,
    reverse: BTreeMap<Gfn, Vec<EntryLocation>>,
}

impl Pages {
    pub(super) fn new(free: FreeTables) -> Self {
        Self {
            free,
            pages: BTreeMap::new(),
            by_key: BTreeMap::new(),
            reverse: BTreeMap::new(),
        }
    }
}

/// The right to change the shadow pages, for the length of one operation.
pub(super) struct Writer<'a, S, O> {
    pub(super) observer: &'a mut O,
    pub(super) pool: &'a TablePool<S>,
    pub(super) layout: &'a SpteLayout,
    pages: &'a mut Pages,
    root_epoch: &'a AtomicU64,
    flush: &'a mut dyn FnMut(),
    unused: Vec<TableId>,
    needs_flush: bool,
}

/// What became of an entry that was to be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Set {
    Changed,
    Same,
}

impl<'a, S: TableSpace, O: MmuObserver> Writer<'a, S, O> {
    pub(super) fn new(
        observer: &'a mut O,
        pool: &'a TablePool<S>,
        layout: &'a SpteLayout,
        pages: &'a mut Pages,
        root_epoch: &'a AtomicU64,
        flush: &'a mut dyn FnMut(),
    ) -> Self {
        Self {
            observer,
            pool,
            layout,
            pages,
            root_epoch,
            flush,
            unused: Vec::new(),
            needs_flush: false,
        }
    }

    /// Ends the operation: flushes if that is needed, and makes unused tables free.
    pub(super) fn finish(self) {
        if self.needs_flush || !self.unused.is_empty() {
            (self.flush)();
        }
        for table in self.unused {
            self.pool.give_back(&mut self.pages.free, table);
        }
    }

    /// Number of tables in use.
    pub(super) fn in_use(&self) -> u32 {
        self.pool.in_use(&self.pages.free)
    }

    /// Number of reverse map entries.
    pub(super) fn leaves(&self) -> usize {
        self.pages.reverse.values().map(Vec::len).sum()
    }

    /// Whether the frame is a guest table that has a shadow.
    pub(super) fn is_tracked(&self, gfn: Gfn) -> bool {
        self.shadows_of(gfn).next().is_some()
    }

    pub(super) fn page(&self, table: TableId) -> Option<&ShadowPage> {
        self.pages.pages.get(&table)
    }

    fn shadows_of(&self, gfn: Gfn) -> impl Iterator<Item = TableId> {
        let all = (gfn, PageRole::MIN)..=(gfn, PageRole::MAX);
        let pages = self.pages.by_key.range(all);
        pages
            .filter(|((_, role), _)| !role.is_direct())
            .map(|(_, &table)| table)
    }

    /// The page with this key, made if there is none; and whether it was. `None` if all tables are in use.
    ///
    /// A guest table that gets its first shadow is write-protected, and flushed before anything is read from it again.
    pub(super) fn get(&mut self, gfn: Gfn, role: PageRole, is_root: bool) -> Option<(TableId, bool)> {
        if let Some(&table) = self.pages.by_key.get(&(gfn, role)) {
            if let Some(page) = self.pages.pages.get_mut(&table) {
                page.writes = 0;
                page.is_root |= is_root;
            }
            self.observer.get_page(gfn, role, false);
            return Some((table, false));
        }
        let table = self.pool.allocate(&mut self.pages.free)?;
        let page = ShadowPage {
            gfn,
            role,
            parents: Vec::new(),
            leaves: BTreeMap::new(),
            writes: 0,
            is_root,
        };
        self.pages.pages.insert(table, page);
        self.pages.by_key.insert((gfn, role), table);
        self.observer.get_page(gfn, role, true);
        if !role.is_direct() {
            self.write_protect(gfn);
        }
        Some((table, true))
    }

    /// Makes pending invalidations take effect now, before the caller reads guest memory again.
    pub(super) fn flush_now(&mut self) {
        if core::mem::take(&mut self.needs_flush) {
            (self.flush)();
        }
    }

    fn write_protect(&mut self, gfn: Gfn) {
        let Some(mappings) = self.pages.reverse.get(&gfn) else {
            return;
        };
        for &at in mappings {
            if let Some(entry) = leaf::write_protected(self.pool.space().load(at)) {
                self.pool.space().store(at, entry);
                self.needs_flush = true;
            }
        }
    }

    /// The page that `at` links to, if it does and that is the one with this key.
    pub(super) fn linked(&self, at: EntryLocation, gfn: Gfn, role: PageRole) -> Option<TableId> {
        let target = link::target(self.layout, self.pool.space().load(at))?;
        let child = self.pool.space().table_at(target)?;
        let page = self.pages.pages.get(&child)?;
        (page.gfn == gfn && page.role == role).then_some(child)
    }

    /// The table is used as one: writes to it were no sign of the contrary.
    pub(super) fn clear_flood(&mut self, table: TableId) {
        if let Some(page) = self.pages.pages.get_mut(&table) {
            page.writes = 0;
        }
    }

    /// Links `child` from `at`.
    pub(super) fn link(&mut self, at: EntryLocation, child: TableId) {
        let entry = link::encode(self.layout, self.pool.space().address(child));
        if self.pool.space().load(at) == entry {
            return;
        }
        self.drop_entry(at);
        self.pool.space().store(at, entry);
        if let Some(page) = self.pages.pages.get_mut(&child) {
            page.parents.push(at);
        }
    }

    /// Maps `gfn` at `at`.
    pub(super) fn set_leaf(&mut self, at: EntryLocation, gfn: Gfn, entry: u64) -> Set {
        if self.pool.space().load(at) == entry {
            return Set::Same;
        }
        self.drop_entry(at);
        self.pool.space().store(at, entry);
        self.pages.reverse.entry(gfn).or_default().push(at);
        if let Some(page) = self.pages.pages.get_mut(&at.table) {
            page.leaves.insert(at.index, gfn);
        }
        Set::Changed
    }

    /// Puts an MMIO SPTE at `at`.
    pub(super) fn set_mmio(&mut self, at: EntryLocation, entry: u64) -> Set {
        if self.pool.space().load(at) == entry {
            return Set::Same;
        }
        self.drop_entry(at);
        self.pool.space().store(at, entry);
        Set::Changed
    }

    /// Empties an entry and everything that is kept about it; the page it linked to stays. Says whether it held anything.
    pub(super) fn drop_entry(&mut self, at: EntryLocation) -> bool {
        let entry = self.pool.space().load(at);
        if entry == self.layout.empty() {
            return false;
        }
        self.pool.space().store(at, self.layout.empty());
        if !self.layout.is_mmu_present(entry) {
            // An MMIO SPTE: no TLB holds it.
            return true;
        }
        self.needs_flush = true;
        let page = self.pages.pages.get_mut(&at.table);
        if let Some(gfn) = page.and_then(|page| page.leaves.remove(&at.index)) {
            if let Some(mappings) = self.pages.reverse.get_mut(&gfn) {
                mappings.retain(|&mapping| mapping != at);
                if mappings.is_empty() {
                    self.pages.reverse.remove(&gfn);
                }
            }
        } else if let Some(child) = link::target(self.layout, entry)
            && let Some(child) = self.pool.space().table_at(child)
            && let Some(child) = self.pages.pages.get_mut(&child)
        {
            child.parents.retain(|&parent| parent != at);
        }
        true
    }

    /// Unlinks and empties a page and takes it out of use.
    pub(super) fn zap(&mut self, table: TableId) {
        let Some(page) = self.pages.pages.get_mut(&table) else {
            return;
        };
        self.observer.prepare_zap_page(page.gfn, page.role);
        let parents = core::mem::take(&mut page.parents);
        if page.is_root {
            // A root is linked from vCPUs: this cuts it off, and so must come before the table is counted as recycled.
            self.root_epoch.fetch_add(1, Ordering::Release);
        }
        self.pages.by_key.remove(&(page.gfn, page.role));
        for parent in parents {
            self.pool.space().store(parent, self.layout.empty());
            self.needs_flush = true;
        }
        self.pool.about_to_recycle();
        for at in entries(table) {
            self.drop_entry(at);
        }
        self.pages.pages.remove(&table);
        self.unused.push(table);
    }

    /// Removes all pages.
    pub(super) fn zap_all(&mut self) {
        let tables: Vec<TableId> = self.pages.pages.keys().copied().collect();
        for table in tables {
            self.zap(table);
        }
    }

    /// Removes all mappings of the frames, and all shadows of guest tables in them.
    pub(super) fn zap_range(&mut self, range: GfnRange) {
        let frames = range.start()..=range.last();
        let mappings: Vec<EntryLocation> = self
            .pages
            .reverse
            .range(frames)
            .flat_map(|(_, at)| at)
            .copied()
            .collect();
        for at in mappings {
            self.drop_entry(at);
        }
        let keys = (range.start(), PageRole::MIN)..=(range.last(), PageRole::MAX);
        let tables: Vec<TableId> = self.pages.by_key.range(keys).map(|(_, &table)| table).collect();
        for table in tables {
            self.zap(table);
        }
    }

    /// The guest changed bytes `offset..offset + bytes` of the frame: what was derived from them goes
    /// (`kvm_mmu_track_write`).
    pub(super) fn guest_wrote(&mut self, gfn: Gfn, offset: u16, bytes: u16) {
        let tables: Vec<TableId> = self.shadows_of(gfn).collect();
        for table in tables {
            let Some(page) = self.pages.pages.get_mut(&table) else {
                continue;
            };
            let role = page.role;
            page.writes += 1;
            let size = if role.has_4_byte_gpte() { 4 } else { 8 };
            // A guest doesn't write parts of two page-table entries at once, or less than half of one
            // (`detect_write_misaligned`): then it is no table any more.
            let last = offset + bytes.max(1) - 1;
            let misaligned = offset / size != last / size || bytes < 4;
            // A single byte at the start of an entry sets or clears its flags (`andb` in `clear_bit`).
            let misaligned = misaligned && !(bytes == 1 && offset.is_multiple_of(size));
            if page.writes >= FLOOD || misaligned {
                self.zap(table);
                continue;
            }
            for index in shadow_indices(role, offset / size) {
                self.drop_entry(EntryLocation { table, index });
            }
        }
    }
}

/// Which entries of a page with this role shadow guest entry `entry` of the table (none, one or two).
fn shadow_indices(role: PageRole, entry: u16) -> impl Iterator<Item = u16> {
    // A four-byte PDE covers 4 MiB, ours 2 MiB.
    let (first, count) = if role.has_4_byte_gpte() && role.level() == 2 {
        (2 * entry, 2)
    } else {
        (entry, 1)
    };
    let quadrant = if role.has_4_byte_gpte() {
        u16::from(role.quadrant())
    } else {
        0
    };
    (first..first + count)
        .filter(move |index| index >> 9 == quadrant)
        .map(|index| {
            #[expect(clippy::cast_possible_truncation, reason = "nine bits")]
            let index = (u64::from(index) & bits(0, 8)) as u16;
            index
        })
}
