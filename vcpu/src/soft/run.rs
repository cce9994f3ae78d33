//! Executing code: by the fast ops of one block after the other, or by the instruction core.

use super::blocks::{Block, BlockId, Key, MAX_BYTES};
use super::fast::mode::Mode;
use super::fast::{Go, Op, Went, settle_flags};
use super::finish::Finish;
use super::vcpu::SoftVcpu;
use super::world::World;
use crate::emulate::state::CodeSize;
use crate::emulate::{Cpu, Decoded, Step, flags};
use umbra_memslots::PAGE_SIZE;

/// Instructions that are executed by fast ops before there is a look at what others want.
const SLICE: u64 = 256;

impl SoftVcpu {
    /// Executes from CS:RIP on: some blocks, or one instruction.
    pub(super) fn execute(&mut self, once: bool) -> Step {
        if !once
            && self.fast
            && let Some(mode) = Mode::of(&self.cpu.state)
        {
            return self.execute_fast(mode);
        }
        // After the return from a fault only the first instruction has the resume flag.
        self.execute_block(once || self.cpu.state.flag(flags::RF))
    }

    /// Executes blocks by fast ops, for [`SLICE`] instructions or as long as nothing wants attention. The privilege level
    /// may change on the way, and what else of the mode leaves the code segment where it is.
    fn execute_fast(&mut self, mut mode: Mode) -> Step {
        let env = &mut self.cpu.env;
        env.tlb.set_rights(mode.rights);
        env.vectors = self.cpu.state.has_vectors();
        if mode.origin != self.origin {
            self.origin = mode.origin;
            env.tlb.begin_epoch();
        }
        env.moved = false;
        let limit = self.soon.min(self.executed.saturating_add(SLICE));
        loop {
            if let Some(step) = self.execute_chain(mode, limit) {
                settle_flags(&mut self.cpu);
                return step;
            }
            settle_flags(&mut self.cpu);
            mode = match Mode::of(&self.cpu.state) {
                Some(mode) => mode,
                None => return Step::Done { trap: false },
            };
            let Some(id) = self.find_block() else {
                self.cpu.env.now = self.executed;
                self.executed += 1;
                return self.cpu.step();
            };
            // What was found may have been found by filling the TLB, so the tag is that of now.
            self.blocks.remember(id, tag_of(&self.cpu, mode));
        }
    }

    /// Executes one block after the other. `None` if the block at RIP is not known.
    fn execute_chain(&mut self, mut mode: Mode, limit: u64) -> Option<Step> {
        let Self {
            cpu,
            blocks,
            executed,
            signals,
            ..
        } = self;
        let mut tag = tag_of(cpu, mode);
        let (_, mut block) = blocks.known(cpu.state.rip, tag)?;
        loop {
            let went = Op::run_all(cpu, &block.ops);
            let end = match went.go() {
                Go::Jump => {
                    *executed += (block.ops.len() - went.left()) as u64;
                    End::Branch(went)
                }
                Go::Cross => {
                    *executed += (block.ops.len() - went.left()) as u64;
                    End::Cross(Some(went))
                }
                _ => {
                    let end = run_on(block, cpu, mode, executed, went);
                    tag = tag_of(cpu, mode);
                    end
                }
            };
            let branch = match end {
                End::Leave(step) => return Some(step),
                _ if *executed >= limit => return Some(Step::Done { trap: false }),
                End::Branch(went) => Some(went),
                // The core's last instruction may be what an interrupt has waited for, or have sent one; and one may be let
                // in where the mode changes.
                End::Block | End::Cross(_) if signals.any() => return Some(Step::Done { trap: false }),
                End::Block => None,
                End::Cross(went) => {
                    let Some(other) = cross(cpu, mode) else {
                        return Some(Step::Done { trap: false });
                    };
                    mode = other;
                    tag = tag_of(cpu, mode);
                    went
                }
            };
            let rip = cpu.state.rip;
            if let Some(went) = branch
                && let Some(next) = blocks.linked(went.link(), rip, tag)
            {
                block = next;
                continue;
            }
            let (id, next) = blocks.known(rip, tag)?;
            if let Some(went) = branch
                && let Some(op) = block.ops.get((block.ops.len() - went.left()).wrapping_sub(1))
            {
                op.set_link(id);
            }
            block = next;
        }
    }

    /// Finds the block at CS:RIP, or decodes it. `None` if something is in the way: a single step finds out what is to be
    /// done about it.
    fn find_block(&mut self) -> Option<BlockId> {
        let Self { cpu, blocks, .. } = self;
        let at = cpu.code_address().ok()?;
        let access = cpu.fetch_access();
        let gpa = cpu.env.code_at(at, access).ok()??;
        let key = Key {
            gpa,
            rip: cpu.state.rip,
            size: cpu.state.code_size(),
        };
        let room = usize::try_from(cpu.state.code_room()).unwrap_or(usize::MAX);
        let id = match blocks.find(key) {
            Some(id) => id,
            None => {
                let to_page_end = (PAGE_SIZE - gpa.page_offset()) as usize;
                let mut bytes = [0; MAX_BYTES];
                let bytes = &mut bytes[..MAX_BYTES.min(to_page_end).min(room)];
                cpu.env.tlb.place(gpa, bytes.len())?.read(bytes);
                let id = blocks.decode(key, cpu, bytes)?;
                let length = blocks.get(id)?.bytes() as usize;
                // Another vCPU may have written to it before its writes were noticed.
                let watched = cpu.env.watch_code(gpa, length);
                let mut again = [0; MAX_BYTES];
                let again = &mut again[..length];
                let place = cpu.env.tlb.place(gpa, length);
                if watched.is_none() || place.map(|place| place.read(again)).is_none() || *again != bytes[..length] {
                    blocks.forget(gpa.gfn());
                    return None;
                }
                id
            }
        };
        let fits = blocks.get(id).is_some_and(|block| block.bytes() <= room as u64);
        fits.then_some(id)
    }

    /// Executes the block at CS:RIP, or its first instruction, by the instruction core.
    fn execute_block(&mut self, once: bool) -> Step {
        let id = self.find_block();
        let Self {
            cpu, blocks, executed, ..
        } = self;
        let Some(block) = id.and_then(|id| blocks.get(id)) else {
            cpu.env.now = *executed;
            *executed += 1;
            return cpu.step();
        };
        let count = if once { 1 } else { block.instructions.len() };
        cpu.env.moved = false;
        let (start, size) = (cpu.state.rip, cpu.state.code_size());
        // A change of mode ends a block, as it does for fast ops: nobody is to see by which the guest is executed.
        let mode = Mode::of(&cpu.state);
        let mut step = Step::Repeat;
        for (op, instruction) in block.ops.iter().zip(&block.instructions).take(count) {
            cpu.env.now = *executed;
            step = execute(cpu, instruction);
            *executed += 1;
            let goes_on = step == (Step::Done { trap: false }) && cpu.state.rip == at(start, op.end(), size);
            // A serialising instruction has what others did to code count from now on.
            if !goes_on || cpu.env.moved || Mode::of(&cpu.state) != mode || !cpu.env.is_current() {
                break;
            }
        }
        step
    }
}

/// What stands for translation and mode.
#[inline(always)]
fn tag_of(cpu: &Cpu<World>, mode: Mode) -> u64 {
    cpu.env.tlb.epoch() << 4 | mode.number()
}

/// The mode in which code goes on after an instruction that may have changed it. `None` if something is to be looked at
/// first.
#[inline(always)]
fn cross(cpu: &mut Cpu<World>, from: Mode) -> Option<Mode> {
    let mode = Mode::of(&cpu.state)?;
    // What was pushed may have changed code or a page table, and after a serialising instruction what others did to code
    // counts.
    if mode.origin != from.origin || cpu.env.moved || !cpu.env.is_current() {
        return None;
    }
    cpu.env.tlb.set_rights(mode.rights);
    Some(mode)
}

/// RIP so many bytes behind the beginning of a block.
#[inline]
fn at(start: u64, bytes: u64, size: CodeSize) -> u64 {
    let rip = start.wrapping_add(bytes);
    match size {
        CodeSize::Bits64 => rip,
        CodeSize::Bits32 => rip & 0xffff_ffff,
        CodeSize::Bits16 => rip & 0xffff,
    }
}

/// How a block ended.
enum End {
    /// At RIP, where another block may go on, by a branch that came so far.
    Branch(Went),
    /// Likewise, by anything else.
    Block,
    /// Likewise, perhaps in another mode; by an op that came so far, if it was one.
    Cross(Option<Went>),
    /// Something is to be looked at first.
    Leave(Step),
}

/// Ends a block whose ops did not end by a jump: has the instruction core execute what an op left alone, and what follows
/// by ops again.
#[inline(never)]
fn run_on(block: &Block, cpu: &mut Cpu<World>, mode: Mode, executed: &mut u64, first: Went) -> End {
    let ops = &*block.ops;
    let start = cpu.state.rip;
    let mut went = first;
    let mut begun = 0;
    loop {
        let count = ops.len() - went.left();
        *executed += (count - begun) as u64;
        begun = count;
        match went.go() {
            Go::Jump => return End::Branch(went),
            Go::End => {
                cpu.state.rip = at(start, block.bytes(), mode.size);
                return End::Block;
            }
            Go::Cross => return End::Cross(Some(went)),
            Go::Slow | Go::Repeat => {}
        }
        let index = count - 1;
        let before = match index.checked_sub(1).and_then(|index| ops.get(index)) {
            Some(op) => op.end(),
            None => 0,
        };
        cpu.state.rip = at(start, before, mode.size);
        if went.go() == Go::Repeat {
            return End::Leave(Step::Repeat);
        }
        settle_flags(cpu);
        // It is counted already.
        cpu.env.now = *executed - 1;
        let end = ops.get(index).map_or(0, Op::end);
        let step = match block.instructions.get(index) {
            Some(instruction) => execute(cpu, instruction),
            None => cpu.step(),
        };
        if let (Step::Pending(request), Some(instruction)) = (&step, block.instructions.get(index)) {
            // Modes of fast ops have no trap behind an instruction and no shadow that would have to end.
            cpu.env.finish = Finish::of(instruction.instruction(), at(start, end, mode.size), request);
        }
        // CR0.TS may be set now.
        cpu.env.vectors = cpu.state.has_vectors();
        let plain = step == (Step::Done { trap: false }) && !cpu.env.moved;
        // A serialising instruction has what others did to code count from now on.
        if !plain || !cpu.env.is_current() {
            return End::Leave(step);
        }
        if Mode::of(&cpu.state) != Some(mode) {
            return End::Cross(None);
        }
        // An op of this block may have changed them, and this instruction changed them back.
        cpu.env.tlb.set_rights(mode.rights);
        if cpu.state.rip != at(start, end, mode.size) || went.left() == 0 {
            return End::Block;
        }
        cpu.state.rip = start;
        went = Op::run_all(cpu, &ops[count..]);
    }
}

/// Has the instruction core execute an instruction. One that waits for an answer is counted when it has it.
fn execute(cpu: &mut Cpu<World>, instruction: &Decoded<World>) -> Step {
    let step = cpu.execute_decoded(instruction);
    if !matches!(step, Step::Pending(_)) {
        cpu.env.counts.core(instruction.instruction().mnemonic());
    }
    step
}
