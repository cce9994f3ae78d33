//! Walks over a guest's own page tables, as its CPU would do them.
//!
//! Read [`result`] (what a walk gives), then one of the walkers (`long` is the plainest; `pae` and `bits32` differ
//! where their tables do), `path` (the step they share), `accessed_dirty`, and [`walker`], which puts them together.

mod accessed_dirty;
mod bits32;
mod long;
mod pae;
mod path;
pub mod result;
pub mod walker;

pub use pae::{BadPdpte, PdpteLoad, load_pdptes};
pub use result::{GuestWalk, WalkEntry, WalkFailure};
#[cfg(feature = "std")]
pub(crate) use walker::look;
pub use walker::{translate, walk};
