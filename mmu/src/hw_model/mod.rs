//! A model of the page-walking hardware: raw bits in, error code out.
//!
//! It stands where a real CPU stands: it walks whatever tables it is pointed at, a guest's or our shadow of them, and
//! knows nothing of what the MMU meant by them. That is its worth: two readings of the same manual that must agree. So it
//! **must never call** the decoders of [`crate::x86`], [`crate::shadow`], [`crate::mmio`] or [`crate::guest_walk`], and
//! shares no type with them. Numbers are bare on purpose: they are wires.
//!
//! [`cpu`] has the registers, [`x86`] walks x86 tables of every mode, [`ept`] walks Intel's second-level tables, [`wired`]
//! is the memory of a table space.

pub mod cpu;
pub mod ept;
pub mod wired;
pub mod x86;

pub use cpu::{HwAccess, HwCpu, HwMemory};
pub use ept::{EptOutcome, ept_walk};
pub use wired::Wired;
pub use x86::{HwOutcome, HwPage, hw_walk};
