//! [`BusCursor`]: the access path. One per vCPU; takes no lock, writes nothing shared, allocates nothing.
//!
//! An access costs one load of the bus's epoch (was the bus changed?) and one of the cursor's own table. The few accesses
//! that the table doesn't answer (registers of several devices in one page, say) are searched for once, and the cursor
//! remembers the outcome until another such access or a change of the bus.

use super::address::BusAddress;
use super::range::contains;
use super::region::{Region, RegionId};
use super::routes::{BusGeneration, Routes};
use super::stats::{CursorStats, RegionStats, Tally, direction};
use super::table::CursorTable;
use crate::access::{IoOp, IoSize};
use crate::device::{Effect, IoOutcome, Refusal};
use std::fmt;
use umbra_memslots::publish::Reader;

/// What the bus answers to one access.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// What a read returns, cut to the access size. 0 for a write.
    pub value: u64,
    /// What the machine must do now that no lock is held.
    pub effect: Option<Box<Effect>>,
    /// Who answered.
    pub by: AnsweredBy,
}

/// Who answered an access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AnsweredBy {
    /// The device (or an ioeventfd) in this region.
    Region(RegionId),
    /// The device in this region did not do it: reads are all ones, writes vanish.
    Refused(RegionId, Refusal),
    /// An ioeventfd outside any region took the write.
    Event,
    /// Nobody: reads are all ones, writes vanish.
    Nobody,
}

/// One vCPU's access to a bus.
pub struct BusCursor<A: BusAddress> {
    /// Made from the reader's snapshot.
    table: CursorTable,
    reader: Reader<Routes<A>>,
    /// The number of the region that the last search found, in the reader's snapshot.
    remembered: Option<u32>,
    tally: Tally,
}

impl<A: BusAddress> BusCursor<A> {
    pub(super) fn new(reader: Reader<Routes<A>>) -> Self {
        Self {
            table: CursorTable::new(reader.cached()),
            reader,
            remembered: None,
            tally: Tally::new(),
        }
    }

    /// Carries out one access of the guest.
    ///
    /// All `size` bytes must lie in one region; otherwise it is unclaimed, as in KVM (`kvm_io_bus_cmp`) and unlike a
    /// split by an interconnect. A write's value is cut to `size`.
    // In the caller even though it is not small: a call, and the registers it saves, would be a quarter of the cost.
    #[inline(always)]
    pub fn access(&mut self, addr: A, size: IoSize, op: IoOp) -> Answer {
        if self.reader.source().epoch() != self.reader.epoch() {
            self.catch_up();
        }
        let op = cut(op, size);
        let raw = addr.raw();
        let Some(entry) = self.table.entry_mut(raw >> A::BLOCK_SHIFT) else {
            return unpacked(self.access_indirectly(addr, size, op));
        };
        let offset = raw.wrapping_sub(entry.start);
        if !contains(entry.len.into(), offset, size) {
            return unpacked(self.access_indirectly(addr, size, op));
        }
        entry.counts[direction(op)] += 1;
        match entry.target.access(offset, size, op) {
            IoOutcome::Value(value) if op.is_read() => Answer {
                value: size.truncate(value),
                effect: None,
                by: AnsweredBy::Region(entry.id),
            },
            IoOutcome::Done => Answer {
                value: 0,
                effect: None,
                by: AnsweredBy::Region(entry.id),
            },
            outcome => unpacked(self.uncommon(addr, size, op, outcome)),
        }
    }

    /// Reads; all ones if nobody answers.
    #[inline(always)]
    pub fn read(&mut self, addr: A, size: IoSize) -> Answer {
        self.access(addr, size, IoOp::Read)
    }

    /// Writes; nothing happens if nobody answers.
    #[inline(always)]
    pub fn write(&mut self, addr: A, size: IoSize, value: u64) -> Answer {
        self.access(addr, size, IoOp::Write(value))
    }

    /// The generation of the bus state that the last access saw.
    pub fn generation(&self) -> BusGeneration {
        self.reader.cached().generation
    }

    /// How the accesses through this cursor were resolved.
    pub fn stats(&self) -> CursorStats {
        self.tally.stats(&self.table)
    }

    /// Accesses by region, in the order of claiming, including regions that are gone. Regions never accessed are left
    /// out.
    pub fn region_stats(&self) -> Vec<RegionStats> {
        self.tally.by_region(&self.table, &self.reader.cached().regions)
    }

    /// An access that the table doesn't answer. `op` is cut.
    #[inline(never)]
    fn access_indirectly(&mut self, addr: A, size: IoSize, op: IoOp) -> Answer {
        let routes = self.reader.cached();
        let remembered = self
            .remembered
            .filter(|&number| routes.regions[number as usize].range.holds(addr.raw(), size));
        let found = if remembered.is_some() {
            self.tally.remembered();
            remembered
        } else {
            self.tally.searched();
            routes.index.search(&routes.regions, addr.raw(), size)
        };
        let Some(number) = found else {
            return unclaimed(routes, addr, size, op, &mut self.tally);
        };
        self.remembered = found;
        let region = &routes.regions[number as usize];
        self.tally.count(region, op);
        let outcome = region.target.access(addr.raw() - region.range.start().raw(), size, op);
        answer(region, addr, size, op, outcome, &mut self.tally)
    }

    /// Any but the most common outcomes of a device that the table named.
    #[inline(never)]
    fn uncommon(&mut self, addr: A, size: IoSize, op: IoOp, outcome: IoOutcome) -> Answer {
        let routes = self.reader.cached();
        // The table was made from this snapshot, so the search finds the same region.
        match routes.index.search(&routes.regions, addr.raw(), size) {
            Some(number) => answer(
                &routes.regions[number as usize],
                addr,
                size,
                op,
                outcome,
                &mut self.tally,
            ),
            None => Answer {
                value: floating(size, op),
                effect: None,
                by: AnsweredBy::Nobody,
            },
        }
    }

    #[cold]
    #[inline(never)]
    fn catch_up(&mut self) {
        self.tally.retire(&self.table, &self.reader.cached().regions);
        self.reader.refresh();
        self.table = CursorTable::new(self.reader.cached());
        self.remembered = None;
    }
}

/// The same answer, moved field by field: what an out-of-line function answers in memory then does not force the common
/// answers, which are registers, through memory too.
#[inline(always)]
fn unpacked(answer: Answer) -> Answer {
    let Answer { value, effect, by } = answer;
    Answer { value, effect, by }
}

impl<A: BusAddress> fmt::Debug for BusCursor<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "BusCursor({} {:?} {:?})",
            A::BUS_NAME,
            self.generation(),
            self.stats()
        )
    }
}

/// The access with no bits beyond its size.
#[inline]
fn cut(op: IoOp, size: IoSize) -> IoOp {
    match op {
        IoOp::Read => IoOp::Read,
        IoOp::Write(value) => IoOp::Write(size.truncate(value)),
    }
}

/// Puts any outcome of a region's device into the guest's terms.
fn answer<A: BusAddress>(
    region: &Region<A>,
    addr: A,
    size: IoSize,
    op: IoOp,
    outcome: IoOutcome,
    tally: &mut Tally,
) -> Answer {
    let by = AnsweredBy::Region(region.id);
    match outcome {
        IoOutcome::Value(value) => Answer {
            value: read_value(value, size, op),
            effect: None,
            by,
        },
        IoOutcome::Done => Answer {
            value: 0,
            effect: None,
            by,
        },
        IoOutcome::Effect { value, effect } => Answer {
            value: read_value(value, size, op),
            effect: Some(effect),
            by,
        },
        IoOutcome::Refused(refusal) => {
            if let Some(total) = tally.refused() {
                let (name, range) = (region.name(), region.range);
                let size = size.bytes();
                tracing::debug!(bus = A::BUS_NAME, name, %range, %addr, size, ?op, ?refusal, total, "a device refuses");
            }
            Answer {
                value: floating(size, op),
                effect: None,
                by: AnsweredBy::Refused(region.id, refusal),
            }
        }
    }
}

#[inline]
fn read_value(value: u64, size: IoSize, op: IoOp) -> u64 {
    if op.is_read() { size.truncate(value) } else { 0 }
}

/// What the guest sees where nobody answers.
fn floating(size: IoSize, op: IoOp) -> u64 {
    if op.is_read() { size.all_ones() } else { 0 }
}

#[cold]
fn unclaimed<A: BusAddress>(routes: &Routes<A>, addr: A, size: IoSize, op: IoOp, tally: &mut Tally) -> Answer {
    if let IoOp::Write(value) = op
        && let Some(event) = routes.events.find(addr, size, value)
    {
        tally.event();
        event.event.signal();
        return Answer {
            value: 0,
            effect: None,
            by: AnsweredBy::Event,
        };
    }
    if let Some(total) = tally.unclaimed(op) {
        tracing::debug!(bus = A::BUS_NAME, %addr, size = size.bytes(), ?op, total, "nobody answers an access");
    }
    Answer {
        value: floating(size, op),
        effect: None,
        by: AnsweredBy::Nobody,
    }
}
