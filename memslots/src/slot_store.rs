//! [`SlotStore`]: the slots of one address space by id, in shared chunks.
//!
//! A slot is one cache line and sits in place in its chunk, so finding it by id is two small hops that stay cached.
//! Changing a slot copies its chunk and the directory of chunks, which is as long as the highest id needs. (Finding one
//! by frame does not come here: see [`crate::slot_leaf`].)

use crate::slot::{MemSlot, SlotId};
use alloc::sync::Arc;
use core::array;
use core::mem::size_of;

/// Slots in a chunk.
const CHUNK: usize = 32;

type Chunk = [Option<MemSlot>; CHUNK];

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Option<MemSlot>>() == 64, "a slot is no longer one cache line");

#[derive(Clone)]
pub(crate) struct SlotStore {
    chunks: Arc<[Arc<Chunk>]>,
    /// What stands for a chunk without slots.
    none: Arc<Chunk>,
    len: usize,
}

impl SlotStore {
    pub(crate) fn new() -> Self {
        Self {
            chunks: Arc::new([]),
            none: Arc::new(array::from_fn(|_| None)),
            len: 0,
        }
    }

    #[inline]
    pub(crate) fn get(&self, id: SlotId) -> Option<&MemSlot> {
        let id = usize::from(id.get());
        self.chunks.get(id / CHUNK)?[id % CHUNK].as_ref()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Puts a slot at its id and returns what was there.
    pub(crate) fn insert(&mut self, slot: MemSlot) -> Option<MemSlot> {
        let id = usize::from(slot.id().get());
        if id / CHUNK >= self.chunks.len() {
            // Doubling keeps the number of regrowths low while ids are handed out in order.
            let wanted = (id / CHUNK + 1).max(self.chunks.len() * 2);
            let mut chunks = self.chunks.to_vec();
            chunks.resize_with(wanted, || Arc::clone(&self.none));
            self.chunks = chunks.into();
        }
        let chunk = &mut Arc::make_mut(&mut self.chunks)[id / CHUNK];
        let old = Arc::make_mut(chunk)[id % CHUNK].replace(slot);
        if old.is_none() {
            self.len += 1;
        }
        old
    }

    /// Takes the slot of an id away and returns it.
    pub(crate) fn remove(&mut self, id: SlotId) -> Option<MemSlot> {
        self.get(id)?;
        let id = usize::from(id.get());
        let chunk = &mut Arc::make_mut(&mut self.chunks)[id / CHUNK];
        let slots = Arc::make_mut(chunk);
        let old = slots[id % CHUNK].take();
        if slots.iter().all(Option::is_none) {
            *chunk = Arc::clone(&self.none);
        }
        self.len -= 1;
        old
    }
}
