//! For tests of this crate and of those above it: a small memory that a walker and the model of the hardware can share,
//! and the comparison of the two. Only with the feature `testing`.

mod compare;
mod memory;
mod walk_bytes;

pub use compare::{as_hardware, hw_access, hw_cpu, walk_both};
pub use memory::WalkMemory;
pub use walk_bytes::check_walk_bytes;
