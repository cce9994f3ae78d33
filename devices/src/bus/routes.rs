//! [`Routes`]: one immutable state of a bus. What the writer publishes and every cursor reads.

use super::address::BusAddress;
use super::index::Index;
use super::ioevent::IoEventTable;
use super::region::Region;

/// Number of a bus state. Each published change has a higher one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BusGeneration(pub(super) u64);

impl BusGeneration {
    /// The generation as a number; 0 is the empty bus.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// An immutable state of a bus: regions, ioeventfds, and the index over them.
pub(super) struct Routes<A> {
    pub(super) generation: BusGeneration,
    /// Ascending by address; a region's *number* is its position here.
    pub(super) regions: Box<[Region<A>]>,
    pub(super) events: IoEventTable<A>,
    pub(super) index: Index,
}

impl<A: BusAddress> Routes<A> {
    /// Builds the state with these regions (ascending, disjoint) and ioeventfds.
    pub(super) fn build(generation: BusGeneration, mut regions: Box<[Region<A>]>, events: IoEventTable<A>) -> Self {
        for region in &mut regions {
            region.target = events.wrap(region);
        }
        let index = Index::build(&regions);
        Self {
            generation,
            regions,
            events,
            index,
        }
    }
}
