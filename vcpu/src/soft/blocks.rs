//! The cache of decoded code: runs of instructions, found by where they lie in guest-physical memory.
//!
//! A block lies within one page, ends where control may go elsewhere, and is thrown away when its bytes are written to.
//! A block's instructions know their own RIP, so the same bytes at another RIP are another block.

use crate::emulate::state::CodeSize;
use crate::emulate::{Cpu, Decoded, Memory, Platform};
use std::collections::HashMap;
use umbra_memslots::{Gfn, Gpa};

/// Places for blocks.
const SLOTS: usize = 1 << 14;
/// Instructions of a block at most: until its end, no interrupt is seen.
const MAX_INSTRUCTIONS: usize = 32;
/// Bytes of a block at most.
pub(super) const MAX_BYTES: usize = 15 * MAX_INSTRUCTIONS;

/// Where a block begins, and as what its bytes were decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key {
    pub gpa: Gpa,
    pub rip: u64,
    pub size: CodeSize,
}

impl Key {
    fn slot(self) -> usize {
        let mixed = (self.gpa.get() ^ self.rip << 7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> (64 - SLOTS.trailing_zeros())) as usize
    }
}

/// Decoded instructions that follow each other.
pub(super) struct Block<E> {
    key: Key,
    pub bytes: usize,
    pub instructions: Box<[Decoded<E>]>,
}

/// Decoded blocks. Two that want the same place take turns.
pub(super) struct Blocks<E> {
    slots: Box<[Option<Block<E>>]>,
    /// For each frame the places of its blocks.
    frames: HashMap<Gfn, Vec<usize>>,
}

impl<E: Memory + Platform> Blocks<E> {
    pub fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| None).collect(),
            frames: HashMap::new(),
        }
    }

    #[inline]
    pub fn find(&self, key: Key) -> Option<&Block<E>> {
        self.slots[key.slot()].as_ref().filter(|block| block.key == key)
    }

    /// Decodes a block from the `bytes` at `key`. `None` if not even one instruction ends in them.
    pub fn decode(&mut self, key: Key, cpu: &Cpu<E>, bytes: &[u8]) -> Option<&Block<E>> {
        let mut instructions = Vec::with_capacity(8);
        let mut length = 0;
        cpu.decode_run(bytes, |decoded, end| {
            instructions.push(decoded);
            length = end;
            instructions.len() < MAX_INSTRUCTIONS
        });
        if instructions.is_empty() {
            return None;
        }
        let (slot, gfn) = (key.slot(), key.gpa.gfn());
        let before = self.slots[slot].as_ref().map(|block| block.key.gpa.gfn());
        if before != Some(gfn) {
            if let Some(places) = before.and_then(|before| self.frames.get_mut(&before)) {
                places.retain(|place| *place != slot);
            }
            self.frames.entry(gfn).or_default().push(slot);
        }
        Some(self.slots[slot].insert(Block {
            key,
            bytes: length,
            instructions: instructions.into_boxed_slice(),
        }))
    }

    /// Throws the blocks of a frame away.
    pub fn forget(&mut self, gfn: Gfn) {
        for slot in self.frames.remove(&gfn).into_iter().flatten() {
            self.slots[slot] = None;
        }
    }

    /// Throws everything away.
    pub fn clear(&mut self) {
        for slot in self.frames.drain().flat_map(|(_, places)| places) {
            self.slots[slot] = None;
        }
    }
}
