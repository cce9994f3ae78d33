//! What to do about an exit, without the vCPU that made it: an exit goes in, the next entry or an instruction to the
//! loop comes out.
//!
//! A repeated device access takes no lock, allocates nothing and searches nothing: the vCPU's MMIO cache or the MMIO
//! SPTE says that there is still no memory, the bus cursor says which device answers.

use crate::exit::{FatalExit, InsnBytes, SystemEvent, VmEntry, VmExit};
use crate::fallback::FallbackCounts;
use crate::hot_pages::HotPages;
use crate::shadow_counts::ShadowCounts;
use crate::soft::SoftCounts;
use crate::stats::{BusStats, ExitKind, ExitTally, HotPage, VcpuStats};
use std::sync::Arc;
use std::time::Instant;
use umbra_devices::{Bus, BusCursor, Effect, IoOp, IoSize, Port};
use umbra_memslots::{Gpa, GuestMemory, Memslots, SlotReader};
use umbra_mmu::direct::{DirectMmu, DirectVcpu, Direction, MmioAnswer};
use umbra_mmu::{MmuObserver, NoObserver};

/// What the loop does next.
#[derive(Debug)]
pub enum Next {
    /// Enter the guest.
    Enter(VmEntry),
    /// Carry out the effect, then enter the guest.
    Apply(VmEntry, Box<Effect>),
    /// Tell the interrupt controller, then enter the guest.
    EndOfInterrupt(u8),
    /// See whether somebody wants something of this vCPU, then enter the guest.
    Poll,
    /// The guest can't go on.
    End(GuestEnd),
}

/// How a guest ends by its own doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GuestEnd {
    /// Power off.
    PowerOff,
    /// Reset.
    Reset,
    /// The debug-exit device was written to.
    Exit {
        /// The value.
        code: u32,
    },
    /// The guest reported its own crash.
    Crash,
    /// It halted and nothing can wake it.
    Halted,
    /// A triple fault.
    Shutdown,
    /// An instruction that the backend could not execute.
    EmulationFailure {
        /// Its bytes, if they could be fetched.
        bytes: InsnBytes,
    },
    /// A debug event without a debugger.
    Debug {
        /// Linear address of the instruction.
        rip: u64,
    },
    /// Anything else that no guest comes back from.
    Fatal(FatalExit),
}

/// What one vCPU needs to answer its exits.
pub struct ExitHandler<O = NoObserver> {
    mmu: Arc<DirectMmu>,
    direct: DirectVcpu<O>,
    slots: SlotReader,
    mmio: BusCursor<Gpa>,
    ports: BusCursor<Port>,
    tally: ExitTally,
    went_to_memory: u64,
    /// Only if pages are counted.
    hot_pages: Option<HotPages>,
    in_software: Option<FallbackCounts>,
    shadow: Option<ShadowCounts>,
    software_cpu: Option<SoftCounts>,
    /// When the last exit had been handled; only if time is taken.
    since: Option<Instant>,
}

impl ExitHandler {
    /// For a vCPU that sees `slots` and both buses.
    pub fn new(mmu: Arc<DirectMmu>, slots: SlotReader, mmio: &Bus<Gpa>, ports: &Bus<Port>) -> Self {
        Self::with_observer(mmu, slots, mmio, ports, NoObserver)
    }
}

impl<O: MmuObserver> ExitHandler<O> {
    /// The same, telling `observer` what the MMU does.
    pub fn with_observer(
        mmu: Arc<DirectMmu>,
        slots: SlotReader,
        mmio: &Bus<Gpa>,
        ports: &Bus<Port>,
        observer: O,
    ) -> Self {
        Self {
            mmu,
            direct: DirectVcpu::with_observer(observer),
            slots,
            mmio: mmio.cursor(),
            ports: ports.cursor(),
            tally: ExitTally::default(),
            went_to_memory: 0,
            hot_pages: None,
            in_software: None,
            shadow: None,
            software_cpu: None,
            since: None,
        }
    }

    /// Takes time from now on: two readings of the clock per exit, about 50 ns together.
    #[must_use]
    pub fn timed(mut self) -> Self {
        self.since = Some(Instant::now());
        self
    }

    /// Counts MMIO by page from now on.
    #[must_use]
    pub fn counting_pages(mut self) -> Self {
        self.hot_pages = Some(HotPages::default());
        self
    }

    /// Includes in its statistics what a [`crate::fallback::Fallback`] did.
    #[must_use]
    pub fn with_fallback(mut self, counts: FallbackCounts) -> Self {
        self.in_software = Some(counts);
        self
    }

    /// Takes the shadow MMU's word for what is MMIO, and includes in its statistics how that was recognised.
    #[must_use]
    pub fn with_shadow(mut self, counts: ShadowCounts) -> Self {
        self.shadow = Some(counts);
        self
    }

    /// Includes in its statistics what a software CPU executed.
    #[must_use]
    pub fn with_software_cpu(mut self, counts: SoftCounts) -> Self {
        self.software_cpu = Some(counts);
        self
    }

    /// Whether somebody has recognised the access as MMIO already.
    #[inline]
    fn is_recognised(&self) -> bool {
        self.shadow.as_ref().is_some_and(ShadowCounts::take_recognised)
    }

    /// Answers an exit.
    #[inline]
    pub fn handle(&mut self, exit: &VmExit) -> Next {
        let kind = ExitKind::of(exit);
        self.tally.count(kind);
        let Some(since) = self.since else {
            return self.answer(exit);
        };
        let begin = Instant::now();
        let next = self.answer(exit);
        let end = Instant::now();
        self.tally.time(kind, end - begin, begin - since);
        self.since = Some(end);
        next
    }

    fn answer(&mut self, exit: &VmExit) -> Next {
        match *exit {
            VmExit::Mmio { gpa, size, op } => self.mmio(gpa, size, op),
            VmExit::Pio { port, size, op } => {
                let answer = self.ports.access(Port::new(port), size, op);
                enter(op, answer.value, answer.effect)
            }
            VmExit::Interrupted => Next::Poll,
            VmExit::IrqWindowOpen => Next::Enter(VmEntry::Resume),
            VmExit::IoapicEoi { vector } => Next::EndOfInterrupt(vector),
            // What KVM itself would do: the guest gets #GP.
            VmExit::ReadMsr { index } | VmExit::WriteMsr { index, .. } => {
                tracing::debug!(msr = format_args!("{index:#x}"), "the guest uses an unknown MSR");
                Next::Enter(VmEntry::Fault)
            }
            VmExit::Hlt => Next::End(GuestEnd::Halted),
            VmExit::Shutdown => Next::End(GuestEnd::Shutdown),
            VmExit::SystemEvent(event) => Next::End(match event {
                SystemEvent::PowerOff => GuestEnd::PowerOff,
                SystemEvent::Reset => GuestEnd::Reset,
                SystemEvent::Crash => GuestEnd::Crash,
                SystemEvent::Other(reason) => GuestEnd::Fatal(FatalExit::Unknown {
                    reason,
                    name: "an unknown system event",
                }),
            }),
            VmExit::Debug { rip, .. } => Next::End(GuestEnd::Debug { rip }),
            VmExit::EmulationFailure { bytes } => Next::End(GuestEnd::EmulationFailure { bytes }),
            VmExit::Fatal(ref fatal) => Next::End(GuestEnd::Fatal(fatal.clone())),
        }
    }

    #[inline]
    fn mmio(&mut self, gpa: Gpa, size: IoSize, op: IoOp) -> Next {
        let direction = if op.is_read() {
            Direction::Read
        } else {
            Direction::Write
        };
        if let Some(pages) = &mut self.hot_pages {
            pages.count(gpa.gfn());
        }
        if self.is_recognised() {
            let answer = self.mmio.access(gpa, size, op);
            return enter(op, answer.value, answer.effect);
        }
        match self.mmu.lookup(&mut self.direct, &mut self.slots, gpa, direction) {
            MmioAnswer::Mmio(_) | MmioAnswer::ReadOnlyWrite(_) => {}
            MmioAnswer::Retry(_) => {
                if let Some(value) = self.memory(gpa, size, op) {
                    return enter(op, value, None);
                }
            }
        }
        let answer = self.mmio.access(gpa, size, op);
        enter(op, answer.value, answer.effect)
    }

    /// The access as the memory answers it that has appeared since the guest made it. `None`: no memory after all (the
    /// slot is just being removed), so it is the bus's.
    #[cold]
    fn memory(&mut self, gpa: Gpa, size: IoSize, op: IoOp) -> Option<u64> {
        let slots = self.slots.snapshot();
        let mut bytes = [0; 8];
        let width = match size {
            IoSize::B1 => &mut bytes[..1],
            IoSize::B2 => &mut bytes[..2],
            IoSize::B4 => &mut bytes[..4],
            IoSize::B8 => &mut bytes[..],
        };
        match op {
            IoOp::Read => slots.read(gpa, width).ok()?,
            IoOp::Write(value) => {
                for (to, from) in width.iter_mut().zip(value.to_le_bytes()) {
                    *to = from;
                }
                slots.write(gpa, width).ok()?;
            }
        }
        self.went_to_memory += 1;
        Some(u64::from_le_bytes(bytes))
    }

    /// The memory slots as this vCPU sees them now.
    pub fn slots(&mut self) -> &Memslots {
        self.slots.snapshot()
    }

    /// Everything counted so far. Allocates; not for the exit path.
    pub fn stats(&self) -> VcpuStats {
        let mut stats = VcpuStats::new(&self.tally, self.direct.stats(), self.went_to_memory);
        if let Some(shadow) = &self.shadow {
            let run = shadow.get();
            stats.mmio.add_shadow(&run);
            stats.faults = crate::stats::fault_outcomes(&run);
        }
        stats.mmio_bus = BusStats::of(&self.mmio);
        stats.port_bus = BusStats::of(&self.ports);
        stats.hot_pages = self.hot_pages.map(|pages| HotPage::list(&pages)).unwrap_or_default();
        stats.software_cpu = self.software_cpu.as_ref().map(SoftCounts::get).unwrap_or_default();
        if let Some(counts) = &self.in_software {
            stats.in_software = counts.by_mnemonic();
            stats.stretches = counts.stretches();
        }
        stats
    }
}

/// The entry that answers a device access, with its effect.
#[inline]
fn enter(op: IoOp, value: u64, effect: Option<Box<Effect>>) -> Next {
    let entry = if op.is_read() {
        VmEntry::Value(value)
    } else {
        VmEntry::Resume
    };
    match effect {
        None => Next::Enter(entry),
        Some(effect) => Next::Apply(entry, effect),
    }
}
