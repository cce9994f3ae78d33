//! The loop of one vCPU, and the threads that run it.

use crate::backend::{BackendError, VcpuBackend};
use crate::control::{Control, FinalState, NotAcknowledged};
use crate::exit::{VmEntry, VmExit};
use crate::handle::{ExitHandler, GuestEnd, Next};
use crate::platform::Platform;
use crate::report::Report;
use crate::stats::VcpuStats;
use crate::turns::{CountedVcpu, TurnOptions, Turns};
use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use umbra_devices::Effect;
use umbra_mmu::MmuObserver;

/// How a vCPU ended.
#[derive(Debug)]
pub enum VcpuEnd {
    /// It was told to, or another vCPU ended first.
    Stopped,
    /// The guest powered the machine off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// The guest wrote to the debug-exit device.
    Exit {
        /// The value.
        code: u32,
    },
    /// The guest halted for ever: no interrupt controller could wake it.
    Halted,
    /// The guest can't go on; the report says why and what to try.
    Failed(Box<Report>),
    /// The host failed.
    Host(BackendError),
    /// A device or this program has a bug: its panic message.
    Panicked(String),
}

impl fmt::Display for VcpuEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => write!(f, "stopped"),
            Self::PowerOff => write!(f, "power off"),
            Self::Reset => write!(f, "reset"),
            Self::Exit { code } => write!(f, "debug exit with {code:#x}"),
            Self::Halted => write!(f, "halted with nothing to wake it"),
            Self::Failed(report) => report.fmt(f),
            Self::Host(error) => error.fmt(f),
            Self::Panicked(message) => write!(f, "internal error: {message}"),
        }
    }
}

/// Runs one vCPU until the guest ends, the host fails or `control` says stop. On the calling thread.
pub fn run_vcpu<B: VcpuBackend, O: MmuObserver>(
    id: u32,
    vcpu: &mut B,
    handler: &mut ExitHandler<O>,
    platform: &dyn Platform,
    control: &Control,
) -> VcpuEnd {
    let mut entry = VmEntry::Resume;
    loop {
        let exit = match vcpu.run(entry) {
            Ok(exit) => exit,
            Err(error) => return VcpuEnd::Host(error),
        };
        entry = match reply(id, &exit, vcpu, handler, platform) {
            Reply::Enter(entry) => entry,
            Reply::Poll if control.answer(id, || handler.stats()) => VmEntry::Resume,
            Reply::Poll => return VcpuEnd::Stopped,
            Reply::End(end) => return end,
        };
    }
}

/// What follows an exit.
pub(crate) enum Reply {
    /// Enter the guest again.
    Enter(VmEntry),
    /// See what is wanted from outside, then enter with [`VmEntry::Resume`].
    Poll,
    /// It is the end.
    End(VcpuEnd),
}

/// Answers an exit, and has the machine do what belongs to it.
#[inline]
pub(crate) fn reply<B: VcpuBackend, O: MmuObserver>(
    id: u32,
    exit: &VmExit,
    vcpu: &mut B,
    handler: &mut ExitHandler<O>,
    platform: &dyn Platform,
) -> Reply {
    match handler.handle(exit) {
        Next::Enter(entry) => Reply::Enter(entry),
        Next::Poll => Reply::Poll,
        Next::Apply(entry, effect) => match apply(id, *effect, platform) {
            None => Reply::Enter(entry),
            Some(end) => Reply::End(end),
        },
        Next::EndOfInterrupt(vector) => {
            platform.end_of_interrupt(vector);
            Reply::Enter(VmEntry::Resume)
        }
        Next::End(end) => Reply::End(conclude(id, vcpu, handler, end)),
    }
}

/// Carries out an effect; says so if it is the end.
fn apply(id: u32, effect: Effect, platform: &dyn Platform) -> Option<VcpuEnd> {
    match effect {
        Effect::PowerOff => return Some(VcpuEnd::PowerOff),
        Effect::Reset => return Some(VcpuEnd::Reset),
        Effect::Exit { code } => return Some(VcpuEnd::Exit { code }),
        Effect::All(effects) => return effects.into_iter().find_map(|effect| apply(id, effect, platform)),
        change => platform.apply(id, change),
    }
    None
}

fn conclude<B: VcpuBackend, O: MmuObserver>(
    id: u32,
    vcpu: &mut B,
    handler: &mut ExitHandler<O>,
    end: GuestEnd,
) -> VcpuEnd {
    match end {
        GuestEnd::PowerOff => VcpuEnd::PowerOff,
        GuestEnd::Reset => VcpuEnd::Reset,
        GuestEnd::Exit { code } => VcpuEnd::Exit { code },
        GuestEnd::Halted => VcpuEnd::Halted,
        failure => VcpuEnd::Failed(Box::new(Report::capture(id, vcpu, handler.slots(), failure))),
    }
}

/// The vCPUs of a machine, each on its thread or all on one. Dropping it stops them.
pub struct VcpuThreads {
    control: Arc<Control>,
    threads: Vec<JoinHandle<()>>,
}

impl VcpuThreads {
    /// Starts one thread per vCPU, named `vcpu0`, `vcpu1`, …
    ///
    /// # Errors
    /// The host has no more threads; those that were started have been stopped.
    pub fn start<B: VcpuBackend + 'static, O: MmuObserver + Send + 'static>(
        vcpus: Vec<(B, ExitHandler<O>)>,
        platform: Arc<dyn Platform>,
    ) -> io::Result<Self> {
        let control = Arc::new(Control::new(vcpus.iter().map(|(vcpu, _)| vcpu.kick_handle())));
        let mut threads = Self {
            control,
            threads: Vec::with_capacity(vcpus.len()),
        };
        for (id, (vcpu, handler)) in (0..).zip(vcpus) {
            let control = Arc::clone(&threads.control);
            let platform = Arc::clone(&platform);
            let run = move || run_to_the_end(id, vcpu, handler, &*platform, &control);
            threads
                .threads
                .push(thread::Builder::new().name(format!("vcpu{id}")).spawn(run)?);
        }
        Ok(threads)
    }

    /// Starts one thread for all, named `vcpus`, on which they take turns ([`crate::turns`]).
    ///
    /// # Errors
    /// The host has no more threads.
    pub fn start_in_turns<V: CountedVcpu + 'static, O: MmuObserver + Send + 'static>(
        vcpus: Vec<(V, ExitHandler<O>)>,
        platform: Arc<dyn Platform>,
        options: TurnOptions,
    ) -> io::Result<Self> {
        let control = Arc::new(Control::new(vcpus.iter().map(|(vcpu, _)| vcpu.kick_handle())));
        let turns = Turns::new(vcpus, platform, Arc::clone(&control), options);
        let run = move || turns.run_to_the_end();
        let thread = thread::Builder::new().name("vcpus".to_owned()).spawn(run)?;
        Ok(Self {
            control,
            threads: vec![thread],
        })
    }

    /// To pause, stop, question and wait for them; may be shared.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Stops the vCPUs and waits for their threads. Gives the statistics of all, by number.
    ///
    /// # Errors
    /// Some did not end in time. Their threads are left behind, everything they use with them.
    pub fn finish(mut self, timeout: Duration) -> Result<Vec<VcpuStats>, NotAcknowledged> {
        self.control.stop();
        let waited = self.control.wait_all(timeout);
        let threads = std::mem::take(&mut self.threads);
        waited?;
        for thread in threads {
            // It reported its end, so this takes no time; a panic of its was caught and reported.
            let _ = thread.join();
        }
        Ok(self.control.last_stats())
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.control.stop();
        }
    }
}

/// The body of a vCPU's thread: whatever happens, the others hear of the end.
fn run_to_the_end<B: VcpuBackend, O: MmuObserver>(
    id: u32,
    mut vcpu: B,
    mut handler: ExitHandler<O>,
    platform: &dyn Platform,
    control: &Control,
) {
    let run = AssertUnwindSafe(|| run_vcpu(id, &mut vcpu, &mut handler, platform, control));
    let end = catch_unwind(run).unwrap_or_else(|panic| VcpuEnd::Panicked(message(&*panic)));
    tracing::debug!(vcpu = id, %end, "vCPU ended");
    report_end(id, &mut vcpu, &mut handler, end, control, platform);
}

/// Lets everybody know how a vCPU ended, with the last that it has to say.
pub(crate) fn report_end<B: VcpuBackend, O: MmuObserver>(
    id: u32,
    vcpu: &mut B,
    handler: &mut ExitHandler<O>,
    end: VcpuEnd,
    control: &Control,
    platform: &dyn Platform,
) {
    let stats = catch_unwind(AssertUnwindSafe(|| handler.stats())).unwrap_or_default();
    let last = catch_unwind(AssertUnwindSafe(|| final_state(vcpu))).unwrap_or_default();
    control.ended(id, end, stats, last);
    platform.ended(id);
}

/// What the vCPU is like now that it has ended; `None` if it can't say.
fn final_state<B: VcpuBackend>(vcpu: &mut B) -> Option<FinalState> {
    Some(FinalState {
        regs: vcpu.regs().ok()?,
        system: vcpu.system_regs().ok()?,
        tables: vcpu.shadow_tables(),
    })
}

/// What a panic said.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}
