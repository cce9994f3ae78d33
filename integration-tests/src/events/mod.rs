//! The same guest program on stock KVM and on our shadow MMU: the same events, one after the other?
//!
//! [`program`] (what a guest does) and [`programs`] (what they do here), [`assemble`] and [`image`] (what that is in bytes),
//! [`memory`] (the slots of either machine), [`model`] (a CPU that walks our shadow tables) with [`recorder`] (what it
//! did), [`normal`] (what of KVM's account can't be ours), [`difference`] (the first one).
//!
//! Stock KVM itself is in `tests/guest_events`, which needs the lab.

pub mod assemble;
pub mod difference;
pub mod image;
pub mod memory;
pub mod model;
pub mod normal;
pub mod program;
pub mod programs;
pub mod recorder;
