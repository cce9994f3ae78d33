//! The instruction core: what each x86 instruction does to a CPU's state and to memory.
//!
//! One step fetches and decodes (iced-x86) the instruction at CS:RIP and executes it on a [`CpuState`], with memory and
//! the rest of the world behind two narrow traits ([`Memory`], [`Platform`]). An instruction either happens or leaves
//! no trace; a repeated string instruction leaves the state that the architecture describes. What a guest can cause is
//! a [`Step`], never a panic, and a step takes bounded time.
//!
//! Read in this order: [`state`], [`environment`], this file, `dispatch`, then any family of instructions: `arith`,
//! `logic`, `shift`, `muldiv`, `moves`, `bits`, `stack`, `string`, `control_flow`, `flag_ops`, `bcd`, `port_io`;
//! segmentation in `address`, `descriptor`, `segment`, `far`, [`interrupt`], `iret`, `syscall`, `task` and
//! `task_image`; the rest of the system side in `control_regs`, `breakpoint`, [`msr`], `system`, `xsave`, `x87`; XMM and
//! MMX registers in `sse`; numbers and their rounding in `float`.

mod address;
mod arith;
mod bcd;
mod bits;
mod breakpoint;
mod control_flow;
mod control_regs;
mod descriptor;
mod dispatch;
pub mod environment;
pub mod exception;
mod far;
mod fetch;
mod flag_ops;
pub mod flags;
pub(crate) mod float;
pub mod fpu;
pub mod fuzz;
pub mod interrupt;
mod iret;
mod logic;
mod moves;
pub mod msr;
mod muldiv;
mod operand;
mod port_io;
mod segment;
mod shift;
pub(crate) mod sse;
mod stack;
pub mod state;
pub(crate) mod string;
mod syscall;
mod system;
mod task;
mod task_image;
pub mod width;
mod x87;
mod xsave;

pub use environment::{Access, AccessKind, Memory, Platform, Request, Stop, Translation};
pub use exception::Exception;
pub(crate) use fetch::decode;
pub use interrupt::{Event, Source};
pub use state::CpuState;

use iced_x86::{Instruction, Mnemonic};

/// A CPU at work: its state and its world.
pub struct Cpu<E> {
    /// Registers and everything else inside.
    pub state: CpuState,
    /// Memory and everything else outside.
    pub env: E,
}

/// How a step ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The instruction is done and RIP is at the next one; or one iteration of a repeated string instruction is done,
    /// after which there is a trap.
    Done {
        /// An exception is due before anything else is executed: [`Cpu::due`] says which.
        trap: bool,
    },
    /// RIP is still there: a repeated string instruction did a part of its work, or an instruction can't begin yet.
    Repeat,
    /// `hlt`: done, waiting for an interrupt.
    Halt,
    /// The instruction raised an exception and changed nothing. Deliver it with [`Cpu::deliver`].
    Fault(Exception),
    /// Somebody outside has to make an access first; nothing changed. Step again when the answer is known.
    Pending(Request),
    /// The core does not know the instruction; nothing changed.
    Unsupported(Mnemonic),
    /// Shut down.
    TripleFault,
}

/// An instruction together with what executes it.
pub struct Decoded<E> {
    insn: Instruction,
    handler: Option<dispatch::Handler<E>>,
}

impl<E: Memory + Platform> Decoded<E> {
    /// Finds what executes `insn`.
    pub fn new(insn: Instruction) -> Self {
        let handler = dispatch::handler(&insn);
        Self { insn, handler }
    }

    /// The instruction.
    pub fn instruction(&self) -> &Instruction {
        &self.insn
    }
}

/// What a handler says about RIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flow {
    /// On to the next instruction.
    Next,
    /// Likewise, with interrupts held off for one instruction, and debug traps too unless they are let through.
    NextWithShadow { traps: bool },
    /// To this offset in the code segment.
    Jump(u64),
    /// Stay: there is more to do.
    Repeat,
    /// On to the next instruction and wait.
    Halt,
    /// RIP is set, and RFLAGS.RF is as it should be.
    Done,
}

impl<E: Memory + Platform> Cpu<E> {
    /// Puts a state into a world.
    pub fn new(state: CpuState, env: E) -> Self {
        Self { state, env }
    }

    /// Executes the instruction at CS:RIP.
    pub fn step(&mut self) -> Step {
        if let Some(breakpoint) = self.instruction_breakpoint() {
            return Step::Fault(breakpoint);
        }
        match self.fetch() {
            Ok(insn) => self.execute(&insn),
            Err(stop) => Self::stopped(stop, Mnemonic::INVALID),
        }
    }

    /// Executes a decoded instruction that lies at CS:RIP.
    pub fn execute(&mut self, insn: &Instruction) -> Step {
        self.execute_decoded(&Decoded::new(*insn))
    }

    /// As [`Cpu::execute`], for instructions that are executed more than once.
    #[inline]
    pub fn execute_decoded(&mut self, decoded: &Decoded<E>) -> Step {
        if self.state.has_breakpoints() {
            return self.execute_watched(decoded);
        }
        self.execute_plain(decoded)
    }

    #[inline]
    fn execute_plain(&mut self, decoded: &Decoded<E>) -> Step {
        let insn = &decoded.insn;
        let Some(handler) = decoded.handler else {
            return if insn.is_invalid() {
                Step::Fault(Exception::UD)
            } else {
                Step::Unsupported(insn.mnemonic())
            };
        };
        let single_step = self.state.flag(flags::TF);
        let next = self.next_rip(insn);
        let step = match handler(self, insn) {
            Ok(Flow::Next) => {
                self.state.rip = next;
                self.done(single_step)
            }
            Ok(Flow::NextWithShadow { traps }) => {
                self.state.rip = next;
                self.state.interrupt_shadow = true;
                self.state.rflags &= !flags::RF;
                return if traps {
                    self.done(single_step)
                } else {
                    Step::Done { trap: false }
                };
            }
            Ok(Flow::Jump(target)) => {
                self.state.rip = target;
                self.done(single_step)
            }
            Ok(Flow::Halt) => {
                self.state.rip = next;
                // A trap wakes it at once.
                match self.done(single_step) {
                    Step::Done { trap: false } => Step::Halt,
                    trap => trap,
                }
            }
            Ok(Flow::Done) => {
                self.state.interrupt_shadow = false;
                return Step::Done {
                    trap: self.state.pending_debug != 0 || self.state.late_fault.is_some(),
                };
            }
            Ok(Flow::Repeat) => {
                let step = self.done(single_step);
                if step == (Step::Done { trap: false }) {
                    return Step::Repeat;
                }
                // An instruction breakpoint here was met before the first iteration.
                self.state.rflags |= flags::RF;
                self.state.interrupt_shadow = false;
                return step;
            }
            Err(stop) => return Self::stopped(stop, insn.mnemonic()),
        };
        self.state.interrupt_shadow = false;
        self.state.rflags &= !flags::RF;
        step
    }

    /// The instruction is done; what it met on the way is reported now, and the single step if it began with TF.
    #[inline]
    fn done(&mut self, single_step: bool) -> Step {
        if single_step {
            self.state.pending_debug |= exception::debug_cause::SINGLE_STEP;
        }
        Step::Done {
            trap: self.state.pending_debug != 0,
        }
    }

    /// The exception that is to be delivered before the next instruction, if there is one: after a step that said so,
    /// and after each delivery.
    pub fn due(&mut self) -> Option<Exception> {
        self.state.late_fault.take().or_else(|| {
            let causes = std::mem::take(&mut self.state.pending_debug);
            (causes != 0).then(|| Exception::debug(causes))
        })
    }

    fn stopped(stop: Stop, mnemonic: Mnemonic) -> Step {
        match stop {
            Stop::Fault(exception) => Step::Fault(exception),
            Stop::Pending(request) => Step::Pending(request),
            Stop::Unsupported => Step::Unsupported(mnemonic),
            Stop::Contended | Stop::Frozen => Step::Repeat,
            Stop::TripleFault => Step::TripleFault,
        }
    }

    /// The offset of the next instruction.
    #[inline]
    fn next_rip(&self, insn: &Instruction) -> u64 {
        let next = self.state.rip.wrapping_add(insn.len() as u64);
        match self.state.code_size() {
            state::CodeSize::Bits64 => next,
            state::CodeSize::Bits32 => next & 0xffff_ffff,
            state::CodeSize::Bits16 => next & 0xffff,
        }
    }
}

/// Whether the core has an implementation of this instruction (of at least one form of its mnemonic).
pub fn knows(insn: &Instruction) -> bool {
    dispatch::known(insn)
}
