//! The guest that is part of the binary: what a bare `vmm` runs.
//!
//! [`plan`] says what it does and what must come out, [`program`] is its machine code, [`measure`] times what it made
//! the vmm do, [`summary`] shows it.

pub mod measure;
pub mod plan;
pub mod program;
pub mod summary;
