//! [`SlotReader`]: one thread's view of the slots, with a memory of the slot it used last.

use crate::addr::{Gfn, Gpa};
use crate::generation::Generation;
use crate::publish::{Published, Reader};
use crate::slot::{MemSlot, SlotId};
use crate::snapshot::Memslots;
use alloc::sync::Arc;
use core::fmt;

/// A cached snapshot and a last-used slot: what each vCPU (and each device thread) has for itself.
///
/// The last-used slot belongs to one snapshot and is forgotten with it, as KVM's `last_used_slot` is when
/// `last_used_slot_gen` differs. A reader reads one address space; a vCPU that can enter system management mode has two.
#[derive(Clone)]
pub struct SlotReader {
    reader: Reader<Memslots>,
    last: LastUsed,
}

/// The place of a slot, so that a repeated lookup needs no tree. No pages: nothing was used yet.
#[derive(Clone, Copy, Default)]
struct LastUsed {
    start: u64,
    pages: u64,
    id: SlotId,
}

impl SlotReader {
    /// A reader of what is published in `source`.
    pub fn new(source: Arc<Published<Memslots>>) -> Self {
        Self {
            reader: Reader::new(source),
            last: LastUsed::default(),
        }
    }

    /// The current snapshot. For one operation (look up, read, stamp with the generation) call it once.
    #[inline]
    pub fn snapshot(&mut self) -> &Memslots {
        self.refresh();
        self.reader.cached()
    }

    /// As [`SlotReader::snapshot`], shared: for keeping it beyond the next call.
    #[inline]
    pub fn snapshot_arc(&mut self) -> &Arc<Memslots> {
        self.refresh();
        self.reader.get_arc()
    }

    /// The current generation.
    #[inline]
    pub fn generation(&mut self) -> Generation {
        self.snapshot().generation()
    }

    /// The slot of a frame, *including* one that is being deleted or moved; see [`Memslots::find`].
    #[inline]
    pub fn find(&mut self, gfn: Gfn) -> Option<&MemSlot> {
        self.refresh();
        let slots = self.reader.cached();
        if gfn.get().wrapping_sub(self.last.start) < self.last.pages {
            return slots.by_id(self.last.id);
        }
        let slot = slots.find(gfn)?;
        self.last = LastUsed {
            start: slot.range().start().get(),
            pages: slot.range().pages(),
            id: slot.id(),
        };
        Some(slot)
    }

    /// As [`SlotReader::find`], by address.
    #[inline]
    pub fn find_gpa(&mut self, gpa: Gpa) -> Option<&MemSlot> {
        self.find(gpa.gfn())
    }

    /// The slot of a frame, unless it is being deleted or moved.
    #[inline]
    pub fn find_visible(&mut self, gfn: Gfn) -> Option<&MemSlot> {
        self.find(gfn).filter(|slot| !slot.is_invalid())
    }

    #[inline]
    fn refresh(&mut self) {
        if self.reader.refresh() {
            self.last = LastUsed::default();
        }
    }
}

impl fmt::Debug for SlotReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotReader")
            .field("cached", self.reader.cached())
            .finish_non_exhaustive()
    }
}
