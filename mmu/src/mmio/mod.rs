//! MMIO, remembered: that a gfn has no memslot is kept in the page-table entry and in the vCPU.
//!
//! Read [`generation`] (how long such knowledge lasts), [`spte`] (where it is kept), [`vcpu_cache`] (the last page).

mod eras;
pub mod generation;
pub mod spte;
pub mod vcpu_cache;

pub(crate) use eras::Eras;
pub use generation::{MmioEra, MmioGen};
pub use spte::{Freshness, MmioFacts, MmioSpte};
pub use vcpu_cache::{CachedMmio, VcpuMmioCache};
