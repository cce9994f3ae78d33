//! [`SharedTables`]: shadow tables in memory that a KVM vCPU walks.

use super::arena::Arena;
use super::layout::{MONITOR_BYTES, TABLE_BYTES};
use std::fmt;
use std::sync::Arc;
use umbra_mmu::tables::{EntryLocation, TableId, TableSpace};

/// A [`TableSpace`] inside the KVM VM: the walker knows a table by its address there.
pub struct SharedTables {
    arena: Arc<Arena>,
    capacity: u32,
}

impl SharedTables {
    pub(super) fn new(arena: Arc<Arena>, capacity: u32) -> Self {
        Self { arena, capacity }
    }
}

fn offset(at: EntryLocation) -> u64 {
    MONITOR_BYTES + u64::from(at.table.get()) * TABLE_BYTES + 8 * u64::from(at.index)
}

impl TableSpace for SharedTables {
    fn capacity(&self) -> u32 {
        self.capacity
    }

    fn address(&self, table: TableId) -> u64 {
        self.arena.gpa(offset(EntryLocation { table, index: 0 })).get()
    }

    fn table_at(&self, address: u64) -> Option<TableId> {
        let index = self.arena.offset(address)?.checked_sub(MONITOR_BYTES)? / TABLE_BYTES;
        u32::try_from(index)
            .ok()
            .filter(|&index| index < self.capacity)
            .map(TableId::new)
    }

    fn load(&self, at: EntryLocation) -> u64 {
        self.arena.load(offset(at))
    }

    fn store(&self, at: EntryLocation, entry: u64) {
        self.arena.store_entry(offset(at), entry);
    }

    fn compare_exchange(&self, at: EntryLocation, current: u64, new: u64) -> Result<(), u64> {
        self.arena.exchange_entry(offset(at), current, new)
    }
}

impl fmt::Debug for SharedTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedTables")
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}
