//! [`BusCursor`]: the access path. One per vCPU; takes no lock, writes nothing shared, allocates nothing.
//!
//! An access costs one load of the bus's epoch (was the bus changed?) and one of the index. The few accesses that the
//! index doesn't answer directly (registers of several devices in one page, say) are searched for once, and the cursor
//! remembers the outcome until another such access or a change of the bus.

use super::address::BusAddress;
use super::range::contains;
use super::region::RegionId;
use super::routes::{BusGeneration, Routes};
use super::stats::{CursorStats, RegionStats, Tally};
use crate::access::{IoOp, IoSize};
use crate::device::{Device, Effect, IoOutcome, Refusal};
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
    reader: Reader<Routes<A>>,
    /// The number of the region that the last search found, in the reader's snapshot.
    remembered: Option<u32>,
    tally: Tally,
}

impl<A: BusAddress> BusCursor<A> {
    pub(super) fn new(reader: Reader<Routes<A>>) -> Self {
        let tally = Tally::new(&reader.cached().regions);
        Self {
            reader,
            remembered: None,
            tally,
        }
    }

    /// Carries out one access of the guest.
    ///
    /// All `size` bytes must lie in one region; otherwise it is unclaimed, as in KVM (`kvm_io_bus_cmp`) and unlike a
    /// split by an interconnect. A write's value is cut to `size`.
    #[inline]
    pub fn access(&mut self, addr: A, size: IoSize, op: IoOp) -> Answer {
        if self.reader.source().epoch() != self.reader.epoch() {
            self.catch_up();
        }
        let routes = self.reader.cached();
        let class = routes.index.first();
        if let Some((device, offset, bucket)) = class.direct(addr.raw(), size) {
            let number = class.owner(bucket);
            let id = self.tally.count(number, op);
            return answer(
                routes,
                number,
                Call {
                    device,
                    id,
                    offset,
                    size,
                    op,
                },
                &mut self.tally,
            );
        }
        self.access_indirectly(addr, size, op)
    }

    /// Reads; all ones if nobody answers.
    #[inline]
    pub fn read(&mut self, addr: A, size: IoSize) -> Answer {
        self.access(addr, size, IoOp::Read)
    }

    /// Writes; nothing happens if nobody answers.
    #[inline]
    pub fn write(&mut self, addr: A, size: IoSize, value: u64) -> Answer {
        self.access(addr, size, IoOp::Write(value))
    }

    /// The generation of the bus state that the last access saw.
    pub fn generation(&self) -> BusGeneration {
        self.reader.cached().generation
    }

    /// How the accesses through this cursor were resolved.
    pub fn stats(&self) -> CursorStats {
        self.tally.stats()
    }

    /// Accesses by region, in the order of claiming, including regions that are gone. Regions never accessed are left
    /// out.
    pub fn region_stats(&self) -> Vec<RegionStats> {
        self.tally.by_region(&self.reader.cached().regions)
    }

    #[inline(never)]
    fn access_indirectly(&mut self, addr: A, size: IoSize, op: IoOp) -> Answer {
        let routes = self.reader.cached();
        let holds = |number: u32| {
            let range = routes.regions[number as usize].range;
            contains(range.len(), addr.raw().wrapping_sub(range.start().raw()), size)
        };
        let number = match self.remembered {
            Some(number) if holds(number) => {
                self.tally.remembered();
                Some(number)
            }
            _ => {
                self.tally.searched();
                routes.index.search(&routes.regions, addr.raw(), size)
            }
        };
        let Some(number) = number else {
            return unclaimed(routes, addr, size, op, &mut self.tally);
        };
        self.remembered = Some(number);
        let id = self.tally.count(number, op);
        let region = &routes.regions[number as usize];
        let offset = addr.raw() - region.range.start().raw();
        answer(
            routes,
            number,
            Call {
                device: &*region.target,
                id,
                offset,
                size,
                op,
            },
            &mut self.tally,
        )
    }

    #[cold]
    fn catch_up(&mut self) {
        let left = self.reader.clone();
        self.reader.refresh();
        self.tally
            .change_over(&left.cached().regions, &self.reader.cached().regions);
        self.remembered = None;
    }
}

/// A resolved access.
struct Call<'a> {
    device: &'a dyn Device,
    id: RegionId,
    offset: u64,
    size: IoSize,
    op: IoOp,
}

/// Calls the device in the region of this number and puts its answer into the guest's terms.
#[inline]
fn answer<A: BusAddress>(routes: &Routes<A>, number: u32, call: Call<'_>, tally: &mut Tally) -> Answer {
    let Call {
        device,
        id,
        offset,
        size,
        op,
    } = call;
    let op = match op {
        IoOp::Read => IoOp::Read,
        IoOp::Write(value) => IoOp::Write(size.truncate(value)),
    };
    let by = AnsweredBy::Region(id);
    match device.access(offset, size, op) {
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
                log_refusal(routes, number, &call, refusal, total);
            }
            Answer {
                value: floating(size, op),
                effect: None,
                by: AnsweredBy::Refused(id, refusal),
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
fn log_refusal<A: BusAddress>(routes: &Routes<A>, number: u32, call: &Call<'_>, refusal: Refusal, total: u64) {
    tracing::debug!(
        bus = A::BUS_NAME,
        region = routes.regions[number as usize].name(),
        offset = format_args!("{:#x}", call.offset),
        size = call.size.bytes(),
        op = ?call.op,
        ?refusal,
        total,
        "a device refused an access"
    );
}

#[cold]
fn unclaimed<A: BusAddress>(routes: &Routes<A>, addr: A, size: IoSize, op: IoOp, tally: &mut Tally) -> Answer {
    if let IoOp::Write(value) = op
        && let Some(event) = routes.events.find(addr, size, size.truncate(value))
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
