//! The shadow side: what the entries that a CPU walks look like.
//!
//! Read [`host`] (what a layout depends on), [`layout`] (the bit budget), [`link`] (entries that lead to
//! tables), [`refusal`] (why a host can't have MMIO SPTEs).

pub mod bits;
pub mod host;
pub mod layout;
pub mod link;
pub mod refusal;

pub use bits::BitSpan;
pub use host::{CpuidResult, EntryFormat, GenerationSpans, HostParams};
pub use layout::SpteLayout;
pub use refusal::{CachingOff, LayoutError};
