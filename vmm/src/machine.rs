//! A machine: everything wired together, started, watched and taken apart again. The only module that names concrete
//! types of all crates.
//!
//! Read in this order: [`choice`], [`engine`], [`ram`], [`board`], [`chipset`], [`turns`] and [`effects`] (the parts), [`ending`] (how it can end), [`watch`] and
//! [`console_input`] (what the main thread does meanwhile), then here.
//!
//! A reset is a real one: the machine is dropped and another one built in its place, so that nothing of the old state can
//! survive.

pub mod board;
pub mod chipset;
pub mod choice;
pub mod console_input;
pub mod effects;
pub mod ending;
pub mod engine;
pub mod ram;
pub mod turns;
pub mod watch;

use crate::acpi;
use crate::app::explain;
use crate::boot::{BootError, BootState};
use crate::config::MachineConfig;
use crate::exit_status::ExitStatus;
use crate::layout::{LayoutError, MemoryLayout};
use crate::live::ConsolePane;
use crate::report::RunReport;
use crate::signals::Signals;
use crate::terminal::output::{ConsoleGate, ConsoleOutput};
use crate::terminal::raw::RawTerminal;
use crate::terminal::say;
use board::{Board, BoardError};
use effects::Layout;
use ending::{Ending, EndingBox};
use engine::{Engine, Host, MadeVcpu};
use ram::RamError;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use umbra_devices::bus::EventHandle;
use umbra_memslots::ram::GuestRam;
use umbra_memslots::{Memslots, SlotTable};
use umbra_mmu::direct::{DirectMmu, DirectOptions, SlotFollower};
use umbra_mmu::shadow::{CpuidResult, EntryFormat, HostParams, SpteLayout};
use umbra_vcpu::backend::BackendError;
use umbra_vcpu::control::FinalState;
use umbra_vcpu::handle::{ExitHandler, GuestEnd};
use umbra_vcpu::kvm::KvmError;
use umbra_vcpu::run_loop::{VcpuEnd, VcpuThreads};
use umbra_vcpu::shadow::ShadowVmError;
use umbra_vcpu::soft::SoftError;
use umbra_vcpu::stats::VcpuStats;
use umbra_vcpu::turns::SharedTrace;
use watch::{Sources, Watched};

/// How long vCPUs are given to come out of the guest. They take microseconds; this is for a host that hardly runs us.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a vCPU that doesn't come out is kicked: a kick that arrives just before it blocks in writing the console's
/// output doesn't wake it.
const KICK_AGAIN: Duration = Duration::from_millis(20);

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No machine can be laid out with this memory.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// No guest RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// Nothing to boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The software CPU can't be set up.
    #[error("cannot set up the software CPU: {0}")]
    Soft(#[from] SoftError),
    /// No machine for the shadow backend.
    #[error(transparent)]
    Shadow(#[from] ShadowVmError),
    /// More vCPUs than the shadow backend has.
    #[error("{cpus} CPUs: the shadow backend has one so far (`--cpus 1`)")]
    ShadowCpus {
        /// What was asked for.
        cpus: u32,
    },
    /// A vCPU can't be set up.
    #[error("cannot set up a vCPU: {0}")]
    Vcpu(#[from] BackendError),
    /// The devices don't fit together.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// MMIO can't be remembered.
    #[error("cannot make the MMIO tables: {0}")]
    Mmu(String),
    /// The host has no thread or file descriptor left.
    #[error("{what}: {source}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The host's reason.
        source: io::Error,
    },
}

impl MachineError {
    /// Whose mistake it is, as an exit status.
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Layout(_) | Self::Boot(_) | Self::ShadowCpus { .. } => ExitStatus::Usage,
            _ => ExitStatus::Host,
        }
    }
}

/// A machine with a guest in it.
pub struct Machine {
    page_tables: Arc<dyn Fn() -> u32 + Send + Sync>,
    vcpus: VcpuThreads,
    ram: GuestRam,
    mmu: Arc<DirectMmu>,
    board: Board,
    gate: ConsoleGate,
    endings: Arc<EndingBox>,
    vcpu_ended: EventHandle,
    started: Instant,
    cpus: u32,
    engine: Engine,
    paused: bool,
    show: Box<dyn Fn(&RunReport)>,
}

/// Where a guest's console goes.
#[derive(Clone, Debug)]
pub enum Console {
    /// To a file descriptor.
    To(BorrowedFd<'static>),
    /// To a pane of the live view.
    Pane(ConsolePane),
}

/// What puts a guest into memory.
pub type LoadGuest<'a> = dyn Fn(&Memslots, &MemoryLayout, Option<&acpi::Platform>) -> Result<BootState, BootError> + 'a;

/// What a machine is made for.
pub struct Purpose<'a> {
    /// Puts the guest into memory, with ACPI tables if the machine is one that they can describe.
    pub load: &'a LoadGuest<'a>,
    /// Add the devices that the built-in guest needs.
    pub test_devices: bool,
    /// Take the time of each exit: two readings of the clock.
    pub timed: bool,
    /// Where the guest's console goes.
    pub console: Console,
    /// A line for the user, shown as the guest starts.
    pub notice: Option<String>,
}

impl Machine {
    /// Builds a machine and starts its vCPUs. `show` is given the statistics when the user asks for them.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn start(
        host: &Host,
        config: &MachineConfig,
        purpose: &Purpose<'_>,
        show: impl Fn(&RunReport) + 'static,
    ) -> Result<Self, MachineError> {
        let descriptor = |source| MachineError::Host {
            what: "no file descriptor for an event",
            source,
        };
        let layout = MemoryLayout::plan(config.memory.bytes(), host.physical_bits())?;
        let engine = Engine::new(host, config)?;
        let mmu = Arc::new(direct_mmu(config.mmio_cache).map_err(MachineError::Mmu)?);
        let mut slots = SlotTable::new(engine.slot_limits());
        slots.add_observer(Box::new(SlotFollower::new(Arc::clone(&mmu))));
        for observer in engine.slot_observers() {
            slots.add_observer(observer);
        }
        let ram = GuestRam::from_table(slots);
        ram::map(&ram, &layout, &config.memory_backing)?;

        let platform = acpi::Platform {
            cpus: config.cpus,
            com1: true,
            rtc: true,
            virtio_mmio: Vec::new(),
        };
        let boot = (purpose.load)(&ram.snapshot(), &layout, engine.has_apics().then_some(&platform))?;
        tracing::info!("{boot}");

        let endings = Arc::new(EndingBox::new().map_err(descriptor)?);
        let gate = ConsoleGate::default();
        let sink = engine.irq_sink();
        let board = match &purpose.console {
            Console::Pane(pane) => Board::new(&layout, pane.clone(), sink, engine.clock())?,
            Console::To(fd) => {
                let endings = Arc::clone(&endings);
                let closed = move || endings.put(Ending::OutputClosed);
                Board::new(
                    &layout,
                    ConsoleOutput::new(*fd, gate.clone(), closed),
                    sink,
                    engine.clock(),
                )?
            }
        };
        if let Some(legacy) = engine.legacy() {
            board.add_legacy(legacy)?;
        }
        if let Some(ioapic) = engine.ioapic() {
            board.add_ioapic(ioapic)?;
        }
        if purpose.test_devices {
            board.add_test_devices()?;
        }

        let (mut free, mut in_turns) = (Vec::new(), Vec::new());
        for id in 0..config.cpus {
            let made = engine.vcpu(
                id,
                purpose.timed,
                || ram.reader(),
                |vcpu| {
                    if id == 0 {
                        vcpu.set_system_regs(&boot.system)?;
                        vcpu.set_regs(&boot.regs)?;
                    }
                    Ok(())
                },
            )?;
            let mut handler = ExitHandler::new(Arc::clone(&mmu), ram.reader(), &board.mmio, &board.ports);
            if purpose.timed {
                handler = handler.timed().counting_pages();
            }
            if let Some(counts) = made.fallback {
                handler = handler.with_fallback(counts);
            }
            if let Some(counts) = made.shadow {
                handler = handler.with_shadow(counts);
            }
            if let Some(counts) = made.software_cpu {
                handler = handler.with_software_cpu(counts);
            }
            match made.vcpu {
                MadeVcpu::Free(vcpu) => free.push((vcpu, handler)),
                MadeVcpu::InTurns(vcpu) => in_turns.push((*vcpu, handler)),
            }
        }
        let vcpu_ended = EventHandle::new().map_err(descriptor)?;
        let layout = Layout::new(
            ram.clone(),
            Arc::clone(&board.mmio),
            Arc::clone(&board.ports),
            vcpu_ended.clone(),
        )
        .with_ioapic(engine.ioapic().cloned());
        if let Some(notice) = &purpose.notice {
            say(format_args!("vmm: {notice}\n"));
        }
        let started = Instant::now();
        let vcpus = match (engine.life(), engine.chipset()) {
            (Some(life), Some(chipset)) => {
                let options = life.options(&chipset.legacy.pit, &chipset.apics, &board.serial);
                VcpuThreads::start_in_turns(in_turns, Arc::new(layout), options)
            }
            _ => VcpuThreads::start(free, Arc::new(layout)),
        };
        let vcpus = vcpus.map_err(|source| MachineError::Host {
            what: "cannot start a vCPU's thread",
            source,
        })?;
        Ok(Self {
            vcpus,
            ram,
            page_tables: engine.page_tables(&mmu),
            mmu,
            board,
            gate,
            endings,
            vcpu_ended,
            started,
            cpus: config.cpus,
            engine,
            paused: false,
            show: Box::new(show),
        })
    }

    /// Waits until the guest has ended, by itself or by somebody's wish, or until its time is up.
    /// Meanwhile `show` is given the statistics again and again.
    pub fn wait(
        &mut self,
        signals: &Signals,
        terminal: Option<&RawTerminal>,
        time: Option<Duration>,
        show: Option<&dyn Fn(&RunReport)>,
    ) -> Ending {
        let tick = show.map(|show| self.reporter(show));
        let endings = Arc::clone(&self.endings);
        let serial = Arc::clone(&self.board.serial);
        let (vcpu_ended, room) = (self.vcpu_ended.clone(), self.board.room.clone());
        let sources = Sources {
            signals,
            terminal,
            scripted: self.engine.life().is_some_and(turns::Life::is_scripted),
            endings: &endings,
            vcpu_ended: &vcpu_ended,
            serial: &serial,
            room: &room,
            deadline: time.map(|time| self.started + time),
            tick: tick.as_ref().map(|tick| tick as &dyn Fn()),
        };
        watch::until_ended(&sources, self).unwrap_or_else(|error| Ending::HostFailed {
            reason: error.to_string(),
        })
    }

    /// Asks the vCPUs for their numbers and gives them to `show`.
    fn reporter<'a>(&self, show: &'a dyn Fn(&RunReport)) -> impl Fn() + use<'a> {
        /// A vCPU that doesn't answer at once is blocked in a device; what it last said will do.
        const ANSWER: Duration = Duration::from_millis(100);
        let (control, page_tables, ram) = (
            Arc::clone(self.vcpus.control()),
            Arc::clone(&self.page_tables),
            self.ram.clone(),
        );
        let (backend, cpus, started) = (self.engine.backend(), self.cpus, self.started);
        let trace = self.engine.trace();
        move || {
            let per_vcpu = control.stats(ANSWER).unwrap_or_else(|_| control.last_stats());
            let report = report(backend, cpus, started.elapsed(), &per_vcpu);
            show(&with_trace(with_mmu(report, &*page_tables, &ram), trace.as_ref()));
        }
    }

    /// Stops the vCPUs and tells what the run did. The guest's memory is left as it was.
    pub fn stop(self) -> Stopped {
        let wall = self.started.elapsed();
        self.gate.close();
        let control = self.vcpus.control();
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            control.stop();
            if control.wait_all(KICK_AGAIN).is_ok() {
                break;
            }
        }
        let control = Arc::clone(control);
        let per_vcpu = match self.vcpus.finish(KICK_AGAIN) {
            Ok(per_vcpu) => per_vcpu,
            Err(error) => {
                tracing::warn!(%error, "left behind");
                Vec::new()
            }
        };
        Stopped {
            ram: self.ram.clone(),
            mid_line: self.gate.is_mid_line(),
            report: with_trace(
                with_mmu(
                    report(self.engine.backend(), self.cpus, wall, &per_vcpu),
                    &*self.page_tables,
                    &self.ram,
                ),
                self.engine.trace().as_ref(),
            ),
            vcpus: (0..self.cpus).map(|vcpu| control.take_state(vcpu)).collect(),
            mmu: self.mmu,
        }
    }
}

/// What is left of a machine.
pub struct Stopped {
    /// Its memory.
    pub ram: GuestRam,
    /// What it knew about MMIO.
    pub mmu: Arc<DirectMmu>,
    /// What the run did.
    pub report: RunReport,
    /// What each vCPU was like in the end, if it could say.
    pub vcpus: Vec<Option<FinalState>>,
    /// Whether the guest left the last line on its console unfinished.
    pub mid_line: bool,
}

impl Watched for Machine {
    fn vcpu_ended(&mut self) {
        let control = self.vcpus.control();
        let end = control
            .wait_first(Some(Duration::ZERO))
            .and_then(|vcpu| control.take_end(vcpu));
        if let Some(end) = end {
            self.endings.put(ending_of(end));
        }
    }

    fn show_stats(&mut self) {
        let control = self.vcpus.control();
        let per_vcpu = control.stats(PATIENCE).unwrap_or_else(|_| control.last_stats());
        let report = report(self.engine.backend(), self.cpus, self.started.elapsed(), &per_vcpu);
        let report = with_mmu(report, &*self.page_tables, &self.ram);
        (self.show)(&with_trace(report, self.engine.trace().as_ref()));
    }

    fn toggle_pause(&mut self) -> bool {
        let control = self.vcpus.control();
        if self.paused {
            control.resume();
        }
        self.paused = !self.paused && control.pause(PATIENCE).is_ok();
        self.paused
    }
}

fn ending_of(end: VcpuEnd) -> Ending {
    let died = |status, report: String| Ending::Died { status, report };
    match end {
        VcpuEnd::PowerOff => Ending::PowerOff,
        VcpuEnd::Reset => Ending::Reset,
        VcpuEnd::Exit { code } => Ending::DebugExit(code),
        VcpuEnd::Failed(report) => {
            let status = match report.cause {
                GuestEnd::Shutdown => ExitStatus::TripleFault,
                GuestEnd::Crash => ExitStatus::GuestCrash,
                _ => ExitStatus::CannotContinue,
            };
            died(status, report.to_string())
        }
        end @ VcpuEnd::Halted => died(ExitStatus::CannotContinue, end.to_string()),
        VcpuEnd::Host(error) => Ending::HostFailed {
            reason: explain(&error),
        },
        VcpuEnd::Panicked(_) => Ending::Bug,
        // The first one to end was not told to.
        VcpuEnd::Stopped => Ending::Quit,
    }
}

fn report(backend: &'static str, cpus: u32, wall: Duration, per_vcpu: &[VcpuStats]) -> RunReport {
    let mut stats = VcpuStats::default();
    for vcpu in per_vcpu {
        stats.add(vcpu);
    }
    RunReport {
        backend,
        vcpus: cpus,
        wall,
        resets: 0,
        stats,
        ..RunReport::default()
    }
}

/// The same with what the MMU and the memory slots say.
fn with_mmu(report: RunReport, page_tables: &dyn Fn() -> u32, ram: &GuestRam) -> RunReport {
    RunReport {
        slot_generation: ram.snapshot().generation().get(),
        page_tables: page_tables(),
        ..report
    }
}

/// The same with what there is to say of a deterministic run.
fn with_trace(report: RunReport, trace: Option<&SharedTrace>) -> RunReport {
    RunReport {
        deterministic: trace.map(SharedTrace::summary),
        ..report
    }
}

/// What the host's CPU says about itself.
pub(crate) fn cpuid(leaf: u32) -> CpuidResult {
    let core::arch::x86_64::CpuidResult { eax, ebx, ecx, edx } = core::arch::x86_64::__cpuid(leaf);
    CpuidResult { eax, ebx, ecx, edx }
}

/// Physical address bits that a guest can have.
fn physical_bits() -> u8 {
    let bits = HostParams::from_cpuid(EntryFormat::X86, cpuid).physical_bits;
    u8::try_from(bits.clamp(32, 52)).unwrap_or(52)
}

/// The tables that remember MMIO. Nobody but us walks them, so on a host whose address bits leave no room for MMIO SPTEs
/// of the x86 format, those of the EPT format do as well.
fn direct_mmu(mmio_cache: bool) -> Result<DirectMmu, String> {
    let layout = |host: HostParams| SpteLayout::new(host.with_mmio_caching(mmio_cache));
    let host = HostParams::from_cpuid(EntryFormat::X86, cpuid);
    let layout = match layout(host) {
        Ok(found) if found.caches_mmio() || !mmio_cache => found,
        _ => layout(HostParams::ept(48)).map_err(|error| explain(&error))?,
    };
    DirectMmu::new(DirectOptions::new(layout)).map_err(|error| explain(&error))
}
