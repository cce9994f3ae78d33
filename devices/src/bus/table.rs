//! [`CursorTable`]: what a cursor remembers: for each block that can be resolved without a search, who owns it.
//!
//! A private copy, so that an access needs nothing but the cursor's own memory: a multiplication, a shift and one load, as
//! from a flat array by page, and the counters are in the same cache line. Made anew when the bus changed.

use super::address::BusAddress;
use super::index::Hash;
use super::region::{Region, RegionId};
use super::routes::Routes;
use crate::device::Device;
use std::sync::Arc;

/// Reads and writes.
pub(super) type Counts = [u64; 2];

/// One block's owner. One cache line.
#[repr(align(64))]
pub(super) struct Entry {
    pub(super) start: u64,
    /// 0 if nobody is remembered here, so that nothing lies within.
    pub(super) len: u64,
    /// What the bus calls.
    pub(super) target: Option<Arc<dyn Device>>,
    pub(super) id: RegionId,
    pub(super) counts: Counts,
}

impl Entry {
    fn new<A: BusAddress>(owner: Option<&Region<A>>) -> Self {
        Self {
            start: owner.map_or(0, |region| region.range.start().raw()),
            len: owner.map_or(0, |region| region.range.len()),
            target: owner.map(|region| Arc::clone(&region.target)),
            id: owner.map_or(RegionId(u64::MAX), |region| region.id),
            counts: [0; 2],
        }
    }
}

/// The table of one cursor, for one state of the bus.
pub(super) struct CursorTable {
    hash: Hash,
    entries: Box<[Entry]>,
}

impl CursorTable {
    /// Remembers what can be remembered of `routes`.
    pub(super) fn new<A: BusAddress>(routes: &Routes<A>) -> Self {
        let class = routes.index.first();
        let owner = |number: u32| &routes.regions[number as usize];
        let entries = class.owners().map(|number| Entry::new(number.map(owner))).collect();
        Self {
            hash: class.hash(),
            entries,
        }
    }

    /// The entry where `block` is, if it is in the table.
    #[inline]
    pub(super) fn entry_mut(&mut self, block: u64) -> Option<&mut Entry> {
        self.entries.get_mut(self.hash.home(block))
    }

    /// The accesses counted, by region; a region of several blocks comes several times.
    pub(super) fn counts(&self) -> impl Iterator<Item = (RegionId, Counts)> {
        self.entries
            .iter()
            .filter(|entry| entry.counts != [0; 2])
            .map(|entry| (entry.id, entry.counts))
    }
}
