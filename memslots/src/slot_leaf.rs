//! [`SlotLeaf`]: the leaf of the tree of slots: for each frame a code, and the slots that the codes mean.
//!
//! The slots are in the leaf itself, so that finding one takes no further table: the load of the code and that of the
//! place of the slots do not wait for each other.

use crate::page_map::node::{LEAF_BITS, Node, index};
use crate::slot::MemSlot;
use alloc::vec;
use alloc::vec::Vec;
use core::mem::size_of;

/// 2048 frames and the slots in them.
#[derive(Clone)]
pub(crate) struct SlotLeaf {
    /// 0: no slot; `n`: `slots[n - 1]`. There are at most 2048.
    codes: [u16; 1 << LEAF_BITS],
    /// Each slot that has a frame here, once.
    slots: Vec<MemSlot>,
}

impl SlotLeaf {
    /// The slot of a frame.
    #[inline]
    pub(crate) fn get(&self, frame: u64) -> Option<&MemSlot> {
        self.slots
            .get(usize::from(self.codes[index(frame, LEAF_BITS)]).wrapping_sub(1))
    }

    /// The code of `slot`, which takes the place of an older state of the same slot.
    fn code_of(&mut self, slot: &MemSlot) -> u16 {
        let place = self.slots.iter().position(|present| present.id() == slot.id());
        let place = match place {
            Some(place) => {
                self.slots[place] = slot.clone();
                place
            }
            None => {
                self.slots.push(slot.clone());
                self.slots.len() - 1
            }
        };
        // Never saturates: there are at most 2048 slots in 2048 frames.
        u16::try_from(place + 1).unwrap_or(u16::MAX)
    }

    /// Drops the slots that have no frame here any more.
    fn prune(&mut self) {
        let mut codes = vec![0; self.slots.len() + 1];
        for &code in &self.codes {
            codes[usize::from(code)] = 1;
        }
        if codes[1..].iter().all(|&used| used == 1) {
            return;
        }
        // From "is used" to the new code.
        codes[0] = 0;
        let mut next = 0;
        for code in &mut codes[1..] {
            next += *code;
            *code *= next;
        }
        let mut old = 0;
        self.slots.retain(|_| {
            old += 1;
            codes[old] != 0
        });
        for code in &mut self.codes {
            *code = codes[usize::from(*code)];
        }
    }
}

impl Node for SlotLeaf {
    type Value = MemSlot;
    type Leaf = Self;
    const BITS: u32 = LEAF_BITS;

    fn uniform(value: Option<&MemSlot>) -> Self {
        let code = u16::from(value.is_some());
        Self {
            codes: [code; 1 << LEAF_BITS],
            slots: value.into_iter().cloned().collect(),
        }
    }

    #[inline]
    fn leaf(&self, _frame: u64) -> &Self {
        self
    }

    fn set(&mut self, start: u64, end: u64, value: Option<&MemSlot>) {
        let code = value.map_or(0, |slot| self.code_of(slot));
        self.codes[index(start, LEAF_BITS)..=index(end - 1, LEAF_BITS)].fill(code);
        if value.is_none() {
            self.prune();
        }
    }

    fn search(&self, from: u64, wanted: &impl Fn(Option<&MemSlot>) -> bool) -> Option<u64> {
        (from..1 << LEAF_BITS).find(|&frame| wanted(self.get(frame)))
    }

    fn is_none(&self) -> bool {
        self.slots.is_empty()
    }

    fn heap_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<MemSlot>()
    }
}
