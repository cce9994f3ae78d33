//! [`Memslots`]: the slots of one address space at one generation. Immutable; what readers hold.

use crate::addr::{Gfn, Gpa, Hva};
use crate::generation::Generation;
use crate::hva_tree::HvaTree;
use crate::page_map::tree::Tree;
use crate::range::GfnRange;
use crate::slot::{AddressSpaceId, MemSlot, SlotId};
use crate::slot_leaf::SlotLeaf;
use crate::slot_store::SlotStore;
use core::fmt;

/// A consistent set of slots with its generation.
///
/// A clone shares everything. Whoever stamps something it derived from the slots (an MMIO SPTE) uses *this* value's
/// generation, never one read elsewhere: that is what makes "stale" decidable.
#[derive(Clone)]
pub struct Memslots {
    generation: Generation,
    space: AddressSpaceId,
    /// Each slot by its frames.
    frames: Tree<SlotLeaf>,
    slots: SlotStore,
    by_hva: HvaTree,
    /// The slot, if there is exactly one: the commonest small machine needs no tree.
    sole: Option<MemSlot>,
    total_pages: u64,
}

impl Memslots {
    pub(crate) fn new(space: AddressSpaceId) -> Self {
        Self {
            generation: Generation::initial(space),
            space,
            frames: Tree::new(),
            slots: SlotStore::new(),
            by_hva: HvaTree::default(),
            sole: None,
            total_pages: 0,
        }
    }

    /// The generation, with the in-progress mark if this snapshot was published in the middle of an update.
    #[inline]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The address space that this is a state of.
    pub fn space(&self) -> AddressSpaceId {
        self.space
    }

    /// The slot that a frame lies in, *including* one that is being deleted or moved
    /// ([`MemSlot::is_invalid`], KVM's `gfn_to_memslot`). `None` means MMIO.
    #[inline]
    pub fn find(&self, gfn: Gfn) -> Option<&MemSlot> {
        match &self.sole {
            Some(slot) => slot.range().contains(gfn).then_some(slot),
            None => self.frames.leaf(gfn.get())?.get(gfn.get()),
        }
    }

    /// As [`Memslots::find`], by address.
    #[inline]
    pub fn find_gpa(&self, gpa: Gpa) -> Option<&MemSlot> {
        self.find(gpa.gfn())
    }

    /// The slot that a frame lies in, unless it is being deleted or moved (KVM's `kvm_is_visible_gfn`).
    #[inline]
    pub fn find_visible(&self, gfn: Gfn) -> Option<&MemSlot> {
        self.find(gfn).filter(|slot| !slot.is_invalid())
    }

    /// A slot by its number.
    #[inline]
    pub fn by_id(&self, id: SlotId) -> Option<&MemSlot> {
        self.slots.get(id)
    }

    /// A slot whose memory contains the host address: the one with the lowest start if several do.
    pub fn find_by_hva(&self, hva: Hva) -> Option<&MemSlot> {
        self.overlapping_hva(hva, 1).next()
    }

    /// Every slot that shares a byte with the `bytes` host bytes from `start` on, by ascending host start address.
    /// Slots may overlap in host addresses.
    pub fn overlapping_hva(&self, start: Hva, bytes: u64) -> impl Iterator<Item = &MemSlot> {
        let end = Hva::new(start.get().saturating_add(bytes));
        self.by_hva
            .overlapping(start, end)
            .into_iter()
            .filter_map(|id| self.slots.get(id))
    }

    /// The first slot that has a frame at or above `gfn`.
    pub fn next_at_or_after(&self, gfn: Gfn) -> Option<&MemSlot> {
        let frame = self.frames.search(gfn.get(), &|slot| slot.is_some())?;
        self.frames.leaf(frame)?.get(frame)
    }

    /// The slots that share a frame with `range`, in ascending order of frames.
    pub fn overlapping(&self, range: GfnRange) -> impl Iterator<Item = &MemSlot> {
        SlotIter {
            slots: self,
            next: Some(range.start()),
        }
        .take_while(move |slot| slot.range().overlaps(range))
    }

    /// Every slot, in ascending order of frames.
    pub fn iter(&self) -> impl Iterator<Item = &MemSlot> {
        SlotIter {
            slots: self,
            next: Some(Gfn::default()),
        }
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is no slot.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of pages of all slots together.
    pub fn total_pages(&self) -> u64 {
        self.total_pages
    }

    pub(crate) fn with_generation(&self, generation: Generation) -> Self {
        Self {
            generation,
            ..self.clone()
        }
    }

    pub(crate) fn set_generation(&mut self, generation: Generation) {
        self.generation = generation;
    }

    /// Adds a slot. The caller has made sure that neither its id nor its frames are taken.
    pub(crate) fn insert(&mut self, slot: MemSlot) {
        self.frames.set(slot.range(), Some(&slot));
        self.by_hva.insert(&slot);
        self.total_pages += slot.range().pages();
        self.sole = self.is_empty().then(|| slot.clone());
        self.slots.insert(slot);
    }

    pub(crate) fn remove(&mut self, id: SlotId) {
        if let Some(slot) = self.slots.remove(id) {
            self.frames.set(slot.range(), None);
            self.by_hva.remove(&slot);
            self.total_pages -= slot.range().pages();
            self.sole = self
                .next_at_or_after(Gfn::default())
                .filter(|_| self.slots.len() == 1)
                .cloned();
        }
    }

    /// Replaces a slot by one with the same id and place.
    pub(crate) fn replace(&mut self, slot: MemSlot) {
        self.frames.set(slot.range(), Some(&slot));
        self.sole = self.sole.take().map(|_| slot.clone());
        self.slots.insert(slot);
    }
}

struct SlotIter<'a> {
    slots: &'a Memslots,
    next: Option<Gfn>,
}

impl<'a> Iterator for SlotIter<'a> {
    type Item = &'a MemSlot;

    fn next(&mut self) -> Option<Self::Item> {
        let slot = self.slots.next_at_or_after(self.next?)?;
        self.next = slot.range().last().checked_add(1);
        Some(slot)
    }
}

impl fmt::Debug for Memslots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memslots")
            .field("space", &self.space)
            .field("generation", &self.generation)
            .field("slots", &DebugSlots(self))
            .finish()
    }
}

struct DebugSlots<'a>(&'a Memslots);

impl fmt::Debug for DebugSlots<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter()).finish()
    }
}
