//! What a device is: something that answers an access at an offset. Everything a guest can cause is an outcome value;
//! an effect on the machine (power off, map a region) is *returned* and applied by the caller when no lock is held.

use crate::access::{IoOp, IoSize};
use crate::bus::{BusChange, Port};
use std::fmt;
use std::sync::Arc;
use umbra_memslots::{GfnRange, Gpa};

/// A device model behind the bus.
///
/// `access` takes `&self`: a device chooses its own interior mutability (an atomic, a mutex, nothing), so that the bus
/// holds no lock on anybody's behalf. It may be called from several vCPU threads at once.
pub trait Device: Send + Sync {
    /// Answers one access.
    ///
    /// `offset` is relative to the start of the claimed region and `offset + size` is within it. A write's value has
    /// no bits above `size`; in a read's answer bits above `size` are ignored. Must not panic for any argument and
    /// must not block on another vCPU.
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome;

    /// Returns to the state of a newly built device (a machine reset), keeping its wiring.
    fn reset(&self);
}

/// A device whose state can be taken out and put back: snapshots, migration, and the conformance suite.
pub trait Persist: Device {
    /// Everything a guest can tell two devices of this model apart by. Plain data.
    type State: Clone + PartialEq + fmt::Debug;

    /// The present state.
    fn save(&self) -> Self::State;

    /// Replaces the state, keeping the wiring.
    ///
    /// # Errors
    /// [`BadState`]: no device of this model can be in this state (it came from a damaged file, say). The device is
    /// as it was.
    fn restore(&self, state: &Self::State) -> Result<(), BadState>;
}

/// A state that no device of its model can be in.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{model}: {field} is {value:#x}, expected {expected}")]
pub struct BadState {
    /// The model.
    pub model: &'static str,
    /// The field that is wrong.
    pub field: &'static str,
    /// Its value (or its length).
    pub value: u64,
    /// What would be right.
    pub expected: &'static str,
}

/// A part of a device's registers, from `first` on: for a device that answers at several places.
pub struct Part<D> {
    device: Arc<D>,
    first: u64,
}

impl<D: Device> Part<D> {
    /// The registers of `device` from offset `first` on, as a device of its own.
    pub const fn new(device: Arc<D>, first: u64) -> Self {
        Self { device, first }
    }
}

impl<D: Device> Device for Part<D> {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        match self.first.checked_add(offset) {
            Some(offset) => self.device.access(offset, size, op),
            None => IoOutcome::Refused(Refusal::NoRegister),
        }
    }

    fn reset(&self) {
        self.device.reset();
    }
}

/// A device's answer to one access.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IoOutcome {
    /// The value read.
    Value(u64),
    /// The write was taken.
    Done,
    /// The access was taken, and the machine must change. A read answers `value`.
    Effect {
        /// What a read returns; ignored for a write.
        value: u64,
        /// What the caller must now do. Boxed: it is rare, and the common answers shall stay small.
        effect: Box<Effect>,
    },
    /// The device does not do this. The bus decides what the guest sees (all ones / ignored) and counts it.
    Refused(Refusal),
}

impl IoOutcome {
    /// A write that was taken and has an effect on the machine.
    pub fn effect(effect: Effect) -> Self {
        Self::Effect {
            value: 0,
            effect: Box::new(effect),
        }
    }
}

/// Why a device refused an access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// No register at this offset.
    NoRegister,
    /// There is a register, but not of this width.
    WrongSize,
    /// The register cannot be accessed in this direction.
    WrongDirection,
}

/// A change to the machine that a device asks for. Applied after the access, with no lock held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Power the machine off.
    PowerOff,
    /// Reset the machine.
    Reset,
    /// End the run with a code for whoever started it (isa-debug-exit).
    Exit {
        /// The raw value the guest wrote.
        code: u32,
    },
    /// Put RAM under these frames (the backing is the machine's choice: new anonymous memory, zeroed).
    MapRam {
        /// Where.
        range: GfnRange,
        /// Whether guest writes are refused (they arrive as MMIO writes, as KVM has it).
        read_only: bool,
    },
    /// Remove the RAM that [`Effect::MapRam`] put at exactly these frames.
    UnmapRam {
        /// Where.
        range: GfnRange,
    },
    /// Change the MMIO bus: move a BAR, signal an eventfd on writes, coalesce writes.
    Mmio(BusChange<Gpa>),
    /// Change the port bus.
    Pio(BusChange<Port>),
    /// Several effects, to be applied in this order.
    All(Vec<Effect>),
}
