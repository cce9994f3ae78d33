//! [`SoftVcpu`]: the vCPU itself. It executes blocks, delivers exceptions, and comes out where the VMM is needed.

use super::apic::OwnApic;
use super::blocks::{Blocks, MAX_INSTRUCTIONS};
use super::code::Changed;
use super::counts::SoftCounts;
use super::signals::Signals;
use super::startup;
use super::turn::Turn;
use super::vm::Shared;
use super::walker::GUEST_CPU;
use super::world::World;
use crate::backend::{BackendError, Kick, ShadowTables, VcpuBackend};
use crate::emulate::state::RCX;
use crate::emulate::{Cpu, CpuState, Event, Exception, Request, Source, Step, Stop, exception, flags};
use crate::exit::{VmEntry, VmExit};
use crate::paging;
use crate::regs::{Regs, SystemRegs};
use crate::shadow_counts::ShadowCounts;
use crate::turns::Delivered;
use std::sync::Arc;
use umbra_devices::IntrSource;
use umbra_devices::models::fpu_error::FpuErrorLogic;
use umbra_devices::models::lapic::{CpuEvent, LocalApic};
use umbra_memslots::SlotReader;
use umbra_mmu::shadow::ShadowStats;

/// DR6 and DR7 after reset (SDM vol. 3A table 10-1).
const DR6_AT_RESET: u64 = 0xffff_0ff0;
const DR7_AT_RESET: u64 = 0x400;

/// A vCPU in software.
pub struct SoftVcpu {
    pub(super) cpu: Cpu<World>,
    pub(super) blocks: Blocks,
    /// Where the code segment began when fast ops were used last.
    pub(super) origin: u64,
    /// Whether fast ops are used.
    pub(super) fast: bool,
    pub(super) signals: Arc<Signals>,
    /// Where interrupts come from, if from anywhere.
    interrupts: Option<Arc<dyn IntrSource>>,
    /// It waits for an interrupt.
    halted: bool,
    /// It waits for a start-up interrupt.
    stopped: bool,
    /// What the last exit asks for, if it asks for something.
    asked: Option<(Request, VmExit)>,
    /// An exception that is being delivered.
    event: Option<Event>,
    /// Instructions executed, and exceptions delivered.
    pub(super) executed: u64,
    /// When to come back, in `executed`.
    until: u64,
    /// From when on a whole block may be too much.
    pub(super) soon: u64,
    shadow: ShadowCounts,
}

/// How far a vCPU came.
enum Progress {
    /// To the beginning of an instruction.
    Boundary,
    /// An access is to be made outside first.
    Wait(Request),
    /// To the end of the run.
    Exit(VmExit),
}

impl SoftVcpu {
    pub(super) fn new(shared: Arc<Shared>, slots: SlotReader) -> Self {
        let mut state = CpuState::new(&Regs::default(), &SystemRegs::default());
        (state.debug[6], state.debug[7]) = (DR6_AT_RESET, DR7_AT_RESET);
        let counted = shared.counted.clone();
        let mut world = World::new(shared, slots, &state);
        let signals = Arc::<Signals>::default();
        world.turn = counted.map(|clock| Turn::new(clock, Arc::clone(&signals)));
        Self {
            cpu: Cpu::new(state, world),
            blocks: Blocks::new(),
            origin: 0,
            fast: true,
            signals,
            interrupts: None,
            halted: false,
            stopped: false,
            asked: None,
            event: None,
            executed: 0,
            until: u64::MAX,
            soon: u64::MAX,
            shadow: ShadowCounts::default(),
        }
    }

    /// Instructions executed so far (of a repeated string instruction, each part of up to 4096 elements), and exceptions
    /// and interrupts delivered. How they are executed makes no difference to the number.
    pub fn executed(&self) -> u64 {
        self.executed
    }

    /// Comes out as [`VmExit::Interrupted`] once exactly `instructions` more are executed; or one more, where the last of
    /// them raises an exception.
    pub fn stop_after(&mut self, instructions: u64) {
        self.until = self.executed.saturating_add(instructions);
        self.soon = self.until.saturating_sub(MAX_INSTRUCTIONS as u64);
    }

    /// Whether the commonest instructions are executed by functions made for them, as they are unless this says otherwise,
    /// or all by the instruction core. The guest sees no difference.
    pub fn set_fast(&mut self, fast: bool) {
        self.fast = fast;
    }

    /// What the shadow MMU counted for this vCPU.
    pub fn shadow_stats(&self) -> &ShadowStats {
        self.cpu.env.walker.stats()
    }

    /// The whole state.
    pub fn state(&self) -> &CpuState {
        &self.cpu.state
    }

    /// The state, to be changed where address translation does not depend on it.
    pub(super) fn state_mut(&mut self) -> &mut CpuState {
        &mut self.cpu.state
    }

    /// Executes until something needs the VMM, as in [`SoftVcpu::go`].
    fn go_inside(&mut self, waiting: bool, finish_only: bool) -> VmExit {
        self.cpu.env.enter();
        let exit = self.go(waiting, finish_only);
        self.cpu.env.leave();
        self.cpu.env.now = self.executed;
        self.cpu.env.keep_clock();
        self.publish();
        exit
    }

    /// Executes until something needs the VMM. `waiting`: an instruction has its answer; `finish_only`: execute no other.
    fn go(&mut self, mut waiting: bool, finish_only: bool) -> VmExit {
        loop {
            if !waiting {
                // What was answered and then met another CPU in its way is begun again before anything else.
                waiting = !self.cpu.env.replay.is_empty();
                if self.signals.take_kick() || finish_only && !waiting || self.executed >= self.until {
                    return VmExit::Interrupted;
                }
                if !waiting && self.signals.interrupt() {
                    self.interrupt();
                }
                if !waiting && self.waits() {
                    if self.cpu.env.turn.is_some() {
                        return VmExit::Interrupted;
                    }
                    self.cpu.env.leave();
                    self.signals.wait(|| self.is_woken());
                    self.cpu.env.enter();
                    continue;
                }
                self.catch_up();
            }
            match self.advance(waiting) {
                Progress::Boundary => waiting = false,
                Progress::Exit(exit) => return exit,
                Progress::Wait(request) => {
                    // It is begun anew.
                    self.executed -= 1;
                    self.cpu.env.now = self.executed;
                    if let Some(value) = self.cpu.env.ask_apic(&request) {
                        waiting = self.answer(request, Some(value));
                        continue;
                    }
                    let exit = match request {
                        Request::Mmio { gpa, size, op } => VmExit::Mmio { gpa, size, op },
                        Request::Pio { port, size, op } => VmExit::Pio { port, size, op },
                        Request::ReadMsr { index } => VmExit::ReadMsr { index },
                        Request::WriteMsr { index, value } => VmExit::WriteMsr { index, value },
                    };
                    self.asked = Some((request, exit.clone()));
                    return exit;
                }
            }
        }
    }

    /// Tells what was counted.
    fn publish(&self) {
        self.cpu.env.counts.publish(self.executed);
        let walker = &self.cpu.env.walker;
        self.shadow.update(|run| {
            run.mmu = *walker.stats();
            run.searches = walker.devices.searches;
            run.times = walker.devices.times;
        });
        let mmio = matches!(self.asked, Some((Request::Mmio { .. }, _)));
        self.shadow.set_recognised(mmio && walker.devices.is_mmio);
    }

    /// What it executes, and what of it the instruction core; stays current.
    pub fn counts(&self) -> SoftCounts {
        self.cpu.env.counts.clone()
    }

    /// What the shadow MMU does for it, and which exits it has recognised as MMIO; stays current.
    pub fn shadow_counts(&self) -> ShadowCounts {
        self.shadow.clone()
    }

    /// Takes the time of each access to a device: two readings of the clock.
    pub fn time_devices(&mut self) {
        self.cpu.env.walker.devices.take_time();
    }

    /// Forgets what others made void.
    fn catch_up(&mut self) {
        match self.cpu.env.catch_up() {
            None => {}
            Some(Changed::Everything) => self.blocks.clear(),
            Some(Changed::Frames(frames)) => frames.into_iter().for_each(|gfn| self.blocks.forget(gfn)),
        }
    }

    /// Takes interrupts from `source` from now on; then `hlt` waits for them and is no exit.
    pub fn set_interrupts(&mut self, source: Arc<dyn IntrSource>) {
        let signals = Arc::clone(&self.signals);
        source.set_waker(Box::new(move || signals.raise()));
        self.interrupts = Some(source);
        // One may wait already.
        self.signals.raise();
    }

    /// Wires FERR# and IGNNE#: an x87 error while CR0.NE is clear goes there. Otherwise such errors are ignored.
    pub fn set_fpu_errors(&mut self, logic: Arc<FpuErrorLogic>) {
        self.cpu.env.fpu_errors = Some((logic, false));
    }

    /// Gives it this local APIC, one of `cpus`; then `hlt` waits for interrupts and is no exit. All but number 0 wait for
    /// their start-up interrupt.
    pub fn set_local_apic(&mut self, apic: &Arc<LocalApic>, cpus: u32) {
        self.set_interrupts(Arc::clone(apic) as _);
        self.cpu.env.apic = Some(OwnApic::new(Arc::clone(apic), cpus, Arc::clone(&self.signals)));
        if apic.id() != 0 {
            self.initialise();
        }
    }

    /// The state after INIT. The CPU that starts first starts again, others wait.
    fn initialise(&mut self) {
        self.cpu.state = startup::after_init(&self.cpu.state, DR6_AT_RESET, DR7_AT_RESET);
        let Cpu { state, env } = &mut self.cpu;
        env.walker.set_state(state, &mut env.tlb);
        env.replay.clear();
        if let Some(own) = &mut env.apic {
            own.in_nmi = false;
            self.stopped = own.apic.id() != 0;
        }
        self.event = None;
        self.halted = false;
    }

    /// Whether it executes nothing before something comes.
    pub(super) fn waits(&self) -> bool {
        self.halted || self.stopped
    }

    /// Whether there is something for which it waits, if it does.
    pub(super) fn is_woken(&self) -> bool {
        let open = self.cpu.state.flag(flags::IF) && !self.stopped;
        let nmi_open = self.takes_nmi();
        let own = self.cpu.env.apic.as_ref();
        open && self.signals.interrupt() || own.is_some_and(|own| own.apic.has_event(nmi_open))
    }

    pub(super) fn turn(&mut self) -> Option<&mut Turn> {
        self.cpu.env.turn.as_mut()
    }

    pub(super) fn signals(&self) -> &Signals {
        &self.signals
    }

    fn takes_nmi(&self) -> bool {
        let handling = self.cpu.env.apic.as_ref().is_some_and(|own| own.in_nmi);
        !handling && !self.stopped && self.event.is_none() && !self.cpu.state.interrupt_shadow
    }

    /// Takes NMIs, INITs and start-up interrupts.
    fn take_events(&mut self) {
        while let Some(own) = &self.cpu.env.apic
            && let Some(event) = own.apic.take_event(self.takes_nmi())
        {
            self.cpu.env.delivers(self.executed, || Delivered::Event(event));
            match event {
                CpuEvent::Init => self.initialise(),
                CpuEvent::StartUp(page) if self.stopped => {
                    startup::start_up(&mut self.cpu.state, page);
                    self.stopped = false;
                }
                CpuEvent::StartUp(_) => {}
                CpuEvent::Nmi => {
                    self.event = Some(Event {
                        exception: Exception::new(exception::NMI),
                        source: Source::External,
                    });
                    self.halted = false;
                    if let Some(own) = &mut self.cpu.env.apic {
                        own.in_nmi = true;
                    }
                }
            }
        }
    }

    /// Begins to deliver the interrupt that waits, if one does and the CPU takes it now.
    fn interrupt(&mut self) {
        // What comes from here on is looked at again.
        self.signals.lower();
        self.take_events();
        let open =
            !self.stopped && self.cpu.state.flag(flags::IF) && !self.cpu.state.interrupt_shadow && self.event.is_none();
        let pending = |source: &&Arc<dyn IntrSource>| source.is_pending();
        if let Some(source) = self.interrupts.as_ref().filter(|_| open).filter(pending) {
            let exception = Exception::new(source.acknowledge());
            let vector = exception.vector;
            self.cpu.env.delivers(self.executed, || Delivered::Interrupt(vector));
            self.event = Some(Event {
                exception,
                source: Source::External,
            });
            self.halted = false;
        }
        // What waits on is taken when the guest lets it in, of which nobody tells. (The end of an NMI's handler is told of.)
        let own = self.cpu.env.apic.as_ref();
        if self.interrupts.as_ref().is_some_and(|source| source.is_pending())
            || own.is_some_and(|own| !own.in_nmi && own.apic.has_event(true))
        {
            self.signals.leave_raised();
        }
    }

    /// One block, or with `once` one instruction, or the delivery of an exception.
    fn advance(&mut self, once: bool) -> Progress {
        self.cpu.env.replay.rewind();
        if let Some(event) = self.event {
            return self.deliver(event);
        }
        // Interrupts are taken between blocks: one that the shadow holds off comes right after this instruction.
        let before = (self.cpu.state.rip, self.cpu.state.gpr[RCX]);
        let step = self.execute(once || self.cpu.state.interrupt_shadow || self.executed >= self.soon);
        match step {
            Step::Pending(request) => return Progress::Wait(request),
            // Nothing was done, because of another CPU or a slot on its way out; or because of a pin.
            Step::Repeat
                if (self.cpu.state.rip, self.cpu.state.gpr[RCX]) == before
                    && !matches!(self.cpu.env.fpu_errors, Some((_, true))) => {}
            _ if once => self.cpu.env.replay.clear(),
            _ => {}
        }
        match step {
            Step::Done { trap: false } | Step::Repeat | Step::Pending(_) => Progress::Boundary,
            Step::Done { trap: true } => self.raise_due(),
            Step::Fault(fault) => self.raise(fault),
            Step::Unsupported(mnemonic) => {
                tracing::debug!(?mnemonic, rip = self.cpu.state.rip, "not implemented: #UD");
                self.cpu.env.counts.undefined(mnemonic);
                self.raise(Exception::UD)
            }
            Step::Halt if self.interrupts.is_some() => {
                self.halted = true;
                Progress::Boundary
            }
            Step::Halt => Progress::Exit(VmExit::Hlt),
            Step::TripleFault => Progress::Exit(VmExit::Shutdown),
        }
    }

    fn raise(&mut self, exception: Exception) -> Progress {
        // What the instruction was answered is of no interest to the delivery, which may ask anew.
        self.cpu.env.replay.clear();
        let event = Event {
            exception,
            source: Source::Exception,
        };
        self.event = Some(event);
        self.cpu.env.delivers(self.executed, || exception.into());
        self.deliver(event)
    }

    fn deliver(&mut self, event: Event) -> Progress {
        self.executed += 1;
        let delivered = self.cpu.deliver(event);
        match delivered {
            Err(Stop::Pending(request)) => return Progress::Wait(request),
            // It is tried again.
            Err(Stop::Contended) => return Progress::Boundary,
            _ => self.cpu.env.replay.clear(),
        }
        match delivered {
            Err(Stop::Unsupported) => {
                return Progress::Exit(VmExit::EmulationFailure {
                    bytes: Default::default(),
                });
            }
            _ => self.event = None,
        }
        if delivered == Err(Stop::TripleFault) {
            return Progress::Exit(VmExit::Shutdown);
        }
        self.raise_due()
    }

    /// What the last step or delivery left to be raised is delivered next. (Not at once: each delivery may leave another,
    /// if the handler's stack is watched, and nobody else would ever be heard.)
    fn raise_due(&mut self) -> Progress {
        if let Some(exception) = self.cpu.due() {
            self.cpu.env.replay.clear();
            self.event = Some(Event {
                exception,
                source: Source::Exception,
            });
        }
        Progress::Boundary
    }
}

impl VcpuBackend for SoftVcpu {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, BackendError> {
        let finish_only = matches!(entry, VmEntry::Complete(_));
        let Some((request, exit)) = self.asked.take() else {
            // No exit that ends here wants a value.
            VmExit::Interrupted
                .accepts(entry)
                .map_err(|expected| BackendError::WrongEntry { entry, expected })?;
            return Ok(self.go_inside(false, finish_only));
        };
        if let Err(expected) = exit.accepts(entry) {
            self.asked = Some((request, exit));
            return Err(BackendError::WrongEntry { entry, expected });
        }
        let waiting = self.answer(request, entry.answer());
        Ok(self.go_inside(waiting, finish_only))
    }

    fn regs(&mut self) -> Result<Regs, BackendError> {
        Ok(self.cpu.state.regs())
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<(), BackendError> {
        self.cpu.state.set_regs(regs);
        self.cpu.env.finish = None;
        if self.asked.is_none() {
            self.cpu.env.replay.clear();
        }
        self.event = None;
        self.halted = false;
        Ok(())
    }

    fn system_regs(&mut self) -> Result<SystemRegs, BackendError> {
        let Cpu { state, env } = &self.cpu;
        Ok(SystemRegs {
            apic_base: env.apic.as_ref().map_or(env.apic_base, |own| own.apic.base()),
            cr8: env.apic.as_ref().map_or(state.sys.cr8, |own| own.apic.cr8()),
            ..state.sys
        })
    }

    fn set_system_regs(&mut self, regs: &SystemRegs) -> Result<(), BackendError> {
        let Cpu { state, env } = &mut self.cpu;
        state.sys = *regs;
        env.finish = None;
        env.apic_base = regs.apic_base;
        if let Some(own) = &mut env.apic {
            own.apic.set_cr8(regs.cr8);
            if !own.set_base(regs.apic_base) {
                tracing::warn!(base = regs.apic_base, "the local APIC can't be set up like this");
            }
        }
        env.enter();
        self.catch_up();
        let Cpu { state, env } = &mut self.cpu;
        state.pdptes = paging::pdptes_of(regs, GUEST_CPU, &**env.tlb.slots());
        env.walker.set_state(state, &mut env.tlb);
        env.leave();
        Ok(())
    }

    fn limits(&self) -> Option<&'static str> {
        Some("the software CPU does not know every instruction, see docs/instructions.md")
    }

    fn shadow_tables(&self) -> Option<ShadowTables> {
        self.cpu.env.walker.tables()
    }

    fn kick_handle(&self) -> Box<dyn Kick> {
        Box::new(SoftKick(Arc::clone(&self.signals)))
    }
}

struct SoftKick(Arc<Signals>);

impl Kick for SoftKick {
    fn kick(&self) {
        self.0.kick();
    }
}
