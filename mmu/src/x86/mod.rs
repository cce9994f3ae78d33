//! Facts about x86 paging: control registers, modes, entries, reserved bits, permissions, faults. No memory access here.
//!
//! Read in this order: [`control`], [`mode`], [`entry`], [`reserved`], [`access`], [`page_fault`], and [`state`], which
//! holds everything that a walk depends on.

pub mod access;
pub mod control;
pub mod entry;
pub mod mode;
pub mod page_fault;
pub mod reserved;
pub mod state;

pub use access::{Access, AccessKind, Privilege};
pub use control::{GuestCpu, PagingRegs};
pub use entry::GuestPte;
pub use mode::PagingMode;
pub use page_fault::{FaultCause, PageFault, PageFaultCode};
pub use reserved::ReservedBits;
pub use state::PagingState;
