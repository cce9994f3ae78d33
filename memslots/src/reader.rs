//! [`SlotReader`]: one thread's view of the slots.

use crate::addr::{Gfn, Gpa};
use crate::generation::Generation;
use crate::publish::{Published, Reader};
use crate::slot::MemSlot;
use crate::snapshot::Memslots;
use alloc::sync::Arc;
use core::fmt;

/// A cached snapshot that is renewed when a newer one was published: what each vCPU (and each device thread) has for
/// itself. A reader reads one address space; a vCPU that can enter system management mode has two.
///
/// It has no last-used slot, as KVM's vCPUs have before their red-black tree. That was tried and measured: with a tree of
/// two or three loads the check saves less than its mispredictions cost, except when one slot is used for ever.
#[derive(Clone)]
pub struct SlotReader {
    reader: Reader<Memslots>,
}

impl SlotReader {
    /// A reader of what is published in `source`.
    pub fn new(source: Arc<Published<Memslots>>) -> Self {
        Self {
            reader: Reader::new(source),
        }
    }

    /// The current snapshot. For one operation (look up, read, stamp with the generation) call it once.
    #[inline]
    pub fn snapshot(&mut self) -> &Memslots {
        self.reader.get()
    }

    /// As [`SlotReader::snapshot`], shared: for keeping it beyond the next call.
    #[inline]
    pub fn snapshot_arc(&mut self) -> &Arc<Memslots> {
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
        self.snapshot().find(gfn)
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
}

impl fmt::Debug for SlotReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotReader")
            .field("cached", self.reader.cached())
            .finish_non_exhaustive()
    }
}
