//! [`CursorTable`]: what a cursor remembers: for each block that can be resolved without a search, who owns it.
//!
//! A private copy, so that an access needs nothing but the cursor's own memory: a multiplication, a shift and one load, as
//! from a flat array by page, and the counters are beside it. Made anew when the bus changed.

use super::address::BusAddress;
use super::index::Hash;
use super::region::{Region, RegionId};
use super::routes::Routes;
use crate::access::{IoOp, IoSize};
use crate::device::{Device, IoOutcome, Refusal};
use std::iter;
use std::sync::Arc;

/// Reads and writes.
pub(super) type Counts = [u64; 2];

/// One block's owner. Small, because the tables of all vCPUs compete for the caches with everything else.
pub(super) struct Entry {
    pub(super) start: u64,
    /// What the bus calls; never called if nobody is remembered here.
    pub(super) target: Arc<dyn Device>,
    /// Length of the region; 0 if nobody is remembered here, so that nothing lies within.
    pub(super) len: u32,
    pub(super) id: RegionId,
    /// Reads and writes since the table was made.
    pub(super) counts: Counts,
}

impl Entry {
    /// The entry of the block that `owner` owns; `vacant` stands for nobody's device.
    fn new<A: BusAddress>(owner: Option<&Region<A>>, vacant: &Arc<dyn Device>) -> Self {
        // A region of 4 GiB or more has blocks of this size at its ends at most: those are left to the search.
        let owner = owner.and_then(|region| Some((region, u32::try_from(region.range.len()).ok()?)));
        Self {
            start: owner.map_or(0, |(region, _)| region.range.start().raw()),
            target: Arc::clone(owner.map_or(vacant, |(region, _)| &region.target)),
            len: owner.map_or(0, |(_, len)| len),
            id: owner.map_or(RegionId(u32::MAX), |(region, _)| region.id),
            counts: [0; 2],
        }
    }
}

const _: () = assert!(size_of::<Entry>() == 48);

/// Unused entries at the end of each table, so that the tables of two vCPUs, which are often made one after the other and
/// so lie side by side, have no cache line (nor pair of lines, as some CPUs fetch them) in common.
const PADDING: usize = 3;

/// The device of an entry without one.
struct Vacant;

impl Device for Vacant {
    fn access(&self, _offset: u64, _size: IoSize, _op: IoOp) -> IoOutcome {
        IoOutcome::Refused(Refusal::NoRegister)
    }

    fn reset(&self) {}
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
        let vacant: Arc<dyn Device> = Arc::new(Vacant);
        let owners = class.owners().chain(iter::repeat_n(None, PADDING));
        let entries = owners.map(|number| Entry::new(number.map(owner), &vacant)).collect();
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
        let used = self.entries.iter().filter(|entry| entry.counts != [0; 2]);
        used.map(|entry| (entry.id, entry.counts))
    }
}
