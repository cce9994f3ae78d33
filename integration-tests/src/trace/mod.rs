//! KVM's own account of what its MMU did: the `kvmmmu` tracepoints.
//!
//! [`event`] reads the lines of a trace, [`session`] switches the tracepoints on and collects them.

pub mod event;
pub mod session;

pub use event::{Event, ParseError, parse};
pub use session::{Session, Unavailable};
