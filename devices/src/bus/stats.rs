//! Counting accesses, per cursor: plain numbers that no other thread writes.

use super::address::BusAddress;
use super::region::{Region, RegionId};
use crate::access::IoOp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How the accesses through one cursor were resolved.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CursorStats {
    /// Accesses that the index answered with its first load.
    pub direct: u64,
    /// Accesses resolved from what the cursor remembered of its last search.
    pub remembered: u64,
    /// Accesses that needed a search: the first one to a crowded page, and unclaimed ones.
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

/// Reads and writes.
type Counts = [u64; 2];

/// The counters of one region, next to its identity: who counts an access needs both.
#[derive(Clone, Copy)]
struct Entry {
    id: RegionId,
    counts: Counts,
}

/// The counters of one cursor.
pub(super) struct Tally {
    /// By region number in the cursor's present snapshot.
    entries: Box<[Entry]>,
    /// What was counted in earlier snapshots.
    retired: BTreeMap<RegionId, (Arc<str>, Counts)>,
    /// All but `direct`, which follows from the rest.
    stats: CursorStats,
}

impl Tally {
    /// Counters for a first snapshot of these regions.
    pub(super) fn new<A: BusAddress>(regions: &[Region<A>]) -> Self {
        Self {
            entries: entries(regions),
            retired: BTreeMap::new(),
            stats: CursorStats::default(),
        }
    }

    /// Counts an access to the region of this number in the present snapshot, and says which region that is.
    #[inline]
    pub(super) fn count(&mut self, number: u32, op: IoOp) -> RegionId {
        let entry = &mut self.entries[number as usize];
        entry.counts[usize::from(!op.is_read())] += 1;
        entry.id
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

    pub(super) fn stats(&self) -> CursorStats {
        let now: u64 = self.entries.iter().flat_map(|entry| entry.counts).sum();
        let before: u64 = self.retired.values().flat_map(|(_, counts)| counts).sum();
        let CursorStats {
            remembered,
            searched,
            unclaimed_reads,
            unclaimed_writes,
            events,
            ..
        } = self.stats;
        // Each access was counted once by who answered it; of all, the ones that were not direct are known.
        let all = now + before + unclaimed_reads + unclaimed_writes + events;
        let direct = all - (remembered + searched);
        CursorStats { direct, ..self.stats }
    }

    pub(super) fn by_region<A: BusAddress>(&self, regions: &[Region<A>]) -> Vec<RegionStats> {
        let mut all = self.retired.clone();
        add(&mut all, &self.entries, regions);
        all.into_iter()
            .map(|(id, (name, [reads, writes]))| RegionStats {
                id,
                name,
                reads,
                writes,
            })
            .collect()
    }

    /// Goes from the counters for the regions of one snapshot to those of the next, keeping what was counted.
    pub(super) fn change_over<A: BusAddress>(&mut self, from: &[Region<A>], to: &[Region<A>]) {
        add(&mut self.retired, &self.entries, from);
        self.entries = entries(to);
        self.stats.generations_seen += 1;
    }
}

fn entries<A: BusAddress>(regions: &[Region<A>]) -> Box<[Entry]> {
    regions
        .iter()
        .map(|region| Entry {
            id: region.id,
            counts: [0; 2],
        })
        .collect()
}

fn add<A: BusAddress>(all: &mut BTreeMap<RegionId, (Arc<str>, Counts)>, entries: &[Entry], regions: &[Region<A>]) {
    for (
        region,
        Entry {
            id,
            counts: [reads, writes],
        },
    ) in regions.iter().zip(entries)
    {
        if reads + writes > 0 {
            let (_, total) = all.entry(*id).or_insert_with(|| (Arc::clone(&region.name), [0; 2]));
            total[0] += reads;
            total[1] += writes;
        }
    }
}

/// Rate limit without a clock: the first 8 events, then each time their number has doubled. A guest that does nothing
/// else for a year causes some 50 lines.
fn worth_a_line(total: u64) -> Option<u64> {
    (total <= 8 || total.is_power_of_two()).then_some(total)
}
