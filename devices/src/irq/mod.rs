//! Interrupts: devices hold an [`IrqLine`], chips and backends implement [`IrqSink`].
//!
//! Locks: a pin's lock comes before any device's lock. A device therefore never touches its line while it holds a lock
//! of its own; where a level depends on its state, it lets [`IrqLine::update`] ask for it.

mod line;
mod message;

pub use line::{IrqLine, IrqPins};
pub use message::{DeliveryMode, Message, Msi, MsiSink};

use std::fmt;

/// Number of a global system interrupt (an input pin of the interrupt controllers as a whole).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gsi(pub u32);

impl fmt::Debug for Gsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gsi({})", self.0)
    }
}

/// Where interrupt lines end: an interrupt controller model, or KVM's in-kernel one.
///
/// Devices never use this directly, they hold a line that remembers its own level.
pub trait IrqSink: Send + Sync {
    /// Sets the level of one input. Called on changes only, from any thread, never while holding a device's lock.
    /// Calls for one input are never concurrent. Must not touch a line of the same input.
    fn set_level(&self, gsi: Gsi, high: bool);
}

/// Called when an interrupt waits for a CPU; from any thread, with no lock held. May be called more often than needed.
pub type Waker = Box<dyn Fn() + Send + Sync>;

/// An interrupt controller as the CPU sees it to which its INTR pin is wired. Implemented by
/// [`PicPair`](crate::models::pic::PicPair), and by lists in tests.
pub trait IntrSource: Send + Sync {
    /// Whether INTR is high. Cheap.
    fn is_pending(&self) -> bool;

    /// The CPU acknowledges (INTA): the vector of the interrupt that it takes now.
    fn acknowledge(&self) -> u8;

    /// Who is to be woken when INTR goes high. To be called once.
    fn set_waker(&self, waker: Waker);
}
