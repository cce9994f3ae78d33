//! KVM's own account of what its MMU did: the `kvmmmu` tracepoints.
//!
//! [`event`] says what there is, [`parse`](mod@parse) reads the lines of a trace, [`session`] switches the tracepoints on
//! and collects them.

pub mod event;
pub mod parse;
pub mod session;

pub use event::{Event, Page};
pub use parse::{ParseError, parse};
pub use session::{Session, Unavailable};
