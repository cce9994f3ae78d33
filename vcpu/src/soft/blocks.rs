//! The cache of decoded code: runs of instructions, found by where they lie in guest-physical memory.
//!
//! A block lies within one page, ends where control may go elsewhere, and is thrown away when its bytes are written to.
//! A block's instructions know their own RIP, so the same bytes at another RIP are another block.

use super::fast::{Op, select};
use super::world::World;
use crate::emulate::state::CodeSize;
use crate::emulate::{Cpu, Decoded};
use iced_x86::{Instruction, Mnemonic, Register};
use std::collections::HashMap;
use umbra_memslots::{Gfn, Gpa};

/// Places for blocks.
const SLOTS: usize = 1 << 14;
/// Instructions of a block at most: until its end, no interrupt is seen.
pub(super) const MAX_INSTRUCTIONS: usize = 32;
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
pub(super) struct Block {
    key: Key,
    /// No two blocks have the same.
    serial: u64,
    pub bytes: usize,
    /// The same instructions for the fast way and for the instruction core.
    pub ops: Box<[Op]>,
    pub instructions: Box<[Decoded<World>]>,
}

/// Decoded blocks. Two that want the same place take turns.
pub(super) struct Blocks {
    slots: Box<[Option<Block>]>,
    /// Where blocks were found last, by RIP.
    jumps: Box<[Jump]>,
    decoded: u64,
    /// For each frame the places of its blocks.
    frames: HashMap<Gfn, Vec<usize>>,
}

/// What was found at a RIP.
#[derive(Clone, Copy)]
struct Jump {
    rip: u64,
    /// The epoch of the translation, and the mode.
    tag: u64,
    slot: usize,
    serial: u64,
}

/// Places for what was found.
const JUMPS: usize = 1 << 12;

fn jump_index(rip: u64) -> usize {
    (rip ^ rip >> 12) as usize % JUMPS
}

impl Blocks {
    pub fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| None).collect(),
            jumps: vec![
                Jump {
                    rip: 0,
                    tag: u64::MAX,
                    slot: 0,
                    serial: 0,
                };
                JUMPS
            ]
            .into_boxed_slice(),
            decoded: 0,
            frames: HashMap::new(),
        }
    }

    #[inline]
    pub fn find(&self, key: Key) -> Option<&Block> {
        self.slots[key.slot()].as_ref().filter(|block| block.key == key)
    }

    /// The block that was found at `rip` before, if translation and mode, which `tag` stands for, are the same.
    #[inline]
    pub fn known(&self, rip: u64, tag: u64) -> Option<&Block> {
        let jump = &self.jumps[jump_index(rip)];
        if jump.rip != rip || jump.tag != tag {
            return None;
        }
        self.slots[jump.slot]
            .as_ref()
            .filter(|block| block.serial == jump.serial)
    }

    /// Remembers for [`Blocks::known`] that the block of `key` was found.
    pub fn remember(&mut self, key: Key, tag: u64) {
        if let Some(block) = &self.slots[key.slot()] {
            self.jumps[jump_index(key.rip)] = Jump {
                rip: key.rip,
                tag,
                slot: key.slot(),
                serial: block.serial,
            };
        }
    }

    /// Decodes a block from the `bytes` at `key`. `None` if not even one instruction ends in them.
    pub fn decode(&mut self, key: Key, cpu: &Cpu<World>, bytes: &[u8]) -> Option<&Block> {
        let mut ops = Vec::with_capacity(8);
        let mut instructions = Vec::with_capacity(8);
        let mut length = 0;
        cpu.decode_run(bytes, |decoded, end| {
            ops.push(select(decoded.instruction(), key.size));
            let opens = opens(decoded.instruction());
            instructions.push(decoded);
            length = end;
            instructions.len() < MAX_INSTRUCTIONS && !opens
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
        self.decoded += 1;
        Some(self.slots[slot].insert(Block {
            key,
            serial: self.decoded,
            bytes: length,
            ops: ops.into_boxed_slice(),
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

/// Whether interrupts may come after this instruction that couldn't before it. They are taken between blocks, so there must
/// be such a place: the guest may shut them out again soon. So must there be after an instruction by which the guest waits for
/// another vCPU.
fn opens(insn: &Instruction) -> bool {
    // An x2APIC is reached by MSR.
    matches!(
        insn.mnemonic(),
        Mnemonic::Sti | Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq | Mnemonic::Wrmsr | Mnemonic::Pause
    ) || insn.op0_register() == Register::CR8
}
