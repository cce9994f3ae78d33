//! The MMIO/PIO bus, interrupt lines and device models.
//!
//! Read in this order: [`access`] (what an access is), [`device`] (what a device is and may answer).

pub mod access;
pub mod device;
pub mod irq;

pub use access::{IoOp, IoSize};
pub use device::{Device, Effect, IoOutcome, Refusal};
