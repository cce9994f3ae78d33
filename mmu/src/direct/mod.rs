//! The direct side: tables indexed by gfn, for guests without paging of their own and for second-level translation.
//!
//! Read [`levels`] (how a gfn is cut), [`table`] (the tree), [`leaf`] and [`ram`] (memory in it), [`slots`] (what is asked of the memslots), [`vcpu`] (what
//! each vCPU keeps), [`mmu`], which puts them together, and [`follower`], which keeps it in step with the memslots.

pub mod follower;
pub mod leaf;
pub mod levels;
pub mod mmu;
pub mod ram;
pub mod slots;
pub mod table;
pub mod vcpu;

pub use follower::SlotFollower;
pub use leaf::RamLeaf;
pub use levels::Levels;
pub use mmu::{DirectError, DirectMmu, DirectOptions};
pub use ram::Mapped;
pub use slots::{FoundSlot, SlotSet, SlotSource};
pub use table::{DirectTable, Installed, LastTable, Leaf, NewTableError, OutOfTables, TableWriter, Zapped};
pub use vcpu::{DirectStats, DirectVcpu, Direction, MmioAnswer, MmioSource};
