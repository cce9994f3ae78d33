//! The bus: which device answers an access to an address, for MMIO ([`Gpa`](umbra_memslots::Gpa)) and port I/O
//! ([`Port`]).
//!
//! Read in this order: `range` and `region` (what is claimed), `registry` ([`Bus`], how it changes), `routes` (the
//! immutable state that is published), `index` (how an address finds its region), `table` and `cursor` ([`BusCursor`],
//! the access path), `ioevent` and `mirror` (what the kernel is told).
//!
//! One writer at a time publishes immutable states; each vCPU's cursor goes on with the state it has until it sees that
//! there is a newer one. An access is therefore resolved against exactly one state, and no lock is held while a device is
//! called: a handler may change the bus that it is being called from.

mod address;
mod cursor;
mod error;
mod index;
mod ioevent;
mod mirror;
mod range;
mod region;
mod registry;
mod routes;
mod stats;
mod table;
#[cfg(all(test, not(loom)))]
mod tests;

pub use address::{BusAddress, Port};
pub use cursor::{Answer, AnsweredBy, BusCursor};
pub use error::BusError;
pub use ioevent::{EventHandle, EventMatch, IoEvent};
pub use mirror::{BusChange, BusMirror};
pub use range::BusRange;
pub use region::{Region, RegionId};
pub use registry::{Bus, BusDraft};
pub use routes::BusGeneration;
pub use stats::{CursorStats, RegionStats};
