//! What the shadow side asks of others: [`FrameSource`] (where is the memory?) and [`TlbControl`] (forget!).

use crate::direct::{FoundSlot, SlotSet};
use umbra_memslots::{Gfn, Gva};

/// One vCPU's view of the memory behind guest frames.
pub trait FrameSource {
    /// Which set of memslots is current.
    fn current(&mut self) -> SlotSet;

    /// The memory of a frame, if it has a slot, in the current set, which is named as well.
    ///
    /// Called with the MMU's lock held.
    fn frame(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundFrame>);
}

/// Memory behind a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoundFrame {
    /// The slot.
    pub slot: FoundSlot,
    /// The address by which the walker of the shadow tables knows the page; a multiple of 4096.
    pub address: u64,
}

/// Who walks the shadow tables, and may remember what it found.
pub trait TlbControl {
    /// Forgets everything, on all vCPUs, and returns when that has happened.
    fn flush_all(&mut self);

    /// Forgets one page, on this vCPU.
    fn flush_gva(&mut self, gva: Gva);
}
