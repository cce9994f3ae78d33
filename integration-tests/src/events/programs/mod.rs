//! The programs, and the page tables that they share.

mod ahead;
mod edits;
mod large;
mod mmio;
mod rights;
mod spaces;
mod tables;

use super::program::Program;

/// All programs.
#[must_use]
pub fn all() -> Vec<Program> {
    [
        mmio::programs(),
        edits::programs(),
        spaces::programs(),
        large::programs(),
        rights::programs(),
        ahead::programs(),
    ]
    .concat()
}
