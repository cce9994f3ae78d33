//! For tests: trivial devices and sinks, and the suite that every device model must pass.

pub mod apic_model;
pub mod bus_model;
mod conformance;
pub mod fuzz;

pub use conformance::Conformance;

use crate::access::{IoOp, IoSize};
use crate::device::{Device, IoOutcome};
use crate::irq::{Gsi, IrqSink, Msi, MsiSink};
use crate::sync::lock;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

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

/// An interrupt sink that notes what it is told.
#[derive(Default, Debug)]
pub struct RecordingSink(Mutex<Vec<(Gsi, bool)>>);

impl RecordingSink {
    /// What was noted since the last time.
    pub fn take(&self) -> Vec<(Gsi, bool)> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl IrqSink for RecordingSink {
    fn set_level(&self, gsi: Gsi, high: bool) {
        lock(&self.0).push((gsi, high));
    }
}

/// A destination of messages that notes them, and the routes it was told.
#[derive(Default, Debug)]
pub struct RecordingMsiSink {
    messages: Mutex<Vec<Msi>>,
    routes: Mutex<Vec<(u8, Msi)>>,
}

impl RecordingMsiSink {
    /// The messages since the last time.
    pub fn take(&self) -> Vec<Msi> {
        std::mem::take(&mut lock(&self.messages))
    }

    /// The routes since the last time.
    pub fn take_routes(&self) -> Vec<(u8, Msi)> {
        std::mem::take(&mut lock(&self.routes))
    }
}

impl MsiSink for RecordingMsiSink {
    fn deliver(&self, msi: Msi) {
        lock(&self.messages).push(msi);
    }

    fn route(&self, pin: u8, msi: Msi) {
        lock(&self.routes).push((pin, msi));
    }
}

/// An output whose bytes can be looked at while a device has it.
#[derive(Clone, Default, Debug)]
pub struct SharedOutput(Arc<Mutex<Vec<u8>>>);

impl SharedOutput {
    /// What was written since the last time.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl Write for SharedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
