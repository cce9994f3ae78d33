//! [`SlotSource`]: the little that the direct side has to ask the memslots.

use umbra_memslots::{AddressSpaceId, Generation, Gfn, SlotId, SlotReader};

/// One vCPU's view of the memslots of its address space.
///
/// Implementations: [`SlotReader`]; a plain list in tests.
pub trait SlotSource {
    /// Which set of memslots is current.
    fn current(&mut self) -> SlotSet;

    /// The slot that holds `gfn`, and the set in which it was looked for: the current one, which may be newer than the
    /// last [`SlotSource::current`] said.
    fn search(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundSlot>);
}

/// The name of a set of memslots: what is concluded from the slots is true of this set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SlotSet {
    /// When.
    pub generation: Generation,
    /// For whom.
    pub address_space: AddressSpaceId,
}

/// What matters of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoundSlot {
    /// Its id.
    pub id: SlotId,
    /// Writes are emulated.
    pub read_only: bool,
    /// It is being deleted or moved: nothing may be mapped, nothing be concluded.
    pub invalid: bool,
}

impl SlotSource for SlotReader {
    #[inline]
    fn current(&mut self) -> SlotSet {
        let slots = self.snapshot();
        SlotSet {
            generation: slots.generation(),
            address_space: slots.space(),
        }
    }

    #[inline]
    fn search(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundSlot>) {
        let slots = self.snapshot();
        let set = SlotSet {
            generation: slots.generation(),
            address_space: slots.space(),
        };
        let found = slots.find(gfn).map(|slot| FoundSlot {
            id: slot.id(),
            read_only: slot.is_read_only(),
            invalid: slot.is_invalid(),
        });
        (set, found)
    }
}
