//! Stand-ins and oracles for tests of this crate and of those above it. Only with the feature `testing`.

mod naive;
mod recorder;
mod sequence;
mod vec_memory;

pub use naive::{NaiveSlot, NaiveSlots};
pub use recorder::{Event, Recorder};
pub use sequence::check_request_bytes;
pub use vec_memory::VecMemory;
