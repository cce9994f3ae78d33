//! The MMIO/PIO bus, interrupt lines and device models.
//!
//! Read in this order: [`access`] (what an access is), [`device`] (what a device is and may answer), [`bus`] (how an
//! access finds its device), [`irq`] and [`clock`] (what devices hold), [`models`] (the devices).

pub mod access;
pub mod bus;
pub mod clock;
pub mod device;
pub mod irq;
pub mod models;
mod sync;
pub mod testing;

pub use access::{IoOp, IoSize};
pub use bus::{Bus, BusAddress, BusChange, BusCursor, BusRange, Port};
pub use clock::{Clock, HostClock, ManualClock};
pub use device::{Device, Effect, IoOutcome, Persist, Refusal};
pub use irq::{Gsi, IntrSource, IrqLine, IrqPins, IrqSink};

/// The README's example, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
