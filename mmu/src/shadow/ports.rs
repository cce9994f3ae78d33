//! What the shadow side asks of others: [`FrameSource`] (where is the memory? and: it is dirty) and [`TlbControl`]
//! (forget!).

use crate::direct::{FoundSlot, SlotSet};
use umbra_memslots::{Gfn, Gva};

/// One vCPU's view of the memory behind guest frames.
pub trait FrameSource {
    /// Which set of memslots is current.
    fn current(&mut self) -> SlotSet;

    /// The memory of a frame, if it has a slot, in the current set, which is named as well.
    ///
    /// May be called with the MMU's lock held, or while others wait for this to return: it must not wait for anybody who
    /// changes the MMU.
    fn frame(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundFrame>);

    /// The guest may write to the page from now on, and its slot is logged by [`DirtyLog::WriteProtection`].
    ///
    /// May be called with the MMU's lock held, or while others wait for this to return.
    fn mark_dirty(&mut self, _gfn: Gfn) {}

    /// Whether the memory of a frame, if it has a slot, is there without anybody waiting for it (KVM asks
    /// `get_user_pages_fast_only`): then it may be mapped before the guest uses it, because its neighbour is. By default
    /// nothing is.
    ///
    /// Called with the MMU's lock held.
    fn at_hand(&mut self, _gfn: Gfn) -> bool {
        false
    }
}

/// How it comes to be known that a page was written to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum DirtyLog {
    /// Nobody wants to know.
    #[default]
    Off,
    /// The first write faults, and [`FrameSource::mark_dirty`] is called.
    WriteProtection,
    /// The walker sets the dirty flag of the leaf, and
    /// [`ShadowMmu::collect_dirty`](super::ShadowMmu::collect_dirty) finds it.
    DirtyFlags,
}

/// Memory behind a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoundFrame {
    /// The slot.
    pub slot: FoundSlot,
    /// The address by which the walker of the shadow tables knows the page; a multiple of 4096.
    pub address: u64,
    /// The level of the largest leaf that may map it: 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB (if the walker knows such). All
    /// frames that such a leaf maps, from a multiple of their number on, lie in the same slot and one after the other at
    /// addresses from a multiple of the leaf's size on.
    pub largest: u8,
    /// How writes to it are logged. Logged memory is mapped by 4 KiB leaves.
    pub log: DirtyLog,
}

impl FoundFrame {
    /// A page of its own.
    #[must_use]
    pub const fn page(slot: FoundSlot, address: u64) -> Self {
        Self {
            slot,
            address,
            largest: 1,
            log: DirtyLog::Off,
        }
    }

    /// The same within memory that leaves of up to this level may map.
    #[must_use]
    pub const fn with_largest(self, level: u8) -> Self {
        Self { largest: level, ..self }
    }

    /// The same, logged.
    #[must_use]
    pub const fn with_log(self, log: DirtyLog) -> Self {
        Self { log, ..self }
    }
}

/// Who walks the shadow tables, and may remember what it found.
pub trait TlbControl {
    /// Forgets everything, on all vCPUs, and returns when that has happened.
    fn flush_all(&mut self);

    /// Forgets everything, on this vCPU.
    fn flush_vcpu(&mut self) {
        self.flush_all();
    }

    /// Forgets one page, on this vCPU.
    fn flush_gva(&mut self, gva: Gva);
}
