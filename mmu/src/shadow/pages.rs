//! [`Pages`]: the shadow pages, by (gfn, role); who links to them; which entries map a frame. All under the MMU's lock.
//!
//! A shadow page is a table of the pool, and is named by it. What is kept beside the entries:
//!
//! * for each page its parents (the entries that link to it), so that it can be unlinked,
//! * for each frame its reverse map (the leaves that map it), so that it can be write-protected or unmapped,
//! * for each leaf of a shadow of a guest table what it was made from, which the entry doesn't say.
//!
//! Whatever takes rights away asks for a flush. Tables that are taken out of use wait for it: until then a CPU may be
//! inside them. Who changes pages: `get` and `path` (make them), `unsync` and `sync` (let the guest write to its tables,
//! and catch up), `guest_write` (drop what an emulated write changed), `zap` (remove them).

use super::by_table::ByTable;
use super::layout::SpteLayout;
use super::leaf;
use super::link;
use super::mappings::{FrameKey, Mappings};
use super::role::PageRole;
use super::unsync::ChildBits;
use crate::access_mask::AccessMask;
use crate::observer::MmuObserver;
use crate::pool::{FreeTables, TablePool};
use crate::sync::AtomicU64;
use crate::tables::{ENTRIES, EntryLocation, INDEX_BITS, TableId, TableSpace};
use alloc::collections::btree_map::Entry;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use umbra_memslots::{Gfn, GfnRange, PAGE_SHIFT};

/// What is known of a shadow page besides its entries.
pub(super) struct ShadowPage {
    pub(super) gfn: Gfn,
    pub(super) role: PageRole,
    pub(super) parents: Vec<EntryLocation>,
    /// Of what each leaf was made; empty for a direct page, where it follows from gfn and index.
    sources: Vec<Source>,
    /// Emulated writes since it was last used.
    pub(super) writes: u8,
    pub(super) is_root: bool,
    /// When it was made.
    pub(super) age: u64,
    /// Of what validity it is: an older one than [`Pages::valid`] is as good as gone.
    pub(super) valid: u64,
    /// The guest may write to the table; entries may be older than what it holds now.
    pub(super) unsync: bool,
    /// Which entries lead to pages that are unsync, or did.
    pub(super) unsync_children: ChildBits,
}

/// What a leaf was made from: gfn and access, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Source(u64);

impl Source {
    fn new(gfn: Gfn, access: AccessMask) -> Self {
        Self(gfn.get() << PAGE_SHIFT | u64::from(access.bits()))
    }

    fn gfn(self) -> Gfn {
        Gfn::from_masked(self.0 >> PAGE_SHIFT)
    }
}

impl ShadowPage {
    fn new(gfn: Gfn, role: PageRole, is_root: bool, age: u64, valid: u64) -> Self {
        let sources = if role.is_direct() {
            Vec::new()
        } else {
            alloc::vec![Source::default(); ENTRIES]
        };
        Self {
            gfn,
            role,
            parents: Vec::new(),
            sources,
            writes: 0,
            is_root,
            age,
            valid,
            unsync: false,
            unsync_children: ChildBits::default(),
        }
    }

    /// The first frame of those that leaf `index` maps.
    pub(super) fn leaf_gfn(&self, index: u16) -> Gfn {
        match self.sources.get(usize::from(index)) {
            Some(source) => source.gfn(),
            None => {
                let shift = INDEX_BITS * (u32::from(self.role.level()) - 1);
                Gfn::from_masked(self.gfn.get() + (u64::from(index) << shift))
            }
        }
    }
}

/// All shadow pages.
pub(super) struct Pages {
    pub(super) free: FreeTables,
    pub(super) pages: ByTable<ShadowPage>,
    pub(super) by_key: BTreeMap<(Gfn, PageRole), TableId>,
    /// By age.
    pub(super) by_age: BTreeMap<u64, TableId>,
    /// The age of the next one.
    born: u64,
    /// Moves when everything is zapped (`mmu_valid_gen`).
    pub(super) valid: u64,
    /// Frames whose memory is being taken away.
    pub(super) invalidations: Vec<GfnRange>,
    /// The leaves of each level that map the frames from this one on.
    pub(super) reverse: BTreeMap<FrameKey, Mappings>,
    /// Frames that are logged by dirty flags, and those of them that were written to through leaves that are gone.
    pub(super) dirty_flags: Vec<GfnRange>,
    pub(super) dirty: BTreeSet<Gfn>,
}

impl Pages {
    pub(super) fn new(free: FreeTables) -> Self {
        Self {
            free,
            pages: ByTable::new(),
            by_key: BTreeMap::new(),
            by_age: BTreeMap::new(),
            born: 0,
            valid: 0,
            invalidations: Vec::new(),
            reverse: BTreeMap::new(),
            dirty_flags: Vec::new(),
            dirty: BTreeSet::new(),
        }
    }
}

/// The right to change the shadow pages, for the length of one operation.
pub(super) struct Writer<'a, S, O> {
    pub(super) observer: &'a mut O,
    pub(super) pool: &'a TablePool<S>,
    pub(super) layout: &'a SpteLayout,
    pub(super) pages: &'a mut Pages,
    pub(super) root_epoch: &'a AtomicU64,
    flush: &'a mut dyn FnMut(),
    pub(super) unused: Vec<TableId>,
    pub(super) needs_flush: bool,
}

/// What became of an entry that was to be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Set {
    Changed,
    Same,
}

/// A leaf to be set.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewLeaf {
    /// The first frame of those that it maps.
    pub(super) gfn: Gfn,
    /// What it allows, before write protection.
    pub(super) access: AccessMask,
    pub(super) level: u8,
    pub(super) entry: u64,
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

    /// Makes pending invalidations take effect now, before the caller reads guest memory again, and makes unused tables
    /// free. An operation ends with this.
    pub(super) fn flush_now(&mut self) {
        if core::mem::take(&mut self.needs_flush) || !self.unused.is_empty() {
            (self.flush)();
        }
        for table in self.unused.drain(..) {
            self.pool.give_back(&mut self.pages.free, table);
        }
    }

    /// Number of tables in use.
    pub(super) fn in_use(&self) -> u32 {
        self.pool.in_use(&self.pages.free)
    }

    /// Number of reverse map entries.
    pub(super) fn leaves(&self) -> usize {
        self.pages.reverse.values().map(|found| found.as_slice().len()).sum()
    }

    pub(super) fn page(&self, table: TableId) -> Option<&ShadowPage> {
        self.pages.pages.get(table)
    }

    pub(super) fn load(&self, at: EntryLocation) -> u64 {
        self.pool.space().load(at)
    }

    /// The table that an entry leads to.
    pub(super) fn target(&self, at: EntryLocation) -> Option<TableId> {
        let level = self.page(at.table)?.role.level();
        self.below(at, level)
    }

    /// The table that an entry of this level leads to.
    fn below(&self, at: EntryLocation, level: u8) -> Option<TableId> {
        let target = link::target(self.layout, self.load(at)).filter(|_| level > 1)?;
        self.pool.space().table_at(target)
    }

    /// The shadows of a guest table.
    pub(super) fn shadows_of(&self, gfn: Gfn) -> impl Iterator<Item = (PageRole, TableId)> {
        self.shadows_in(gfn, 1).map(|(_, role, table)| (role, table))
    }

    /// The shadows of guest tables in `count` frames from `first` on.
    fn shadows_in(&self, first: Gfn, count: u64) -> impl Iterator<Item = (Gfn, PageRole, TableId)> {
        let last = Gfn::from_masked(first.get() + count - 1);
        let pages = self.pages.by_key.range((first, PageRole::MIN)..=(last, PageRole::MAX));
        pages
            .filter(|((_, role), _)| !role.is_direct())
            .map(|(&(gfn, role), &table)| (gfn, role, table))
    }

    /// Whether writes to the frame must be known of: it is a guest table above the last level that has a shadow
    /// (`kvm_gfn_is_write_tracked`).
    pub(super) fn is_tracked(&self, gfn: Gfn) -> bool {
        self.shadows_of(gfn).any(|(role, _)| role.level() > 1)
    }

    /// Whether any frame that a leaf of `level` at `gfn` maps is a guest table that has a shadow (`disallow_lpage`).
    pub(super) fn is_shadowed(&self, gfn: Gfn, level: u8) -> bool {
        self.shadows_in(gfn, frames_of(level)).next().is_some()
    }

    /// All leaves that map the frame: of level, at.
    pub(super) fn mappings_of(&self, gfn: Gfn) -> Vec<EntryLocation> {
        let mut mappings = Vec::new();
        for level in 1..=leaf::MAX_LEVEL {
            let base = first_of(gfn, level);
            mappings.extend(
                self.pages
                    .reverse
                    .get(&FrameKey::new(level, base))
                    .map_or(&[][..], Mappings::as_slice),
            );
        }
        mappings
    }

    /// Takes the right to write from all leaves that map the frame. Says whether one had it.
    pub(super) fn write_protect(&mut self, gfn: Gfn) -> bool {
        let mut any = false;
        for at in self.mappings_of(gfn) {
            any |= self.replace(at, leaf::write_protected);
        }
        self.needs_flush |= any;
        any
    }

    /// Replaces a leaf by what `change` makes of it, which may be nothing else. Says whether it did. A CPU may set flags
    /// in it at the same time.
    pub(super) fn replace(&self, at: EntryLocation, change: impl Fn(u64) -> Option<u64>) -> bool {
        let mut entry = self.load(at);
        while let Some(new) = change(entry) {
            match self.pool.space().compare_exchange(at, entry, new) {
                Ok(()) => return true,
                Err(other) => entry = other,
            }
        }
        false
    }

    /// The page that `at`, which is of `level`, links to, if it does and that is the one with this key.
    pub(super) fn linked(&self, at: EntryLocation, level: u8, gfn: Gfn, role: PageRole) -> Option<TableId> {
        let child = self.below(at, level)?;
        let page = self.page(child)?;
        (page.gfn == gfn && page.role == role).then_some(child)
    }

    /// A page with this key, without entries. `None` if all tables are in use.
    ///
    /// A guest table that gets its first shadow is write-protected; to be flushed before anything is read from it.
    pub(super) fn create(&mut self, gfn: Gfn, role: PageRole, is_root: bool) -> Option<TableId> {
        let table = self.pool.allocate(&mut self.pages.free)?;
        let (age, valid) = (self.pages.born, self.pages.valid);
        self.pages.born += 1;
        let page = ShadowPage::new(gfn, role, is_root, age, valid);
        self.pages.pages.insert(table, page);
        self.pages.by_age.insert(age, table);
        self.pages.by_key.insert((gfn, role), table);
        if !role.is_direct() {
            self.write_protect(gfn);
        }
        Some(table)
    }

    /// The table is used as one: writes to it were no sign of the contrary.
    pub(super) fn clear_flood(&mut self, table: TableId) {
        if let Some(page) = self.pages.pages.get_mut(table) {
            page.writes = 0;
        }
    }

    /// Links `child` from `at`.
    pub(super) fn link(&mut self, at: EntryLocation, child: TableId) {
        let entry = link::encode(self.layout, self.pool.space().address(child));
        if self.load(at) == entry {
            return;
        }
        self.drop_entry(at);
        self.pool.space().store(at, entry);
        if let Some(page) = self.pages.pages.get_mut(child) {
            page.parents.push(at);
            if page.unsync || page.unsync_children.any() {
                self.mark_parent(at);
            }
        }
    }

    /// Maps memory at `at`.
    pub(super) fn set_leaf(&mut self, at: EntryLocation, new: NewLeaf) -> Set {
        let NewLeaf {
            gfn,
            access,
            level,
            entry,
        } = new;
        let old = self.load(at);
        if old == entry {
            return Set::Same;
        }
        if self.maps(at, old, gfn)
            && !leaf::needs_flush(old, entry)
            && self.replace(at, |old| Some(leaf::keeping_dirty(old, entry)))
        {
            // The same page with more rights: nobody need forget what he knows.
            self.set_source(at, gfn, access);
            return Set::Changed;
        }
        self.drop_entry(at);
        self.pool.space().store(at, entry);
        let found = self.pages.reverse.entry(FrameKey::new(level, gfn));
        found.and_modify(|found| found.push(at)).or_insert(Mappings::One(at));
        self.set_source(at, gfn, access);
        Set::Changed
    }

    /// Whether the entry is a leaf for these frames.
    fn maps(&self, at: EntryLocation, entry: u64, gfn: Gfn) -> bool {
        self.layout.is_mmu_present(entry)
            && self.target(at).is_none()
            && self.page(at.table).is_some_and(|page| page.leaf_gfn(at.index) == gfn)
    }

    /// Notes what the leaf was made from.
    pub(super) fn set_source(&mut self, at: EntryLocation, gfn: Gfn, access: AccessMask) {
        let page = self.pages.pages.get_mut(at.table);
        if let Some(source) = page.and_then(|page| page.sources.get_mut(usize::from(at.index))) {
            *source = Source::new(gfn, access);
        }
    }

    /// Puts an MMIO SPTE at `at`.
    pub(super) fn set_mmio(&mut self, at: EntryLocation, entry: u64) -> Set {
        if self.load(at) == entry {
            return Set::Same;
        }
        self.drop_entry(at);
        self.pool.space().store(at, entry);
        Set::Changed
    }

    /// Empties an entry, and gives what it held in the end: a CPU may set flags in it until the last moment.
    fn take(&self, at: EntryLocation) -> u64 {
        let mut entry = self.load(at);
        while let Err(other) = self.pool.space().compare_exchange(at, entry, self.layout.empty()) {
            entry = other;
        }
        entry
    }

    /// Empties an entry and everything that is kept about it; the page it linked to stays. Says whether it held anything.
    pub(super) fn drop_entry(&mut self, at: EntryLocation) -> bool {
        let entry = self.load(at);
        if entry == self.layout.empty() {
            return false;
        }
        let child = self.target(at);
        let entry = self.take(at);
        if !self.layout.is_mmu_present(entry) {
            // An MMIO SPTE: no TLB holds it.
            return true;
        }
        self.needs_flush = true;
        if let Some(child) = child {
            if let Some(child) = self.pages.pages.get_mut(child) {
                child.parents.retain(|&parent| parent != at);
            }
        } else if let Some(page) = self.page(at.table) {
            let (level, gfn) = (page.role.level(), page.leaf_gfn(at.index));
            if leaf::is_dirty(entry) && self.pages.dirty_flags.iter().any(|range| range.contains(gfn)) {
                self.pages.dirty.insert(gfn);
            }
            if let Entry::Occupied(mut found) = self.pages.reverse.entry(FrameKey::new(level, gfn))
                && found.get_mut().remove(at)
            {
                found.remove();
            }
        }
        true
    }
}

/// Frames that a leaf of `level` maps.
pub(super) fn frames_of(level: u8) -> u64 {
    1 << (INDEX_BITS * (u32::from(level) - 1))
}

/// The first frame of those that a leaf of `level` maps together with `gfn`.
pub(super) fn first_of(gfn: Gfn, level: u8) -> Gfn {
    Gfn::from_masked(gfn.get() & !(frames_of(level) - 1))
}
