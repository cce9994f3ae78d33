//! [`SlotFrames`]: where the KVM VM has the guest's memory.

use umbra_memslots::{Gfn, GfnRange, SlotReader};
use umbra_mmu::direct::{SlotSet, SlotSource};
use umbra_mmu::shadow::{FoundFrame, FrameSource};

/// Frames of a 2 MiB page.
const PAGES_2M: u64 = 512;

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
        let frame = found.map(|slot| FoundFrame::page(slot, gfn.base().get()).with_largest(self.largest(gfn)));
        (set, frame)
    }

    /// The VM's memory is mapped for as long as its slot is there; a fault that doesn't happen saves two exits.
    fn at_hand(&mut self, _gfn: Gfn) -> bool {
        true
    }
}

impl SlotFrames<'_> {
    /// 2 if the 2 MiB around the frame lie in one slot.
    fn largest(&mut self, gfn: Gfn) -> u8 {
        let first = Gfn::from_masked(gfn.get() & !(PAGES_2M - 1));
        let around = GfnRange::new(first, PAGES_2M);
        let slot = self.0.snapshot().find(gfn);
        let within = slot.zip(around).is_some_and(|(slot, around)| {
            slot.range().contains(around.start()) && slot.range().contains(around.last())
        });
        if within { 2 } else { 1 }
    }
}
