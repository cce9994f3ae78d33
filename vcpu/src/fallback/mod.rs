//! Carries a guest over instructions that its backend can't execute: [`Fallback`] is a backend around a backend that
//! has the instruction core execute them on the vCPU's own state, and then lets the backend go on.
//!
//! Guest memory is reached through the guest's own page tables ([`umbra_mmu::guest_walk`]) and the memory slots, devices
//! through the exits that the run loop answers anyway. If failures come thick, the guest stays in software for a while
//! ([`policy`]). Read in this order: [`host`] (what it needs of the backend), [`policy`], `replay` (how an instruction waits
//! for a device), `code` and `translations` (what is remembered), `tables`, `exchange`, `guest` and `platform` (the core's
//! world), `tools` and `end`, `software` (a stretch from its beginning to its end), this file, `half_syscall`.

mod code;
mod counts;
mod end;
mod exchange;
mod guest;
mod half_syscall;
pub mod host;
mod parts;
mod platform;
pub mod policy;
pub(crate) mod replay;
mod software;
mod tables;
#[cfg(test)]
mod tests;
mod tools;
mod translations;

pub use counts::{FallbackCounts, Stretches};
pub(crate) use guest::describe;
pub use host::{EmulationHost, NotKnown};
pub use parts::Parts;

use crate::backend::{BackendError, Kick, ShadowTables, VcpuBackend};
use crate::emulate::{Request, flags};
use crate::exit::{VmEntry, VmExit};
use crate::regs::{Regs, SystemRegs};
use end::{End, GoOn};
use policy::Policy;
use software::{Begun, InSoftware};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tools::Tools;
use umbra_memslots::SlotReader;

/// A backend that executes in software what `B` can't.
pub struct Fallback<B> {
    backend: B,
    slots: SlotReader,
    policy: Policy,
    /// See [`EmulationHost::emulates_kernel_mode`].
    emulates: bool,
    /// The backend comes out after one instruction, as an emulator is given no more at a time.
    steps: bool,
    has_run: bool,
    tools: Tools,
    /// What the last exit asks for, if it was ours.
    asked: Option<(Request, VmExit)>,
    /// The vCPU's state while the core has it between two runs, in the middle of an instruction: it waits for an answer to
    /// `asked`, or has been interrupted.
    held: Option<Box<InSoftware>>,
    /// What is left of `held` if the backend was given the state meanwhile.
    begun: Option<Begun>,
}

/// How the core's work ended.
enum Attempt {
    /// The backend can go on.
    Done,
    /// An exit is to be answered first.
    Exit(VmExit),
    /// The core doesn't know the instruction either.
    Unknown,
}

impl<B: EmulationHost> Fallback<B> {
    /// Wraps a backend whose guest has the memory that `slots` shows.
    pub fn new(backend: B, slots: SlotReader) -> Self {
        Self {
            emulates: backend.emulates_kernel_mode(),
            steps: false,
            has_run: false,
            policy: if backend.emulates_kernel_mode() {
                Policy::of_emulator()
            } else {
                Policy::default()
            },
            backend,
            slots,
            tools: Tools::new(),
            asked: None,
            held: None,
            begun: None,
        }
    }

    /// The wrapped backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// What was executed in software so far; stays current.
    pub fn counts(&self) -> FallbackCounts {
        self.tools.counts.clone()
    }

    /// Takes exits of the backend until one is for the run loop.
    fn go_on(&mut self, entry: VmEntry) -> Result<VmExit, BackendError> {
        let mut entry = entry;
        if !self.has_run {
            self.has_run = true;
            self.set_steps(self.emulates)?;
        }
        loop {
            let exit = self.backend.run(entry)?;
            let failed = matches!(exit, VmExit::EmulationFailure { .. });
            let stepped = self.steps && matches!(exit, VmExit::Debug { .. });
            if !failed && !stepped {
                return Ok(exit);
            }
            let stretch = self.policy.failed(self.tools.now());
            let guest = InSoftware::begin(&mut self.backend, &mut self.slots, &mut self.tools, stretch, failed)?;
            match self.execute(Box::new(guest), false)? {
                Attempt::Done => entry = VmEntry::Resume,
                Attempt::Exit(other) => return Ok(other),
                Attempt::Unknown => return Ok(exit),
            }
        }
    }

    /// Has the core execute the guest, or with `once` the one instruction at which it stands.
    fn execute(&mut self, mut guest: Box<InSoftware>, once: bool) -> Result<Attempt, BackendError> {
        let end = guest.run(&mut self.backend, &mut self.slots, &mut self.tools, once)?;
        let exit = match end {
            End::Unknown => return Ok(Attempt::Unknown),
            End::Wait(request) => {
                let exit = match request {
                    Request::Mmio { gpa, size, op } => VmExit::Mmio { gpa, size, op },
                    Request::Pio { port, size, op } => VmExit::Pio { port, size, op },
                    Request::ReadMsr { index } => VmExit::ReadMsr { index },
                    Request::WriteMsr { index, value } => VmExit::WriteMsr { index, value },
                };
                self.asked = Some((request, exit.clone()));
                self.held = Some(guest);
                return Ok(Attempt::Exit(exit));
            }
            End::Interrupted => {
                self.held = Some(guest);
                return Ok(Attempt::Exit(VmExit::Interrupted));
            }
            End::RunAgain => None,
            End::GiveBack(with) => {
                self.give_back(&guest)?;
                self.set_steps(self.emulates && with == GoOn::Step && !guest.is_traced())?;
                None
            }
            End::Halted => {
                self.give_back(&guest)?;
                Some(VmExit::Hlt)
            }
            End::Shutdown => {
                self.give_back(&guest)?;
                Some(VmExit::Shutdown)
            }
        };
        self.policy.given_back(self.tools.now());
        Ok(exit.map_or(Attempt::Done, Attempt::Exit))
    }

    fn set_steps(&mut self, steps: bool) -> Result<(), BackendError> {
        // Again each time: the kernel notes where a step begins.
        if steps || self.steps {
            self.backend.single_step(steps)?;
            self.steps = steps;
        }
        Ok(())
    }

    /// The vCPU as the core has it, taken away from it; if it has it not, as the backend has it.
    fn take_guest(&mut self) -> Result<Box<InSoftware>, BackendError> {
        if let Some(guest) = self.held.take() {
            return Ok(guest);
        }
        // Somebody has changed registers meanwhile.
        let stretch = self.policy.failed(self.tools.now());
        let (backend, slots, tools) = (&mut self.backend, &mut self.slots, &mut self.tools);
        let guest = match self.begun.take() {
            Some(begun) => InSoftware::again(backend, slots, tools, stretch, begun),
            None => InSoftware::begin(backend, slots, tools, stretch, false),
        };
        guest.map(Box::new)
    }

    /// Has the backend have the state as the core left it. A guest that traces itself is not stepped meanwhile: TF would be
    /// taken for the backend's own.
    fn give_back(&mut self, guest: &InSoftware) -> Result<(), BackendError> {
        if guest.is_traced() {
            self.set_steps(false)?;
        }
        guest.give_back(&mut self.backend, &self.tools.counts)
    }

    /// Has the backend have the state, if the core has it: somebody is going to change it.
    fn release(&mut self) -> Result<(), BackendError> {
        let Some(guest) = self.held.take() else {
            return Ok(());
        };
        self.begun = Some(guest.begun());
        self.give_back(&guest)
    }
}

impl<B: EmulationHost> VcpuBackend for Fallback<B> {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, BackendError> {
        let finish_only = matches!(entry, VmEntry::Complete(_));
        match self.asked.take() {
            Some((request, exit)) => {
                if let Err(expected) = exit.accepts(entry) {
                    self.asked = Some((request, exit));
                    return Err(BackendError::WrongEntry { entry, expected });
                }
                self.tools.replay.answer(request, entry.answer());
            }
            None if self.held.is_some() || self.begun.is_some() => VmExit::Interrupted
                .accepts(entry)
                .map_err(|expected| BackendError::WrongEntry { entry, expected })?,
            None => return self.go_on(entry),
        }
        let guest = self.take_guest()?;
        match self.execute(guest, finish_only)? {
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
        match &self.held {
            Some(guest) => Ok(guest.state.regs()),
            None => self.backend.regs(),
        }
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<(), BackendError> {
        self.release()?;
        if regs.rflags & flags::TF != 0 {
            self.set_steps(false)?;
        }
        self.backend.set_regs(regs)
    }

    fn system_regs(&mut self) -> Result<SystemRegs, BackendError> {
        match &self.held {
            Some(guest) => Ok(guest.state.sys),
            None => self.backend.system_regs(),
        }
    }

    fn set_system_regs(&mut self, regs: &SystemRegs) -> Result<(), BackendError> {
        self.release()?;
        self.backend.set_system_regs(regs)
    }

    fn limits(&self) -> Option<&'static str> {
        self.backend.limits()
    }

    fn shadow_tables(&self) -> Option<ShadowTables> {
        self.backend.shadow_tables()
    }

    fn kick_handle(&self) -> Box<dyn Kick> {
        Box::new(FallbackKick {
            kicked: Arc::clone(&self.tools.kicked),
            backend: self.backend.kick_handle(),
        })
    }
}

/// Ends a stretch in software, and the run of the backend that follows it or is going on: only that is seen outside.
struct FallbackKick {
    kicked: Arc<AtomicBool>,
    backend: Box<dyn Kick>,
}

impl Kick for FallbackKick {
    fn kick(&self) {
        // First the backend's: when the core sees the mark, the backend's next run comes out at once.
        self.backend.kick();
        self.kicked.store(true, Ordering::Release);
    }
}
