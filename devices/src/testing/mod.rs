//! For tests: trivial devices, and the suite that every device model must pass.

use crate::access::{IoOp, IoSize};
use crate::device::{Device, IoOutcome};

/// A device that answers each read with the same value and ignores writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Constant(pub u64);

impl Device for Constant {
    fn access(&self, _offset: u64, _size: IoSize, op: IoOp) -> IoOutcome {
        if op.is_read() {
            IoOutcome::Value(self.0)
        } else {
            IoOutcome::Done
        }
    }

    fn reset(&self) {}
}
