//! The cache of decoded code: runs of instructions, found by where they lie in guest-physical memory.
//!
//! A block lies within one page, ends where control goes elsewhere for certain (unless that is a short way further on), and
//! is thrown away when its bytes are written to. A branch in it remembers which block it went to last.
//! A block's instructions know their own RIP, so the same bytes at another RIP are another block.

use super::fast::{Op, fuse, select};
use super::world::World;
use crate::emulate::state::CodeSize;
use crate::emulate::{Cpu, Decoded};
use iced_x86::{FlowControl, Instruction, Mnemonic, Register};
use std::cell::Cell;
use std::collections::HashMap;
use umbra_memslots::{Gfn, Gpa};

/// Sets of the index, and places in each: so many blocks there are at most.
const SETS: usize = 1 << 14;
const WAYS: usize = 4;
/// Instructions of a block at most: until its end, no interrupt is seen.
pub(super) const MAX_INSTRUCTIONS: usize = 32;
/// Conditional branches of a block at most, whose other way is another block's beginning.
const MAX_BRANCHES: usize = 4;
/// Bytes of a block at most.
pub(super) const MAX_BYTES: usize = 15 * MAX_INSTRUCTIONS;
/// The tag of no translation and mode.
const NEVER: u64 = u64::MAX;
/// Places for blocks that were found at a RIP.
const JUMPS: usize = 1 << 13;

/// Where a block begins, and as what its bytes were decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key {
    pub gpa: Gpa,
    pub rip: u64,
    pub size: CodeSize,
}

impl Key {
    fn set(self) -> usize {
        let mixed = (self.gpa.get() ^ self.rip << 7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> (64 - SETS.trailing_zeros())) as usize
    }
}

/// Decoded instructions that are executed one after the other: what lies between a jump and its target is left out. As
/// large as a line of the host's cache, so that finding one looks at one.
#[repr(align(64))]
pub(super) struct Block {
    key: Key,
    /// With which translation and in which mode it was last found at its RIP.
    tag: Cell<u64>,
    /// The same instructions for the fast way and for the instruction core.
    pub ops: Box<[Op]>,
    pub instructions: Box<[Decoded<World>]>,
}

impl Block {
    /// From its beginning to the end of its last instruction, or to where that jumps.
    pub fn bytes(&self) -> u64 {
        self.ops.last().map_or(0, Op::end)
    }
}

/// The number of a block. When the block is gone, another may have it.
pub(super) type BlockId = u32;

/// Decoded blocks. More than four that want the same set take turns.
pub(super) struct Blocks {
    blocks: Vec<Block>,
    /// Numbers of blocks that are gone.
    free: Vec<BlockId>,
    /// For each set the numbers of its blocks, plus one; 0 where there is none.
    index: Box<[[BlockId; WAYS]]>,
    /// Which place of a full set is next to give way.
    turn: usize,
    /// Which block was found last, by RIP.
    jumps: Box<[BlockId]>,
    /// For each frame the numbers of its blocks.
    frames: HashMap<Gfn, Vec<BlockId>>,
    /// What is being decoded.
    ops: Vec<Op>,
    instructions: Vec<Decoded<World>>,
}

fn jump_index(rip: u64) -> usize {
    (rip ^ rip >> 13) as usize % JUMPS
}

impl Blocks {
    pub fn new() -> Self {
        Self {
            blocks: Vec::new(),
            free: Vec::new(),
            index: vec![[0; WAYS]; SETS].into_boxed_slice(),
            turn: 0,
            jumps: vec![0; JUMPS].into_boxed_slice(),
            frames: HashMap::new(),
            ops: Vec::with_capacity(MAX_INSTRUCTIONS),
            instructions: Vec::with_capacity(MAX_INSTRUCTIONS),
        }
    }

    #[inline]
    pub fn find(&self, key: Key) -> Option<BlockId> {
        let present = |id: &BlockId| self.blocks.get(*id as usize).is_some_and(|block| block.key == key);
        self.index[key.set()]
            .iter()
            .map(|place| place.wrapping_sub(1))
            .find(present)
    }

    /// A block that [`Blocks::find`] or another has just given the number of.
    #[inline]
    pub fn get(&self, id: BlockId) -> Option<&Block> {
        self.blocks.get(id as usize)
    }

    /// The block of this number, if it was last found at `rip` and with this translation and mode, for which `tag` stands.
    #[inline(always)]
    pub fn linked(&self, id: BlockId, rip: u64, tag: u64) -> Option<&Block> {
        let block = self.blocks.get(id as usize)?;
        (block.key.rip == rip && block.tag.get() == tag).then_some(block)
    }

    /// The block that was found at `rip` last, if translation and mode are the same as then.
    #[inline(always)]
    pub fn known(&self, rip: u64, tag: u64) -> Option<(BlockId, &Block)> {
        let id = self.jumps[jump_index(rip)];
        Some((id, self.linked(id, rip, tag)?))
    }

    /// Remembers for [`Blocks::known`] that a block was found.
    pub fn remember(&mut self, id: BlockId, tag: u64) {
        if let Some(block) = self.blocks.get(id as usize) {
            block.tag.set(tag);
            self.jumps[jump_index(block.key.rip)] = id;
        }
    }

    /// Decodes a block from the `bytes` at `key`. `None` if not even one instruction ends in them.
    pub fn decode(&mut self, key: Key, cpu: &Cpu<World>, bytes: &[u8]) -> Option<BlockId> {
        let Self { ops, instructions, .. } = self;
        ops.clear();
        instructions.clear();
        let mut branches = 0;
        cpu.decode_run(bytes, |decoded, end| {
            let instruction = decoded.instruction();
            let mut op = select(instruction, key.size, end as u16);
            if let (Some(before), Some(decoded)) = (ops.last_mut(), instructions.last()) {
                fuse(before, decoded.instruction(), key.size, &op);
            }
            let next = match instruction.flow_control() {
                FlowControl::Next => (!opens(instruction)).then_some(end),
                FlowControl::ConditionalBranch => (branches < MAX_BRANCHES).then_some(end),
                FlowControl::UnconditionalBranch => op.follow_jump(key.rip, bytes.len()),
                _ => None,
            };
            branches += usize::from(instruction.flow_control() == FlowControl::ConditionalBranch);
            ops.push(op);
            instructions.push(decoded);
            next.filter(|_| instructions.len() < MAX_INSTRUCTIONS)
        });
        if instructions.is_empty() {
            return None;
        }
        let block = Block {
            key,
            tag: Cell::new(NEVER),
            ops: ops.drain(..).collect(),
            instructions: instructions.drain(..).collect(),
        };
        Some(self.insert(block))
    }

    fn insert(&mut self, block: Block) -> BlockId {
        let (set, gfn) = (block.key.set(), block.key.gpa.gfn());
        let way = self.index[set].iter().position(|place| *place == 0).unwrap_or_else(|| {
            self.turn = (self.turn + 1) % WAYS;
            let id = self.index[set][self.turn] - 1;
            self.remove(id);
            self.turn
        });
        let id = match self.free.pop() {
            Some(id) => {
                self.blocks[id as usize] = block;
                id
            }
            None => {
                self.blocks.push(block);
                self.blocks.len() as BlockId - 1
            }
        };
        self.index[set][way] = id + 1;
        self.frames.entry(gfn).or_default().push(id);
        id
    }

    /// Throws a block away, but for what its frame says of it.
    fn clear_place(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        let set = block.key.set();
        block.tag.set(NEVER);
        (block.ops, block.instructions) = (Box::default(), Box::default());
        for place in &mut self.index[set] {
            if *place == id + 1 {
                *place = 0;
            }
        }
        self.free.push(id);
    }

    fn remove(&mut self, id: BlockId) {
        let gfn = self.blocks[id as usize].key.gpa.gfn();
        if let Some(ids) = self.frames.get_mut(&gfn) {
            ids.retain(|present| *present != id);
        }
        self.clear_place(id);
    }

    /// Throws the blocks of a frame away.
    pub fn forget(&mut self, gfn: Gfn) {
        for id in self.frames.remove(&gfn).into_iter().flatten() {
            self.clear_place(id);
        }
    }

    /// Throws everything away.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.blocks.clear();
        self.free.clear();
        self.index.fill([0; WAYS]);
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
