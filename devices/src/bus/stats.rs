//! Counting accesses, per cursor: plain numbers that no other thread writes.

use super::address::BusAddress;
use super::region::{Region, RegionId};
use super::table::{Counts, CursorTable};
use crate::access::IoOp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How the accesses through one cursor were resolved.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CursorStats {
    /// Accesses resolved from the cursor's table, without a search.
    pub direct: u64,
    /// Accesses resolved from what the cursor remembered of its last search.
    pub remembered: u64,
    /// Accesses that needed a search: the first one to a crowded page or a very large region, and unclaimed ones.
    pub searched: u64,
    /// Reads that nobody answered.
    pub unclaimed_reads: u64,
    /// Writes that nobody took.
    pub unclaimed_writes: u64,
    /// Writes outside any region that an ioeventfd took.
    pub events: u64,
    /// Accesses that a device refused.
    pub refused: u64,
    /// Changes of the bus that the cursor came across.
    pub generations_seen: u64,
}

/// Accesses to one region through one cursor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegionStats {
    /// The region.
    pub id: RegionId,
    /// The name it was claimed under.
    pub name: Arc<str>,
    /// Number of reads, including refused ones.
    pub reads: u64,
    /// Number of writes, including refused ones.
    pub writes: u64,
}

/// The counters of one cursor, but for those in its present table.
pub(super) struct Tally {
    /// Direct accesses counted in earlier tables.
    direct: u64,
    /// Names and counts of regions: what was counted in earlier tables, and accesses that needed a search.
    regions: BTreeMap<RegionId, (Arc<str>, Counts)>,
    /// All but `direct`.
    stats: CursorStats,
}

impl Tally {
    pub(super) const fn new() -> Self {
        let stats = CursorStats {
            direct: 0,
            remembered: 0,
            searched: 0,
            unclaimed_reads: 0,
            unclaimed_writes: 0,
            events: 0,
            refused: 0,
            generations_seen: 0,
        };
        Self {
            direct: 0,
            regions: BTreeMap::new(),
            stats,
        }
    }

    /// Counts an access that was not resolved from the table.
    pub(super) fn count<A: BusAddress>(&mut self, region: &Region<A>, op: IoOp) {
        let mut counts = [0; 2];
        counts[direction(op)] = 1;
        add(&mut self.regions, region.id, counts, || Arc::clone(&region.name));
    }

    pub(super) fn remembered(&mut self) {
        self.stats.remembered += 1;
    }

    pub(super) fn searched(&mut self) {
        self.stats.searched += 1;
    }

    pub(super) fn event(&mut self) {
        self.stats.events += 1;
    }

    /// Counts a refused access; the total, if it is worth a line in the log.
    pub(super) fn refused(&mut self) -> Option<u64> {
        self.stats.refused += 1;
        worth_a_line(self.stats.refused)
    }

    /// Counts an unclaimed access; the total, if it is worth a line in the log.
    pub(super) fn unclaimed(&mut self, op: IoOp) -> Option<u64> {
        if op.is_read() {
            self.stats.unclaimed_reads += 1;
        } else {
            self.stats.unclaimed_writes += 1;
        }
        worth_a_line(self.stats.unclaimed_reads + self.stats.unclaimed_writes)
    }

    pub(super) fn stats(&self, table: &CursorTable) -> CursorStats {
        let now: u64 = table.counts().flat_map(|(_, counts)| counts).sum();
        CursorStats {
            direct: self.direct + now,
            ..self.stats
        }
    }

    pub(super) fn by_region<A: BusAddress>(&self, table: &CursorTable, regions: &[Region<A>]) -> Vec<RegionStats> {
        let mut all = self.regions.clone();
        add_table(&mut all, table, regions);
        all.into_iter()
            .map(|(id, (name, [reads, writes]))| RegionStats {
                id,
                name,
                reads,
                writes,
            })
            .collect()
    }

    /// Takes over what was counted in `table`, which is about to be replaced.
    pub(super) fn retire<A: BusAddress>(&mut self, table: &CursorTable, regions: &[Region<A>]) {
        self.direct += table.counts().flat_map(|(_, counts)| counts).sum::<u64>();
        add_table(&mut self.regions, table, regions);
        self.stats.generations_seen += 1;
    }
}

/// Where an access is counted in [`Counts`].
#[inline]
pub(super) fn direction(op: IoOp) -> usize {
    usize::from(!op.is_read())
}

type ByRegion = BTreeMap<RegionId, (Arc<str>, Counts)>;

fn add(all: &mut ByRegion, id: RegionId, [reads, writes]: Counts, name: impl FnOnce() -> Arc<str>) {
    let (_, total) = all.entry(id).or_insert_with(|| (name(), [0; 2]));
    total[0] += reads;
    total[1] += writes;
}

fn add_table<A: BusAddress>(all: &mut ByRegion, table: &CursorTable, regions: &[Region<A>]) {
    let names: BTreeMap<RegionId, &Arc<str>> = regions.iter().map(|region| (region.id, &region.name)).collect();
    for (id, counts) in table.counts() {
        if let Some(&name) = names.get(&id) {
            add(all, id, counts, || Arc::clone(name));
        }
    }
}

/// Rate limit without a clock: the first 8 events, then each time their number has doubled. A guest that does nothing
/// else for a year causes some 50 lines.
fn worth_a_line(total: u64) -> Option<u64> {
    (total <= 8 || total.is_power_of_two()).then_some(total)
}
