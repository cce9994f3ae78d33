//! [`SlotFrames`]: where the KVM VM has the guest's memory.

use umbra_memslots::{Gfn, SlotReader};
use umbra_mmu::direct::{SlotSet, SlotSource};
use umbra_mmu::shadow::{FoundFrame, FrameSource};

/// The memory of slots that are mirrored into the VM ([`crate::kvm::SlotMirror`]): each guest frame is at its own address
/// there.
pub struct SlotFrames<'a>(
    /// One vCPU's view of the slots.
    pub &'a mut SlotReader,
);

impl FrameSource for SlotFrames<'_> {
    fn current(&mut self) -> SlotSet {
        SlotSource::current(self.0)
    }

    fn frame(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundFrame>) {
        let (set, found) = self.0.search(gfn);
        let frame = found.map(|slot| FoundFrame::page(slot, gfn.base().get()));
        (set, frame)
    }
}
