//! Carries a guest over instructions that its backend can't execute: [`Fallback`] is a backend around a backend that
//! has the instruction core execute them on the vCPU's own state, and then lets the backend go on.
//!
//! Guest memory is reached through the guest's own page tables ([`umbra_mmu::guest_walk`]) and the memory slots, devices
//! through the exits that the run loop answers anyway. Read in this order: [`host`] (what it needs of the backend),
//! `replay` (how an instruction waits for a device), `guest` (the core's world), this file, `half_syscall`.

mod guest;
mod half_syscall;
pub mod host;
mod parts;
pub(crate) mod replay;

pub(crate) use guest::describe;
pub use host::{EmulationHost, NotKnown};
pub use parts::Parts;

use crate::backend::{BackendError, Kick, ShadowTables, VcpuBackend};
use crate::emulate::state::cr4;
use crate::emulate::{Cpu, CpuState, Event, Exception, Request, Source, Step, Stop};
use crate::exit::{VmEntry, VmExit};
use crate::regs::{Regs, SystemRegs};
use guest::Guest;
use iced_x86::Mnemonic;
use replay::Replay;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use umbra_memslots::SlotReader;

/// A backend that executes in software what `B` can't.
pub struct Fallback<B> {
    backend: B,
    slots: SlotReader,
    replay: Replay,
    /// What the last exit asks for, if it was ours.
    asked: Option<(Request, VmExit)>,
    counts: FallbackCounts,
    /// See [`EmulationHost::leaves_syscalls_half_done`].
    half_syscalls: bool,
}

/// How often which instruction was executed in software. Shared by whoever reports it.
#[derive(Clone, Default, Debug)]
pub struct FallbackCounts(Arc<Mutex<BTreeMap<String, u64>>>);

impl FallbackCounts {
    /// By mnemonic (lower case), in alphabetical order.
    pub fn by_mnemonic(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, mnemonic: Mnemonic) {
        let name = format!("{mnemonic:?}").to_lowercase();
        *self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(name)
            .or_default() += 1;
    }
}

/// Exceptions delivered for one instruction, its own and what delivery leaves. A guest whose handler traps as it is entered,
/// for ever, loses those beyond.
const DELIVERIES: usize = 4;

/// How an attempt to execute one instruction ended.
enum Attempt {
    /// Executed; the backend can go on.
    Done,
    /// An exit is to be answered first.
    Exit(VmExit),
    /// The core doesn't know it either.
    Unknown,
}

impl<B: EmulationHost> Fallback<B> {
    /// Wraps a backend whose guest has the memory that `slots` shows.
    pub fn new(backend: B, slots: SlotReader) -> Self {
        Self {
            half_syscalls: backend.leaves_syscalls_half_done(),
            backend,
            slots,
            replay: Replay::default(),
            asked: None,
            counts: FallbackCounts::default(),
        }
    }

    /// The wrapped backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// What was executed in software so far; stays current.
    pub fn counts(&self) -> FallbackCounts {
        self.counts.clone()
    }

    /// Takes exits of the backend until one is for the run loop.
    fn go_on(&mut self, entry: VmEntry) -> Result<VmExit, BackendError> {
        let mut entry = entry;
        loop {
            let exit = self.backend.run(entry)?;
            if !matches!(exit, VmExit::EmulationFailure { .. }) {
                return Ok(exit);
            }
            self.replay.clear();
            match self.attempt()? {
                Attempt::Done => entry = VmEntry::Resume,
                Attempt::Exit(other) => return Ok(other),
                Attempt::Unknown => return Ok(exit),
            }
        }
    }

    /// Executes the instruction at the guest's RIP, or finds out what it waits for.
    fn attempt(&mut self) -> Result<Attempt, BackendError> {
        let mut before = CpuState::new(&self.backend.regs()?, &self.backend.system_regs()?);
        // Each instruction may meet a breakpoint or end in a trap.
        let debug = Parts {
            debug: true,
            ..Parts::default()
        };
        self.backend.load_parts(&mut before, debug)?;
        self.replay.rewind();
        let world = Guest::new(&mut self.backend, self.slots.snapshot(), &mut self.replay, &mut before)?;
        let mut cpu = Cpu::new(before.clone(), world);
        if self.half_syscalls {
            half_syscall::put_back(&mut cpu);
        }
        let fetched = match cpu.instruction_breakpoint() {
            Some(breakpoint) => Err(breakpoint.into()),
            None => cpu.fetch(),
        };
        let insn = match fetched {
            Ok(insn) => insn,
            Err(stop) => {
                let outcome = Outcome::of_stop(&mut cpu, stop);
                return self.conclude(outcome, &before, debug, Mnemonic::INVALID);
            }
        };
        let mut parts = Parts::of(&insn);
        // Protection keys look at PKRU.
        parts.fpu |= before.sys.cr4 & cr4::PKE != 0;
        cpu.env.load(&mut cpu.state, parts)?;
        parts.debug = true;
        before.clone_from(&cpu.state);
        let outcome = match cpu.execute(&insn) {
            Step::Done { trap: false } | Step::Repeat => Outcome::executed(&mut cpu),
            Step::Done { trap: true } => Outcome::due(&mut cpu),
            Step::Fault(fault) => Outcome::delivered(&mut cpu, fault),
            Step::Pending(request) => Outcome::Wait(request),
            Step::Halt => Outcome::Halted(Box::new(cpu.state.clone())),
            Step::Unsupported(_) => match cpu.env.not_known() {
                Ok(NotKnown::Deliver(exception)) => Outcome::delivered(&mut cpu, exception),
                Ok(NotKnown::RunAgain) => return Ok(Attempt::Done),
                Ok(NotKnown::GiveUp) => Outcome::Unknown,
                Err(error) => return Err(error),
            },
            Step::TripleFault => Outcome::Shutdown,
        };
        if let Some(error) = cpu.env.take_error() {
            return Err(error);
        }
        self.conclude(outcome, &before, parts, insn.mnemonic())
    }

    fn conclude(
        &mut self,
        outcome: Outcome,
        before: &CpuState,
        parts: Parts,
        mnemonic: Mnemonic,
    ) -> Result<Attempt, BackendError> {
        match outcome {
            Outcome::Executed { state, flush } => {
                self.store(before, &state, parts)?;
                if flush {
                    self.backend.flush_translations()?;
                }
                self.replay.clear();
                self.counts.add(mnemonic);
                Ok(Attempt::Done)
            }
            Outcome::Halted(state) => {
                self.store(before, &state, parts)?;
                self.replay.clear();
                self.counts.add(mnemonic);
                Ok(Attempt::Exit(VmExit::Hlt))
            }
            Outcome::Wait(request) => {
                let exit = match request {
                    Request::Mmio { gpa, size, op } => VmExit::Mmio { gpa, size, op },
                    Request::Pio { port, size, op } => VmExit::Pio { port, size, op },
                    Request::ReadMsr { index } => VmExit::ReadMsr { index },
                    Request::WriteMsr { index, value } => VmExit::WriteMsr { index, value },
                };
                self.asked = Some((request, exit.clone()));
                Ok(Attempt::Exit(exit))
            }
            Outcome::Shutdown => Ok(Attempt::Exit(VmExit::Shutdown)),
            Outcome::Unknown => Ok(Attempt::Unknown),
        }
    }

    /// Gives the backend what the instruction changed.
    fn store(&mut self, before: &CpuState, after: &CpuState, parts: Parts) -> Result<(), BackendError> {
        self.backend.store_parts(before, after, parts)?;
        if after.sys != before.sys {
            self.backend.set_system_regs(&after.sys)?;
        }
        self.backend.set_pdptes(after.pdptes);
        self.backend.set_regs(&after.regs())?;
        self.backend.set_interrupt_shadow(after.interrupt_shadow)
    }
}

/// How the core's work ended, the world let go of.
enum Outcome {
    Executed {
        state: Box<CpuState>,
        flush: bool,
    },
    /// Executed, and the CPU waits for an interrupt.
    Halted(Box<CpuState>),
    Wait(Request),
    Shutdown,
    Unknown,
}

impl Outcome {
    fn executed<B: EmulationHost>(cpu: &mut Cpu<Guest<'_, B>>) -> Self {
        Self::Executed {
            state: Box::new(cpu.state.clone()),
            flush: cpu.env.must_flush(),
        }
    }

    /// The instruction raised an exception: the guest's handler is entered.
    fn delivered<B: EmulationHost>(cpu: &mut Cpu<Guest<'_, B>>, fault: Exception) -> Self {
        let mut next = Some(fault);
        // Each delivery may leave another exception to be raised, if the handler's stack is watched.
        for _ in 0..DELIVERIES {
            let Some(exception) = next else { break };
            let event = Event {
                exception,
                source: Source::Exception,
            };
            if let Err(stop) = cpu.deliver(event) {
                return Self::of_stop(cpu, stop);
            }
            next = cpu.due();
        }
        Self::executed(cpu)
    }

    /// What the last step left to be raised is raised.
    fn due<B: EmulationHost>(cpu: &mut Cpu<Guest<'_, B>>) -> Self {
        match cpu.due() {
            Some(exception) => Self::delivered(cpu, exception),
            None => Self::executed(cpu),
        }
    }

    fn of_stop<B: EmulationHost>(cpu: &mut Cpu<Guest<'_, B>>, stop: Stop) -> Self {
        match stop {
            Stop::Fault(fault) => Self::delivered(cpu, fault),
            Stop::Pending(request) => Self::Wait(request),
            Stop::Contended | Stop::Frozen => Self::executed(cpu),
            Stop::TripleFault => Self::Shutdown,
            Stop::Unsupported => Self::Unknown,
        }
    }
}

impl<B: EmulationHost> VcpuBackend for Fallback<B> {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, BackendError> {
        let Some((request, exit)) = self.asked.take() else {
            return self.go_on(entry);
        };
        if let Err(expected) = exit.accepts(entry) {
            self.asked = Some((request, exit));
            return Err(BackendError::WrongEntry { entry, expected });
        }
        let (value, finish_only) = match entry {
            VmEntry::Value(value) => (Some(value), false),
            VmEntry::Complete(value) => (Some(value), true),
            VmEntry::Resume => (Some(0), false),
            VmEntry::Fault => (None, false),
        };
        self.replay.answer(request, value);
        match self.attempt()? {
            // The instruction is whole; the backend says that it was interrupted without running the guest.
            Attempt::Done if finish_only => self.go_on(VmEntry::Complete(0)),
            Attempt::Done => self.go_on(VmEntry::Resume),
            Attempt::Exit(exit) => Ok(exit),
            Attempt::Unknown => Ok(VmExit::EmulationFailure {
                bytes: Default::default(),
            }),
        }
    }

    fn regs(&mut self) -> Result<Regs, BackendError> {
        self.backend.regs()
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<(), BackendError> {
        self.backend.set_regs(regs)
    }

    fn system_regs(&mut self) -> Result<SystemRegs, BackendError> {
        self.backend.system_regs()
    }

    fn set_system_regs(&mut self, regs: &SystemRegs) -> Result<(), BackendError> {
        self.backend.set_system_regs(regs)
    }

    fn limits(&self) -> Option<&'static str> {
        self.backend.limits()
    }

    fn shadow_tables(&self) -> Option<ShadowTables> {
        self.backend.shadow_tables()
    }

    fn kick_handle(&self) -> Box<dyn Kick> {
        self.backend.kick_handle()
    }
}
