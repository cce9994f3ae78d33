//! The guest that is part of the binary: what a bare `vmm` runs.
//!
//! [`plan`] says what it does and what must come out, [`program`] is its machine code.

pub mod plan;
pub mod program;
