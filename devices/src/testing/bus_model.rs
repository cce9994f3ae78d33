//! A bus so naive that it is plainly right, to hold the real one against: it looks at every region for every byte.

use crate::access::{IoOp, IoSize};
use crate::bus::{AnsweredBy, Bus, BusAddress, BusCursor, BusError, RegionId};
use crate::device::{Device, IoOutcome};
use std::sync::Arc;

/// One step of a history of a bus. Region choices are taken modulo the number of regions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BusStep {
    /// Claim `len` bytes from `start` on.
    Claim {
        /// First address; cut to the address space.
        start: u64,
        /// Length, also 0 and too long.
        len: u64,
    },
    /// Release a region.
    Release {
        /// Which.
        region: usize,
    },
    /// Move a region.
    Move {
        /// Which.
        region: usize,
        /// Its new start; cut to the address space.
        to: u64,
    },
    /// Access the bus.
    Access {
        /// First address; cut to the address space.
        addr: u64,
        /// Width.
        size: IoSize,
        /// Direction and value.
        op: IoOp,
    },
}

/// A device that answers with the offset it was asked for.
struct Offset;

impl Device for Offset {
    fn access(&self, offset: u64, _size: IoSize, op: IoOp) -> IoOutcome {
        if op.is_read() {
            IoOutcome::Value(offset)
        } else {
            IoOutcome::Done
        }
    }

    fn reset(&self) {}
}

/// The naive bus and the real one, side by side.
pub struct BusPair<A: BusAddress> {
    real: Bus<A>,
    /// Kept over all changes.
    cursor: BusCursor<A>,
    /// Region, first address, length; in no particular order.
    naive: Vec<(RegionId, u64, u64)>,
}

impl<A: BusAddress> Default for BusPair<A> {
    fn default() -> Self {
        let real = Bus::new();
        let cursor = real.cursor();
        Self {
            real,
            cursor,
            naive: Vec::new(),
        }
    }
}

impl<A: BusAddress> BusPair<A> {
    /// Makes one step on both.
    ///
    /// # Panics
    /// They differ.
    pub fn step(&mut self, step: BusStep) {
        match step {
            BusStep::Claim { start, len } => {
                let start = cut::<A>(start);
                let verdict = self.place(None, start, len);
                let claimed = self.real.claim("claimed", start, len, Arc::new(Offset));
                assert_eq!(kind(claimed.as_ref().err()), verdict, "{step:?}");
                self.naive.extend(claimed.ok().map(|id| (id, start.raw(), len)));
            }
            BusStep::Release { region } if !self.naive.is_empty() => {
                let (id, ..) = self.naive.swap_remove(region % self.naive.len());
                assert!(self.real.release(id).is_ok(), "{step:?}");
                assert!(self.real.release(id).is_err(), "released twice: {step:?}");
            }
            BusStep::Move { region, to } if !self.naive.is_empty() => {
                let at = region % self.naive.len();
                let (id, _, len) = self.naive[at];
                let to = cut::<A>(to);
                let verdict = self.place(Some(id), to, len);
                assert_eq!(kind(self.real.move_region(id, to).err().as_ref()), verdict, "{step:?}");
                if verdict.is_none() {
                    self.naive[at].1 = to.raw();
                }
            }
            BusStep::Release { .. } | BusStep::Move { .. } => {}
            BusStep::Access { addr, size, op } => self.access(cut(addr), size, op),
        }
    }

    /// What is wrong with a region of `len` bytes at `start`, if anything.
    fn place(&self, moved: Option<RegionId>, start: A, len: u64) -> Option<Wrong> {
        let Some(last) = len.checked_sub(1).and_then(|more| start.raw().checked_add(more)) else {
            return Some(Wrong::Range);
        };
        if last > A::LAST.raw() {
            return Some(Wrong::Range);
        }
        let taken = self.naive.iter().any(|&(id, other, other_len)| {
            Some(id) != moved && start.raw() <= other + (other_len - 1) && other <= last
        });
        taken.then_some(Wrong::Overlap)
    }

    /// The region that every byte of the access lies in, and the offset of the first.
    fn owner(&self, addr: u64, size: IoSize) -> Option<(RegionId, u64)> {
        let mut owners = (0..size.bytes()).map(|byte| {
            let byte = addr.checked_add(byte)?;
            self.naive
                .iter()
                .find(|&&(_, start, len)| byte >= start && byte - start < len)
        });
        let &(id, start, _) = owners.next()??;
        owners
            .all(|owner| owner.is_some_and(|&(other, ..)| other == id))
            .then_some((id, addr - start))
    }

    fn access(&mut self, addr: A, size: IoSize, op: IoOp) {
        let (by, value) = match self.owner(addr.raw(), size) {
            Some((id, offset)) => (AnsweredBy::Region(id), size.truncate(offset)),
            None => (AnsweredBy::Nobody, size.all_ones()),
        };
        let expected = (by, if op.is_read() { value } else { 0 });
        // A cursor that has seen all changes, and one that has seen only the last state, must agree.
        for cursor in [&mut self.cursor, &mut self.real.cursor()] {
            let answer = cursor.access(addr, size, op);
            assert_eq!(
                (answer.by, answer.value),
                expected,
                "{size:?} {op:?} at {addr:?} of {:?}",
                self.real.regions()
            );
        }
    }
}

/// Why a region can't be somewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrong {
    Range,
    Overlap,
    Other,
}

fn kind<A: BusAddress>(error: Option<&BusError<A>>) -> Option<Wrong> {
    error.map(|error| match error {
        BusError::BadRange { .. } => Wrong::Range,
        BusError::Overlap { .. } => Wrong::Overlap,
        _ => Wrong::Other,
    })
}

/// The address of the low bits of `raw`.
fn cut<A: BusAddress>(raw: u64) -> A {
    A::from_raw(raw & A::LAST.raw()).unwrap_or(A::LAST)
}
