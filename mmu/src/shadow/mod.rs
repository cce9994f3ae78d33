//! The shadow side: what the entries that a CPU walks look like.
//!
//! Read [`host`] (what a layout depends on), [`layout`] (the bit budget), [`link`] (entries that lead to tables).

pub mod bits;
pub mod host;
pub mod layout;
pub mod link;

pub use bits::BitSpan;
pub use host::{CpuidResult, EntryFormat, GenerationSpans, HostParams};
pub use layout::{CachingOff, LayoutError, SpteLayout};
