//! [`TableSpace`]: where page tables are kept, and [`HeapTables`], the ordinary place.
//!
//! Tables are named by index, not by pointer: a stale index can at worst read an entry of another table, which the
//! users of this module detect, and never freed memory. That is what lets the whole crate forbid unsafe code.

use crate::sync::{AtomicU64, Ordering};
use alloc::boxed::Box;
use core::fmt;

/// log2 of the number of entries of a table. Under loom, tables are tiny: it tracks each atomic.
pub(crate) const INDEX_BITS: u32 = if cfg!(loom) { 1 } else { 9 };
/// Entries of a table.
pub const ENTRIES: usize = 1 << INDEX_BITS;
/// Bytes of a table in the walker's address space.
const TABLE_BYTES: u64 = 4096;

/// One 4 KiB table of a [`TableSpace`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TableId(u32);

impl TableId {
    /// The table with this index.
    #[inline]
    #[must_use]
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The index.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Where one entry is: the `sptep` of KVM's traces.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EntryLocation {
    /// The table.
    pub table: TableId,
    /// The entry's index in it, `0..512`.
    pub index: u16,
}

/// A fixed number of 4 KiB tables with 512 atomic entries each.
///
/// Implementations: [`HeapTables`]; memory shared with a VM, whose CPU walks the tables. Which tables are in use is
/// the caller's business. Tables and entries outside the space are a caller's bug, and may panic.
pub trait TableSpace {
    /// Number of tables.
    fn capacity(&self) -> u32;

    /// The address by which the walker knows a table. A multiple of 4096, below 2^52.
    fn address(&self, table: TableId) -> u64;

    /// The table that the walker knows by this address; `None` if it is none of these.
    fn table_at(&self, address: u64) -> Option<TableId>;

    /// Reads an entry (acquire).
    fn load(&self, at: EntryLocation) -> u64;

    /// Writes an entry (release).
    fn store(&self, at: EntryLocation, entry: u64);

    /// Replaces an entry if it is `current` (acquire and release).
    ///
    /// # Errors
    /// The entry as found, if it is another.
    fn compare_exchange(&self, at: EntryLocation, current: u64, new: u64) -> Result<(), u64>;
}

/// Tables in ordinary memory, for walkers that are software.
///
/// The memory is asked for once, zeroed: an operating system only backs the pages that are used.
pub struct HeapTables {
    base: u64,
    entries: Box<[AtomicU64]>,
}

/// The tables could not be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TableSpaceError {
    /// The allocator refused.
    #[error("no memory for {tables} page tables of 4 KiB")]
    OutOfMemory {
        /// How many were asked for.
        tables: u32,
    },
    /// The addresses would be unaligned, or above 2^52.
    #[error("{tables} page tables can't lie at {base:#x}: the address must be a multiple of 4096, the end below 2^52")]
    BadBase {
        /// The address asked for.
        base: u64,
        /// How many were asked for.
        tables: u32,
    },
}

impl HeapTables {
    /// `capacity` empty tables, known to the walker by addresses from `base` on.
    ///
    /// # Errors
    /// [`TableSpaceError`].
    pub fn new(base: u64, capacity: u32) -> Result<Self, TableSpaceError> {
        let end = base.checked_add(u64::from(capacity) * TABLE_BYTES);
        if !base.is_multiple_of(TABLE_BYTES) || end.is_none_or(|end| end > 1 << 52) {
            return Err(TableSpaceError::BadBase { base, tables: capacity });
        }
        let out_of_memory = TableSpaceError::OutOfMemory { tables: capacity };
        let entries = usize::try_from(capacity)
            .ok()
            .and_then(|tables| tables.checked_mul(ENTRIES));
        let entries = zeroed(entries.ok_or(out_of_memory)?).ok_or(out_of_memory)?;
        Ok(Self { base, entries })
    }

    #[inline]
    fn entry(&self, at: EntryLocation) -> &AtomicU64 {
        &self.entries[at.table.0 as usize * ENTRIES + usize::from(at.index)]
    }
}

#[cfg(not(loom))]
fn zeroed(entries: usize) -> Option<Box<[AtomicU64]>> {
    use zerocopy::FromZeros;
    <[AtomicU64]>::new_box_zeroed_with_elems(entries).ok()
}

#[cfg(loom)]
#[expect(clippy::unnecessary_wraps, reason = "the real one can fail")]
fn zeroed(entries: usize) -> Option<Box<[AtomicU64]>> {
    Some((0..entries).map(|_| AtomicU64::new(0)).collect())
}

impl TableSpace for HeapTables {
    fn capacity(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "made from a u32")]
        let tables = (self.entries.len() / ENTRIES) as u32;
        tables
    }

    #[inline]
    fn address(&self, table: TableId) -> u64 {
        self.base + u64::from(table.0) * TABLE_BYTES
    }

    #[inline]
    fn table_at(&self, address: u64) -> Option<TableId> {
        let index = address.checked_sub(self.base)? / TABLE_BYTES;
        u32::try_from(index)
            .ok()
            .filter(|&index| index < self.capacity())
            .map(TableId)
    }

    #[inline]
    fn load(&self, at: EntryLocation) -> u64 {
        self.entry(at).load(Ordering::Acquire)
    }

    #[inline]
    fn store(&self, at: EntryLocation, entry: u64) {
        self.entry(at).store(entry, Ordering::Release);
    }

    #[inline]
    fn compare_exchange(&self, at: EntryLocation, current: u64, new: u64) -> Result<(), u64> {
        self.entry(at)
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }
}

impl fmt::Debug for HeapTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeapTables")
            .field("base", &format_args!("{:#x}", self.base))
            .field("capacity", &self.capacity())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_of_each_table_leads_back_to_it() {
        let space = HeapTables::new(0x10_0000, 3).unwrap();
        for index in 0..3 {
            let table = TableId::new(index);
            assert_eq!(space.table_at(space.address(table)), Some(table));
        }
        assert_eq!(space.table_at(0xf_f000), None);
        assert_eq!(space.table_at(0x10_3000), None);
    }

    #[test]
    fn base_that_no_entry_can_hold_is_refused() {
        assert!(matches!(
            HeapTables::new(0x800, 1),
            Err(TableSpaceError::BadBase { .. })
        ));
        assert!(matches!(
            HeapTables::new((1 << 52) - 4096, 2),
            Err(TableSpaceError::BadBase { .. })
        ));
        assert!(HeapTables::new((1 << 52) - 4096, 1).is_ok());
    }

    #[test]
    fn lost_compare_exchange_says_what_is_there() {
        let space = HeapTables::new(0, 1).unwrap();
        let at = EntryLocation {
            table: TableId::new(0),
            index: 511,
        };
        space.store(at, 7);
        assert_eq!(space.compare_exchange(at, 0, 9), Err(7));
        assert_eq!(space.compare_exchange(at, 7, 9), Ok(()));
        assert_eq!(space.load(at), 9);
    }
}
