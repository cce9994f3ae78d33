//! The shadow side: tables that a CPU walks in the place of a guest's own.
//!
//! What an entry looks like: [`host`] (what a layout depends on), [`layout`] (the bit budget), [`link`] (entries that lead
//! to tables), `leaf` (entries that map memory), [`refusal`] (why a host can't have MMIO SPTEs).
//!
//! What is done with them: [`role`] (what a page is a shadow as), `pages` (which there are, and who points to whom) with
//! `by_table` and `mappings`, `path`, `unsync`, `sync`, `guest_write`, `dirty`, `zap`, `reclaim` and `invalidation` (what
//! happens to them), [`root`] and `root_cache` (where a walk begins), [`ports`] and [`outcome`] (what is asked of others,
//! and answered), [`mmu`] (the operations), `map` (the slow path of a fault), `watched` (its walk, observed), `prefetch`
//! (what it maps besides), `mmio_fault` and `fast_fault` (the fast paths), [`vcpu`] (what each vCPU keeps).

pub mod bits;
mod by_table;
mod dirty;
mod fast_fault;
mod guest_write;
pub mod host;
mod invalidation;
pub mod layout;
mod leaf;
pub mod link;
mod map;
mod mappings;
mod mmio_fault;
pub mod mmu;
pub mod outcome;
mod pages;
mod path;
pub mod ports;
mod prefetch;
mod reclaim;
pub mod refusal;
pub mod role;
pub mod root;
mod root_cache;
mod sync;
mod unsync;
pub mod vcpu;
mod watched;
mod zap;

pub use bits::BitSpan;
pub use host::{CpuidResult, EntryFormat, GenerationSpans, HostParams};
pub use layout::SpteLayout;
pub use mmu::{ShadowError, ShadowMmu, Unfinished};
pub use outcome::{FaultOutcome, MmioAccess, ShadowFault};
pub use ports::{DirtyLog, FoundFrame, FrameSource, TlbControl};
pub use refusal::{CachingOff, LayoutError};
pub use role::{PageRole, VcpuRole};
pub use root::ShadowRoot;
pub use root_cache::InvPcid;
pub use vcpu::{ShadowStats, ShadowVcpu};
