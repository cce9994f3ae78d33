//! The suite that every device model must pass: every offset, every size, both directions.

use crate::access::{IoOp, IoSize};
use crate::device::{IoOutcome, Persist};
use std::ops::Range;

/// Values written to every register: nothing, everything, and patterns in between.
const VALUES: [u64; 5] = [
    0,
    u64::MAX,
    0x5555_5555_5555_5555,
    0x0123_4567_89ab_cdef,
    0x8080_8080_8080_8080,
];

/// The suite for one model. All its checks panic with the offset, size and direction that failed.
///
/// ```
/// use umbra_devices::testing::Conformance;
/// use umbra_devices::models::scratch::{Scratch, regs};
///
/// // Reads of the register file are counted, so they are not quiet; those of the rest are.
/// let suite = Conformance::of("scratch", regs::LEN, Scratch::new);
/// suite.reads_are_quiet_in(regs::READS..regs::LEN).check();
/// ```
pub struct Conformance<F> {
    name: &'static str,
    len: u64,
    new: F,
    quiet: Vec<Range<u64>>,
}

impl<D: Persist, F: Fn() -> D> Conformance<F> {
    /// The suite for the model that `new` builds, which claims `len` bytes or ports. `new` must build equal devices:
    /// give it a clock that stands still.
    pub fn of(name: &'static str, len: u64, new: F) -> Self {
        Self {
            name,
            len,
            new,
            quiet: Vec::new(),
        }
    }

    /// Promises that reads that lie wholly within `offsets` change nothing.
    #[must_use]
    pub fn reads_are_quiet_in(mut self, offsets: Range<u64>) -> Self {
        self.quiet.push(offsets);
        self
    }

    /// Runs every check.
    ///
    /// # Panics
    /// The model does not conform.
    pub fn check(&self) {
        self.every_access_has_a_fitting_outcome();
        self.reset_equals_new();
        self.restore_continues_where_save_was();
        self.promised_reads_are_quiet();
    }

    /// No panic, a read is not answered as a write nor a write as a read, whatever came before.
    fn every_access_has_a_fitting_outcome(&self) {
        let device = (self.new)();
        for (offset, size) in self.accesses() {
            for op in VALUES
                .into_iter()
                .flat_map(|value| [IoOp::Write(size.truncate(value)), IoOp::Read])
            {
                let outcome = device.access(offset, size, op);
                let fits = match outcome {
                    IoOutcome::Value(_) => op.is_read(),
                    IoOutcome::Done => !op.is_read(),
                    IoOutcome::Effect { .. } | IoOutcome::Refused(_) => true,
                };
                assert!(fits, "{}: {outcome:?} for {size:?} {op:?} at {offset:#x}", self.name);
            }
        }
    }

    fn reset_equals_new(&self) {
        let fresh = (self.new)().save();
        for value in VALUES {
            let device = self.disturbed(value);
            device.reset();
            assert_eq!(
                device.save(),
                fresh,
                "{}: reset after writing {value:#x} everywhere",
                self.name
            );
        }
    }

    /// A device restored from a saved state has that state, and answers as the original does from then on.
    fn restore_continues_where_save_was(&self) {
        for value in VALUES {
            let original = self.disturbed(value);
            let state = original.save();
            let copy = self.disturbed(!value);
            let restored = copy.restore(&state);
            assert_eq!(restored, Ok(()), "{}: own state refused", self.name);
            assert_eq!(
                copy.save(),
                state,
                "{}: restore after writing {value:#x} everywhere",
                self.name
            );
            for (offset, size) in self.accesses() {
                let (expected, got) = (
                    original.access(offset, size, IoOp::Read),
                    copy.access(offset, size, IoOp::Read),
                );
                assert_eq!(
                    got, expected,
                    "{}: {size:?} read at {offset:#x} after a restore",
                    self.name
                );
            }
            assert_eq!(
                copy.save(),
                original.save(),
                "{}: states diverged after a restore",
                self.name
            );
        }
    }

    fn promised_reads_are_quiet(&self) {
        for value in VALUES {
            let device = self.disturbed(value);
            let before = device.save();
            for (offset, size) in self.accesses() {
                if self
                    .quiet
                    .iter()
                    .any(|range| range.start <= offset && offset + size.bytes() <= range.end)
                {
                    device.access(offset, size, IoOp::Read);
                    assert_eq!(device.save(), before, "{}: {size:?} read at {offset:#x}", self.name);
                }
            }
        }
    }

    /// Every (offset, size) that lies within the region, aligned or not.
    fn accesses(&self) -> impl Iterator<Item = (u64, IoSize)> {
        let len = self.len;
        (0..len)
            .flat_map(|offset| IoSize::ALL.map(|size| (offset, size)))
            .filter(move |&(offset, size)| size.bytes() <= len - offset)
    }

    /// A device that had `value` written everywhere.
    fn disturbed(&self, value: u64) -> D {
        let device = (self.new)();
        for (offset, size) in self.accesses() {
            device.access(offset, size, IoOp::Write(size.truncate(value)));
        }
        device
    }
}
