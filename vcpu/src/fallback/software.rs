//! [`InSoftware`]: a guest on the core, from the instruction at which its backend failed to where it is given back.
//!
//! The vCPU's state is read when the stretch begins (parts that cost system calls when an instruction first needs them) and
//! written when it ends. In between only the core has it, also while an instruction waits for a device. An instruction is
//! given back whole: what was answered to it, or an exception of it that isn't delivered yet, only the core knows, so that
//! another CPU or a change of slots in its way makes the vCPU come out and go on here.

use super::FallbackCounts;
use super::code::{CodeCache, CodeSet};
use super::end::{After, End, GoOn};
use super::guest::{Guest, describe, fetch};
use super::half_syscall;
use super::host::{EmulationHost, NotKnown};
use super::parts::Parts;
use super::policy::{Ask, Executed, HandBack, Stretch};
use super::tools::Tools;
use crate::backend::BackendError;
use crate::emulate::state::{RCX, cr4};
use crate::emulate::{Cpu, CpuState, Event, Exception, Request, Source, Step, Stop, flags};
use crate::paging;
use iced_x86::{Code, Mnemonic};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use umbra_memslots::SlotReader;

/// Exceptions delivered for one instruction, its own and what delivery leaves. A guest whose handler traps as it is entered,
/// for ever, loses those beyond.
const DELIVERIES: usize = 4;

/// A vCPU whose state the core has.
pub(super) struct InSoftware {
    pub state: CpuState,
    /// The state that the backend has.
    before: CpuState,
    /// What was read of both.
    loaded: Parts,
    /// The backend is to forget translations.
    flush: bool,
    /// It is to forget what it has derived from page tables.
    tables_changed: bool,
    stretch: Stretch,
    /// The instruction at which the backend failed is not executed yet.
    first: bool,
    /// An exception whose delivery has to be begun anew.
    event: Option<Exception>,
    /// The present instruction, or the one that raised `event`.
    insn: (Code, Mnemonic),
}

/// An instruction that has begun, as somebody outside changes the vCPU's state meanwhile.
pub(super) struct Begun {
    rip: u64,
    first: bool,
    event: Option<Exception>,
    insn: (Code, Mnemonic),
}

/// What is known of an instruction that was not fetched.
const NOT_FETCHED: (Code, Mnemonic) = (Code::INVALID, Mnemonic::INVALID);

/// Where the policy gets its answers.
struct Asker<'a, 'b, B> {
    env: &'a mut Guest<'b, B>,
    clock: &'a Instant,
}

impl<B: EmulationHost> Ask for Asker<'_, '_, B> {
    fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    fn interrupt_waits(&mut self) -> bool {
        self.env.interrupt_waits()
    }
}

impl InSoftware {
    /// Takes the state from the backend, which has just failed, or with `failed` not set has done an instruction.
    pub fn begin<B: EmulationHost>(
        backend: &mut B,
        slots: &mut SlotReader,
        tools: &mut Tools,
        stretch: Stretch,
        failed: bool,
    ) -> Result<Self, BackendError> {
        tools.replay.clear();
        let mut guest = Self::take(backend, slots, tools, stretch)?;
        guest.first = failed;
        Ok(guest)
    }

    /// The same for an instruction that has begun.
    pub fn again<B: EmulationHost>(
        backend: &mut B,
        slots: &mut SlotReader,
        tools: &mut Tools,
        stretch: Stretch,
        begun: Begun,
    ) -> Result<Self, BackendError> {
        let mut guest = Self::take(backend, slots, tools, stretch)?;
        guest.first = begun.first;
        // Who went elsewhere did not want the exception.
        if begun.rip == guest.state.rip {
            (guest.event, guest.insn) = (begun.event, begun.insn);
        }
        Ok(guest)
    }

    fn take<B: EmulationHost>(
        backend: &mut B,
        slots: &mut SlotReader,
        tools: &mut Tools,
        stretch: Stretch,
    ) -> Result<Self, BackendError> {
        tools.translations.clear();
        let mut state = CpuState::new(&backend.regs()?, &backend.system_regs()?);
        // Each instruction may meet a breakpoint or end in a trap, and protection keys look at PKRU.
        let loaded = Parts {
            debug: true,
            fpu: state.sys.cr4 & cr4::PKE != 0,
            ..Parts::default()
        };
        backend.load_parts(&mut state, loaded)?;
        state.interrupt_shadow = backend.interrupt_shadow()?;
        state.pdptes = match backend.pdptes() {
            Some(pdptes) => pdptes,
            None => paging::pdptes_of(&state.sys, describe(backend)?, &slots.snapshot()),
        };
        let stays = stretch.has_patience() && backend.may_stay_in_software()?;
        Ok(Self {
            before: state.clone(),
            state,
            loaded,
            flush: false,
            tables_changed: false,
            stretch: if stays { stretch } else { stretch.of_one() },
            first: false,
            event: None,
            insn: NOT_FETCHED,
        })
    }

    /// Whether the guest has TF set.
    pub fn is_traced(&self) -> bool {
        self.state.flag(flags::TF)
    }

    /// What is to be kept of the present instruction if the backend is given the state before it is done.
    pub fn begun(&self) -> Begun {
        Begun {
            rip: self.state.rip,
            first: self.first,
            event: self.event,
            insn: self.insn,
        }
    }

    /// Executes until something else is to be done. With `once` only the instruction that waited for an answer.
    pub fn run<B: EmulationHost>(
        &mut self,
        backend: &mut B,
        slots: &mut SlotReader,
        tools: &mut Tools,
        once: bool,
    ) -> Result<End, BackendError> {
        let Tools {
            replay,
            counts,
            kicked,
            translations,
            code,
            failing,
            clock,
        } = tools;
        let state = std::mem::take(&mut self.state);
        let snapshot = Arc::clone(slots.snapshot_arc());
        let mut cpu = Cpu::new(
            state.clone(),
            Guest::new(backend, snapshot, replay, translations, &state)?,
        );
        cpu.env.first = self.first;
        if self.first && cpu.env.leaves_syscalls_half_done() {
            half_syscall::put_back(&mut cpu);
        }
        let end = loop {
            if !self.first && cpu.state.cpl() == 3 {
                break End::GiveBack(GoOn::Run);
            }
            let executed = match self.step(&mut cpu, code, failing, counts)? {
                After::End(end) => break end,
                After::Executed(executed) => executed,
                After::Contended => {
                    let changed = !Arc::ptr_eq(slots.snapshot_arc(), cpu.env.slots());
                    if cpu.env.is_over() || changed || kicked.swap(false, Ordering::Acquire) {
                        break self.leave_unfinished(&cpu);
                    }
                    continue;
                }
            };
            let mut ask = Asker {
                env: &mut cpu.env,
                clock,
            };
            let given_back = self.stretch.executed(executed, &mut ask);
            if let Some(error) = cpu.env.take_error() {
                return Err(error);
            }
            if given_back == Some(HandBack::User) {
                break End::GiveBack(GoOn::Run);
            }
            if given_back.is_some() || once || cpu.env.is_over() {
                break End::GiveBack(GoOn::Step);
            }
            if self.stretch.looks() {
                let kicked = kicked.swap(false, Ordering::Acquire);
                if kicked || !Arc::ptr_eq(slots.snapshot_arc(), cpu.env.slots()) {
                    break End::GiveBack(GoOn::Step);
                }
            }
        };
        self.flush |= cpu.env.must_flush();
        self.tables_changed |= cpu.env.changed_tables();
        self.state = cpu.state;
        Ok(end)
    }

    fn step<B: EmulationHost>(
        &mut self,
        cpu: &mut Cpu<Guest<'_, B>>,
        code: &mut CodeCache,
        failing: &mut CodeSet,
        counts: &FallbackCounts,
    ) -> Result<After, BackendError> {
        cpu.env.rewind();
        if let Some(exception) = self.event.take() {
            let after = self.deliver(cpu, exception, failing.contains(self.insn.0));
            return Ok(self.note(cpu, after, failing, counts));
        }
        self.insn = NOT_FETCHED;
        let fetched = match cpu.instruction_breakpoint() {
            Some(breakpoint) => Err(breakpoint.into()),
            None => fetch(cpu, code),
        };
        let (insn, parts) = match fetched {
            Ok(known) => (known.insn, known.parts),
            Err(stop) => {
                let after = self.stopped(cpu, stop, false);
                return Ok(self.note(cpu, after, failing, counts));
            }
        };
        self.insn = (insn.code(), insn.mnemonic());
        // How interrupts wait for a vCPU, and wake it, is the backend's.
        if !self.first && insn.mnemonic() == Mnemonic::Hlt {
            return Ok(After::End(End::GiveBack(GoOn::Run)));
        }
        self.load(cpu, parts)?;
        let before = (cpu.state.rip, cpu.state.gpr[RCX]);
        let step = cpu.execute(&insn);
        if let Some(error) = cpu.env.take_error() {
            return Err(error);
        }
        if parts.fpu {
            let Cpu { state, env } = &mut *cpu;
            env.keys_changed(state);
        }
        let hit = failing.contains(insn.code());
        let after = match step {
            // Not even one element of a string.
            Step::Repeat if (cpu.state.rip, cpu.state.gpr[RCX]) == before => After::Contended,
            Step::Done { trap: false } | Step::Repeat => Self::executed(cpu, hit),
            Step::Done { trap: true } => match cpu.due() {
                Some(trap) => self.raise(cpu, trap, hit),
                None => Self::executed(cpu, hit),
            },
            Step::Fault(fault) => self.raise(cpu, fault, hit),
            Step::Pending(request) => After::End(self.wait(cpu, request)),
            Step::Halt => After::End(End::Halted),
            Step::Unsupported(_) if !self.first => After::End(End::GiveBack(GoOn::Step)),
            Step::Unsupported(_) => match cpu.env.not_known()? {
                NotKnown::Deliver(exception) => self.raise(cpu, exception, hit),
                NotKnown::RunAgain => After::End(End::RunAgain),
                NotKnown::GiveUp => After::End(End::Unknown),
            },
            Step::TripleFault => After::End(End::Shutdown),
        };
        Ok(self.note(cpu, after, failing, counts))
    }

    /// If the instruction is over, remembers what it was, and forgets what it was answered.
    fn note<B: EmulationHost>(
        &mut self,
        cpu: &mut Cpu<Guest<'_, B>>,
        after: After,
        failing: &mut CodeSet,
        counts: &FallbackCounts,
    ) -> After {
        let is_over = matches!(after, After::Executed(_) | After::End(End::Halted));
        if is_over {
            cpu.env.forget_answers();
        }
        if is_over && self.first {
            let (code, mnemonic) = self.insn;
            counts.failed_at(mnemonic);
            failing.insert(code);
            self.first = false;
            cpu.env.first = false;
        }
        after
    }

    fn executed<B: EmulationHost>(cpu: &Cpu<Guest<'_, B>>, failing: bool) -> After {
        let state = &cpu.state;
        After::Executed(Executed {
            failing,
            user: state.cpl() == 3,
            open: state.flag(flags::IF) && !state.interrupt_shadow,
        })
    }

    /// The instruction raised an exception: the guest's handler is entered.
    fn raise<B: EmulationHost>(&mut self, cpu: &mut Cpu<Guest<'_, B>>, exception: Exception, failing: bool) -> After {
        // What the instruction was answered is of no interest to the delivery, which may ask anew.
        cpu.env.forget_answers();
        self.deliver(cpu, exception, failing)
    }

    /// Delivers an exception, and what that leaves to be raised: another one, if the handler's stack is watched.
    fn deliver<B: EmulationHost>(&mut self, cpu: &mut Cpu<Guest<'_, B>>, exception: Exception, failing: bool) -> After {
        let mut next = Some(exception);
        for _ in 0..DELIVERIES {
            let Some(exception) = next else { break };
            let event = Event {
                exception,
                source: Source::Exception,
            };
            if let Err(stop) = cpu.deliver(event) {
                // The instruction may be done already, so that only the delivery can be begun anew.
                if matches!(stop, Stop::Pending(_) | Stop::Contended) {
                    self.event = Some(exception);
                }
                return self.stopped(cpu, stop, failing);
            }
            cpu.env.forget_answers();
            next = cpu.due();
        }
        Self::executed(cpu, failing)
    }

    fn stopped<B: EmulationHost>(&mut self, cpu: &mut Cpu<Guest<'_, B>>, stop: Stop, failing: bool) -> After {
        match stop {
            Stop::Fault(fault) => self.raise(cpu, fault, failing),
            Stop::Pending(request) => After::End(self.wait(cpu, request)),
            Stop::Contended | Stop::Frozen => After::Contended,
            Stop::TripleFault => After::End(End::Shutdown),
            Stop::Unsupported if !self.first => After::End(End::GiveBack(GoOn::Step)),
            Stop::Unsupported => After::End(End::Unknown),
        }
    }

    /// The present instruction can't be executed now. The backend may begin it again, unless it isn't at its beginning.
    fn leave_unfinished<B: EmulationHost>(&self, cpu: &Cpu<Guest<'_, B>>) -> End {
        if self.event.is_some() || cpu.env.has_answers() {
            End::Interrupted
        } else if cpu.state.cpl() == 3 {
            End::GiveBack(GoOn::Run)
        } else {
            End::GiveBack(GoOn::Step)
        }
    }

    /// An instruction needs a device. If that is the backend's own, and nothing was asked of others yet, the backend
    /// executes the instruction.
    fn wait<B: EmulationHost>(&self, cpu: &Cpu<Guest<'_, B>>, request: Request) -> End {
        if !self.first && !cpu.env.has_answers() && cpu.env.is_backends(&request, &cpu.state) {
            return End::GiveBack(GoOn::Step);
        }
        End::Wait(request)
    }

    /// Reads parts of the state that were not needed before.
    fn load<B: EmulationHost>(&mut self, cpu: &mut Cpu<Guest<'_, B>>, parts: Parts) -> Result<(), BackendError> {
        let missing = parts.without(self.loaded);
        if missing == Parts::default() {
            return Ok(());
        }
        cpu.env.load(&mut cpu.state, missing)?;
        if missing.msrs {
            self.before.msrs = cpu.state.msrs;
        }
        if missing.fpu {
            self.before.fpu.clone_from(&cpu.state.fpu);
        }
        self.loaded = self.loaded.with(missing);
        Ok(())
    }

    /// Gives the backend what has changed.
    pub fn give_back<B: EmulationHost>(&self, backend: &mut B, counts: &FallbackCounts) -> Result<(), BackendError> {
        let (before, after) = (&self.before, &self.state);
        backend.store_parts(before, after, self.loaded)?;
        if after.sys != before.sys {
            backend.set_system_regs(&after.sys)?;
        }
        backend.set_pdptes(after.pdptes);
        backend.set_regs(&after.regs())?;
        backend.set_interrupt_shadow(after.interrupt_shadow)?;
        if self.tables_changed {
            backend.forget_tables()?;
        } else if self.flush {
            backend.flush_translations()?;
        }
        if self.stretch.instructions() > 0 {
            counts.stretch(self.stretch.instructions(), self.tables_changed);
        }
        Ok(())
    }
}
