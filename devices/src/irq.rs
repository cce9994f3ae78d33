//! Interrupts: devices hold a line, chips and backends implement [`IrqSink`].

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
    fn set_level(&self, gsi: Gsi, high: bool);
}
