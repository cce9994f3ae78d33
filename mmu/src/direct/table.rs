//! [`DirectTable`]: a radix tree from gfn to page-table entry, in the format that a CPU walks.
//!
//! **Reading** takes no lock, writes nothing shared and allocates nothing: four or five dependent loads, between two
//! loads of a counter. **Writing** is serialised by one lock.
//!
//! Tables are recycled; how a reader notices is told in the module `pool`.

use super::levels::Levels;
use crate::pool::{FreeTables, TablePool, entries};
use crate::shadow::{SpteLayout, link};
use crate::sync::Lock;
use crate::tables::{EntryLocation, HeapTables, INDEX_BITS, TableId, TableSpace};
use core::fmt;
use umbra_memslots::{AddressSpaceId, Gfn, GfnRange};

/// What a walk found at the bottom, or where it had to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The entry, as the hardware would read it.
    pub entry: u64,
    /// Its level: 1 for 4 KiB; higher if the walk met an entry there that isn't a link.
    pub level: u8,
    /// Where it is.
    pub at: EntryLocation,
}

/// The table at level 1 that one reader used last: what a paging-structure cache is in a CPU. Of one
/// [`DirectTable`], and not to be used with another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastTable {
    /// Address space and gfn without the bits that index the table.
    region: Option<(AddressSpaceId, u64)>,
    table: TableId,
    /// It leads there as long as nothing was recycled since.
    recycled: u64,
}

impl LastTable {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            region: None,
            table: TableId::new(0),
            recycled: 0,
        }
    }
}

impl Default for LastTable {
    fn default() -> Self {
        Self::new()
    }
}

/// All tables are in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("all {limit} page tables are in use")]
pub struct OutOfTables {
    /// How many there are.
    pub limit: u32,
}

/// The tree has no place for a gfn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NewTableError {
    /// The space doesn't even hold the roots and one path.
    #[error("{capacity} page tables are too few: {needed} are needed for one page in each address space")]
    TooFewTables {
        /// What the space has.
        capacity: u32,
        /// What is needed.
        needed: u32,
    },
}

/// What installing an entry did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Installed {
    /// Where the entry is.
    pub at: EntryLocation,
    /// What was there before.
    pub old: u64,
}

/// What a zap removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Zapped {
    /// Entries of level 1 (and, where there are any, large ones).
    pub leaves: u64,
    /// Tables that went back to the free ones.
    pub tables: u32,
}

/// One radix tree for each address space, in one [`TableSpace`].
pub struct DirectTable<S = HeapTables> {
    layout: SpteLayout,
    levels: Levels,
    pool: TablePool<S>,
    free: Lock<FreeTables>,
}

impl<S: TableSpace> DirectTable<S> {
    /// Empty trees for both address spaces.
    ///
    /// `space` must be zeroed and used by nobody else.
    ///
    /// # Errors
    /// [`NewTableError::TooFewTables`].
    pub fn new(layout: SpteLayout, levels: Levels, space: S) -> Result<Self, NewTableError> {
        let roots = u32::from(AddressSpaceId::COUNT);
        let capacity = space.capacity();
        let needed = roots + u32::from(levels.get()) - 1;
        if capacity < needed {
            return Err(NewTableError::TooFewTables { capacity, needed });
        }
        let (pool, free) = TablePool::new(space, layout.empty(), roots);
        Ok(Self {
            layout,
            levels,
            pool,
            free: Lock::new(free),
        })
    }

    /// The layout of the entries.
    #[must_use]
    pub fn layout(&self) -> &SpteLayout {
        &self.layout
    }

    /// Number of levels.
    #[must_use]
    pub fn levels(&self) -> Levels {
        self.levels
    }

    /// Where the tables are.
    #[must_use]
    pub fn space(&self) -> &S {
        self.pool.space()
    }

    /// The root of an address space's tree.
    #[inline]
    #[must_use]
    pub fn root(&self, address_space: AddressSpaceId) -> TableId {
        TableId::new(u32::from(address_space.index()))
    }

    /// Number of tables in use, roots included.
    #[must_use]
    pub fn tables_in_use(&self) -> u32 {
        self.write(|writer| writer.tables_in_use())
    }

    /// Walks to the entry for `gfn`, as a CPU would. `None` if tables were recycled meanwhile: nothing is known then.
    ///
    /// A gfn that the tree can't hold gives an empty entry.
    #[inline]
    #[must_use]
    pub fn walk(&self, address_space: AddressSpaceId, gfn: Gfn) -> Option<Leaf> {
        let before = self.pool.recycled();
        let leaf = self.walk_once(self.root(address_space), gfn);
        // The loads of the walk are acquire: this one comes after them.
        (self.pool.recycled() == before).then_some(leaf)
    }

    /// As [`DirectTable::walk`], beginning at the last table of the last walk if that leads to `gfn`, too: pages of
    /// MMIO tend to lie close together.
    #[inline]
    #[must_use]
    pub fn walk_from(&self, last: &mut LastTable, address_space: AddressSpaceId, gfn: Gfn) -> Option<Leaf> {
        let region = (address_space, gfn.get() >> INDEX_BITS);
        let before = self.pool.recycled();
        if last.recycled == before && last.region == Some(region) {
            let at = EntryLocation {
                table: last.table,
                index: self.levels.index(gfn, 1),
            };
            let entry = self.pool.space().load(at);
            return (self.pool.recycled() == before).then_some(Leaf { entry, level: 1, at });
        }
        let leaf = self.walk(address_space, gfn)?;
        if leaf.level == 1 {
            // If tables were recycled between `before` and the walk, this is out of date at once, and not believed.
            *last = LastTable {
                region: Some(region),
                table: leaf.at.table,
                recycled: before,
            };
        }
        Some(leaf)
    }

    /// Changes the tree, with all other writers held off.
    pub fn write<R>(&self, f: impl FnOnce(&mut TableWriter<'_, S>) -> R) -> R {
        self.free.with(|free| f(&mut TableWriter { table: self, free }))
    }

    #[inline]
    fn walk_once(&self, root: TableId, gfn: Gfn) -> Leaf {
        // The depth as a constant: the loop becomes straight code.
        match self.levels {
            Levels::Four => self.walk_levels::<4>(root, gfn),
            Levels::Five => self.walk_levels::<5>(root, gfn),
        }
    }

    #[inline(always)]
    fn walk_levels<const TOP: u8>(&self, root: TableId, gfn: Gfn) -> Leaf {
        let mut at = EntryLocation {
            table: root,
            index: self.levels.index(gfn, TOP),
        };
        if !self.levels.holds(gfn) {
            return Leaf {
                entry: self.layout.empty(),
                level: TOP,
                at,
            };
        }
        let mut level = TOP;
        let mut entry = self.pool.space().load(at);
        while level > 1 {
            let Some(table) = self.next(entry) else { break };
            level -= 1;
            at = EntryLocation {
                table,
                index: self.levels.index(gfn, level),
            };
            entry = self.pool.space().load(at);
        }
        Leaf { entry, level, at }
    }

    #[inline]
    pub(super) fn next(&self, entry: u64) -> Option<TableId> {
        self.pool.space().table_at(link::target(&self.layout, entry)?)
    }
}

/// The right to change a [`DirectTable`].
pub struct TableWriter<'a, S> {
    pub(super) table: &'a DirectTable<S>,
    free: &'a mut FreeTables,
}

impl<S: TableSpace> TableWriter<'_, S> {
    /// Puts `entry` at level 1 for `gfn`, making the tables above it; a large leaf in the way is split. The tree must hold the gfn ([`Levels::holds`]);
    /// for another, nothing is installed and the root's entry is reported.
    ///
    /// # Errors
    /// [`OutOfTables`]; what was there before is still there.
    pub fn install(&mut self, address_space: AddressSpaceId, gfn: Gfn, entry: u64) -> Result<Installed, OutOfTables> {
        loop {
            let leaf = self.table.walk_once(self.table.root(address_space), gfn);
            if leaf.level > 1 && self.table.levels.holds(gfn) {
                self.split(leaf.at, leaf.level)?;
                continue;
            }
            if leaf.level == 1 && leaf.entry != entry {
                self.table.pool.space().store(leaf.at, entry);
            }
            return Ok(Installed {
                at: leaf.at,
                old: leaf.entry,
            });
        }
    }

    /// Number of tables in use, roots included.
    #[must_use]
    pub fn tables_in_use(&self) -> u32 {
        self.table.pool.in_use(self.free)
    }

    /// Removes all entries for gfns of the range (large leaves that reach into it as a whole), and the tables that held nothing else.
    pub fn zap_range(&mut self, address_space: AddressSpaceId, range: GfnRange) -> Zapped {
        let mut zapped = Zapped::default();
        let levels = self.table.levels;
        if let Some(range) = range.intersection(levels.gfns()) {
            self.zap_below(self.table.root(address_space), levels.get(), range, &mut zapped);
        }
        zapped
    }

    /// Removes all entries of an address space.
    pub fn zap_all(&mut self, address_space: AddressSpaceId) -> Zapped {
        self.zap_range(address_space, self.table.levels.gfns())
    }

    /// `range` lies within what `table` covers. At most five deep.
    fn zap_below(&mut self, table: TableId, level: u8, range: GfnRange, zapped: &mut Zapped) {
        let levels = self.table.levels;
        for index in levels.index(range.start(), level)..=levels.index(range.last(), level) {
            let at = EntryLocation { table, index };
            let entry = self.table.pool.space().load(at);
            if entry == self.table.layout.empty() {
                continue;
            }
            let child = if level > 1 { self.table.next(entry) } else { None };
            match (child, levels.covered(range.start(), level, index).intersection(range)) {
                // The part of the range that this entry covers is not all that it covers.
                (Some(child), Some(part)) if part.pages() < levels.pages_per_entry(level) => {
                    self.zap_below(child, level - 1, part, zapped);
                }
                (Some(child), _) => {
                    self.table.pool.space().store(at, self.table.layout.empty());
                    self.discard(child, level - 1, zapped);
                }
                (None, _) => {
                    self.table.pool.space().store(at, self.table.layout.empty());
                    zapped.leaves += 1;
                }
            }
        }
    }

    /// Does away with a table that was unlinked a moment ago, and all below it.
    pub(super) fn discard(&mut self, table: TableId, level: u8, zapped: &mut Zapped) {
        // Between the cut and the first change below it.
        self.table.pool.about_to_recycle();
        self.recycle(table, level, zapped);
    }

    /// Clears an unlinked table and all below it, and makes them free.
    fn recycle(&mut self, table: TableId, level: u8, zapped: &mut Zapped) {
        for at in entries(table) {
            let entry = self.table.pool.space().load(at);
            if entry == self.table.layout.empty() {
                continue;
            }
            match if level > 1 { self.table.next(entry) } else { None } {
                Some(child) => self.recycle(child, level - 1, zapped),
                None => zapped.leaves += 1,
            }
            self.table.pool.space().store(at, self.table.layout.empty());
        }
        self.table.pool.give_back(self.free, table);
        zapped.tables += 1;
    }

    pub(super) fn allocate(&mut self) -> Result<TableId, OutOfTables> {
        let limit = self.table.pool.space().capacity();
        self.table.pool.allocate(self.free).ok_or(OutOfTables { limit })
    }
}

impl<S: fmt::Debug> fmt::Debug for DirectTable<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectTable")
            .field("levels", &self.levels)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}
