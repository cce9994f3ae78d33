//! CPL 3 code on a real CPU, on shadow tables of ours.
//!
//! Read in this order: `layout` and `arena` (what lies where), `monitor` (what takes exceptions), [`tables`], [`tlb`] and
//! [`frames`] (the shadow MMU's ports), [`native`] (a run of user code); then [`cpu`], a whole vCPU made of
//! it, with [`follower`] and [`ShadowCounts`] beside it, and [`vm`], the machine around it.

#[expect(unsafe_code, reason = "shares memory with a VM")]
#[expect(
    clippy::cast_possible_truncation,
    reason = "counts of tables, and offsets within a mapping of this process"
)]
mod arena;
pub mod cpu;
pub mod follower;
pub mod frames;
mod layout;
mod monitor;
#[expect(clippy::cast_possible_truncation, reason = "an error code has 32 bits")]
pub mod native;
pub mod tables;
pub mod tlb;
pub mod vm;

pub use crate::shadow_counts::{ShadowCounts, ShadowRun};
pub use arena::{ArenaError, MAX_TABLES};
pub use cpu::ShadowCpu;
pub use follower::ShadowFollower;
pub use frames::SlotFrames;
pub use native::{NativeCpu, NativeError, NativeExit};
pub use tables::SharedTables;
pub use tlb::ShadowTlb;
pub use vm::{ShadowOptions, ShadowVm, ShadowVmError};
