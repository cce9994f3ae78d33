//! [`TablePool`]: which tables of a [`TableSpace`] are in use, and how a lock-free reader notices that one was recycled.
//!
//! A reader may be inside a table when it is recycled. It can't read freed memory (tables are named by index), but it
//! could read what the table holds in its next life. So the writer first unlinks, then counts [`TablePool::recycled`] up,
//! then clears and reuses; the reader compares the counter before and after. If it followed a link that was already cut
//! when it started, it would have seen the cut (the counter's acquire); if it read an entry of the next life, it sees the
//! counter moved (that entry's acquire). In both cases it throws its answer away. `tests/loom_direct.rs` checks this.
//!
//! Who *changes* entries without the right to change tables can't throw that away afterwards, so it exchanges only what it
//! has read, and says that it is there ([`TablePool::change`]): whoever makes entries that it could take for such as it has
//! seen waits for it first. `tests/loom_memory.rs` checks that.

use crate::sync::{AtomicU64, Ordering, relax};
use crate::tables::{ENTRIES, EntryLocation, TableId, TableSpace};
use alloc::vec::Vec;

/// A space, what its empty entries hold, and the counter.
#[derive(Debug)]
pub(crate) struct TablePool<S> {
    space: S,
    empty: u64,
    /// How often tables were recycled. Only moves with the right to [`FreeTables`].
    recycled: AtomicU64,
    /// How many change entries without [`FreeTables`].
    changing: AtomicU64,
}

/// Somebody who may be about to exchange an entry.
struct Changing<'a>(&'a AtomicU64);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// Tables that are empty and linked from nowhere. Whoever has it may change tables.
pub(crate) struct FreeTables {
    /// Were in use, and have been cleared.
    returned: Vec<TableId>,
    /// From here on none was ever in use.
    untouched: u32,
}

impl<S: TableSpace> TablePool<S> {
    /// A pool over a zeroed space, of which the first `taken` tables are in use already.
    pub(crate) fn new(space: S, empty: u64, taken: u32) -> (Self, FreeTables) {
        let free = FreeTables {
            returned: Vec::with_capacity(space.capacity() as usize),
            untouched: taken,
        };
        let pool = Self {
            space,
            empty,
            recycled: AtomicU64::new(0),
            changing: AtomicU64::new(0),
        };
        for table in 0..taken {
            pool.make_empty(TableId::new(table));
        }
        (pool, free)
    }

    #[inline]
    pub(crate) fn space(&self) -> &S {
        &self.space
    }

    /// How often tables were recycled: to be compared before and after a walk.
    #[inline]
    pub(crate) fn recycled(&self) -> u64 {
        self.recycled.load(Ordering::Acquire)
    }

    /// Runs `f`, which exchanges an entry, and which [`TablePool::wait_for_changes`] waits for. `f` must be short, and not
    /// wait for anybody who changes tables.
    pub(crate) fn change<R>(&self, f: impl FnOnce() -> R) -> R {
        self.changing.fetch_add(1, Ordering::AcqRel);
        let _changing = Changing(&self.changing);
        f()
    }

    /// Returns when everybody who may not have seen what the caller did until now has left (`synchronize_srcu`).
    ///
    /// An exchange on both sides: either this one comes after the other's, and waits, or before it, and then the other sees
    /// what was done.
    pub(crate) fn wait_for_changes(&self) {
        while self.changing.fetch_add(0, Ordering::AcqRel) != 0 {
            relax();
        }
    }

    /// An empty table, or `None` if all are in use.
    pub(crate) fn allocate(&self, free: &mut FreeTables) -> Option<TableId> {
        if let Some(table) = free.returned.pop() {
            return Some(table);
        }
        if free.untouched == self.space.capacity() {
            return None;
        }
        let table = TableId::new(free.untouched);
        free.untouched += 1;
        self.make_empty(table);
        Some(table)
    }

    /// To be called when a table was unlinked, before the first entry below the cut is changed.
    pub(crate) fn about_to_recycle(&self) {
        self.recycled.fetch_add(1, Ordering::Release);
    }

    /// Takes back a table that is unlinked and whose entries are all empty.
    pub(crate) fn give_back(&self, free: &mut FreeTables, table: TableId) {
        free.returned.push(table);
    }

    /// Number of tables in use.
    pub(crate) fn in_use(&self, free: &FreeTables) -> u32 {
        let returned = u32::try_from(free.returned.len()).unwrap_or(u32::MAX);
        free.untouched.saturating_sub(returned)
    }

    /// A table of zeros, as the space came, becomes one of empty entries.
    fn make_empty(&self, table: TableId) {
        if self.empty != 0 {
            for at in entries(table) {
                self.space.store(at, self.empty);
            }
        }
    }
}

/// All entries of a table.
pub(crate) fn entries(table: TableId) -> impl Iterator<Item = EntryLocation> {
    (0u16..).take(ENTRIES).map(move |index| EntryLocation { table, index })
}
