//! A PC's interrupt controllers and timers, for a machine that has none in KVM, or only local APICs. The time is kept by a
//! thread, or by those who give out the turns of counted time.

use super::turns::Life;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use umbra_devices::irq::{Gsi, IrqPins, IrqSink, MsiSink};
use umbra_devices::models::fpu_error::{self, FpuErrorLogic};
use umbra_devices::models::ioapic::IoApic;
use umbra_devices::models::lapic::{ApicBus, EoiListener};
use umbra_devices::models::pic::{self, PicPair};
use umbra_devices::models::pit::{Pit, regs};
use umbra_devices::{Clock, Device, HostClock, IoOp, IoSize};

/// The I/O APIC's input for the timer, whose interrupt is number 0 everywhere else.
const PIT_INPUT: u32 = 2;

/// The 8259s and the timer, with the thread that keeps the time, if there is one: what a machine needs whose KVM has only
/// local APICs.
pub struct Legacy {
    /// The 8259s, to be wired to the first CPU's LINT0.
    pub pic: Arc<PicPair>,
    /// The timer.
    pub pit: Arc<Pit>,
    /// Where the first CPU's x87 errors go while CR0.NE is clear. KVM reports none.
    pub fpu_errors: Arc<FpuErrorLogic>,
    /// Where devices' lines end: here and at the I/O APIC.
    pub sink: Arc<dyn IrqSink>,
    keeper: Option<Keeper>,
}

/// All controllers and timers of a machine that has none in KVM.
pub struct Chipset {
    /// The old ones.
    pub legacy: Legacy,
    /// The I/O APIC.
    pub ioapic: Arc<IoApic>,
    /// The CPUs' local APICs.
    pub apics: Arc<ApicBus>,
}

/// The thread that keeps the time, until this goes.
struct Keeper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Each line goes to both: an operating system uses the one or the other, and masks the one that it doesn't use.
struct Both {
    pic: Arc<PicPair>,
    ioapic: Arc<IoApic>,
}

impl IrqSink for Both {
    fn set_level(&self, gsi: Gsi, high: bool) {
        self.pic.set_level(gsi, high);
        let input = if gsi == Gsi(regs::IRQ) { Gsi(PIT_INPUT) } else { gsi };
        self.ioapic.set_level(input, high);
    }
}

impl Chipset {
    /// Wires them together for so many CPUs, whose time-stamp counters run at `tsc_hz`, and starts the thread.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn new(cpus: u32, tsc_hz: u64) -> io::Result<Self> {
        let mut chipset = Self::wired(cpus, tsc_hz, Arc::new(HostClock::new()));
        let keeper = Keeper::start(&chipset.legacy.pit, Some(&chipset.apics))?;
        chipset.legacy.keeper = Some(keeper);
        Ok(chipset)
    }

    /// The same for CPUs that take turns, by the time of theirs.
    pub fn in_turns(cpus: u32, tsc_hz: u64, life: &Life) -> Self {
        let chipset = Self::wired(cpus, tsc_hz, Arc::clone(&life.clock) as _);
        let waker = || {
            let bell = life.bell.clone();
            Box::new(move || bell.alarm_is_set())
        };
        chipset.legacy.pit.set_waker(waker());
        chipset.apics.set_waker(waker());
        chipset
    }

    fn wired(cpus: u32, tsc_hz: u64, clock: Arc<dyn Clock>) -> Self {
        let apics = ApicBus::new(cpus, Arc::clone(&clock), tsc_hz);
        let ioapic = Arc::new(IoApic::new(Arc::clone(&apics) as Arc<dyn MsiSink>));
        let listener: Arc<dyn EoiListener> = Arc::clone(&ioapic) as _;
        apics.set_listener(Arc::downgrade(&listener));
        let legacy = Legacy::wired(&ioapic, clock);
        if let Some(first) = apics.apic(0) {
            first.set_external(Arc::clone(&legacy.pic) as _);
        }
        Self { legacy, ioapic, apics }
    }
}

impl Legacy {
    /// Wires them beside an I/O APIC of ours and starts the thread.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn new(ioapic: &Arc<IoApic>) -> io::Result<Self> {
        let mut legacy = Self::wired(ioapic, Arc::new(HostClock::new()));
        legacy.keeper = Some(Keeper::start(&legacy.pit, None)?);
        Ok(legacy)
    }

    fn wired(ioapic: &Arc<IoApic>, clock: Arc<dyn Clock>) -> Self {
        let pic = Arc::new(masked_pic());
        let sink: Arc<dyn IrqSink> = Arc::new(Both {
            pic: Arc::clone(&pic),
            ioapic: Arc::clone(ioapic),
        });
        // Nobody else has a line to the timer's input, or that of x87 errors.
        let pins = IrqPins::new(Arc::clone(&sink));
        let pit = Arc::new(Pit::new(clock, pins.line(Gsi(regs::IRQ))));
        let fpu_errors = Arc::new(FpuErrorLogic::new(pins.line(Gsi(fpu_error::regs::IRQ))));
        Self {
            pic,
            pit,
            fpu_errors,
            sink,
            keeper: None,
        }
    }
}

impl Keeper {
    fn start(pit: &Arc<Pit>, apics: Option<&Arc<ApicBus>>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("timers".to_owned()).spawn({
            let (pit, apics, stop) = (Arc::clone(pit), apics.cloned(), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Acquire) {
                    let apics_wait = apics.as_ref().and_then(|apics| apics.tick());
                    match pit.tick().into_iter().chain(apics_wait).min() {
                        Some(wait) => thread::park_timeout(wait),
                        None => thread::park(),
                    }
                }
            }
        })?;
        let waker = thread.thread().clone();
        pit.set_waker(Box::new({
            let waker = waker.clone();
            move || waker.unpark()
        }));
        if let Some(apics) = apics {
            apics.set_waker(Box::new(move || waker.unpark()));
        }
        // What was set before there was somebody to wake is seen by the first tick.
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

/// The 8259s as firmware leaves them: everything masked, so that a guest that never looks at them gets nothing from them.
fn masked_pic() -> PicPair {
    let pic = PicPair::new();
    for data in [1, pic::regs::SLAVE + 1] {
        pic.access(data, IoSize::B1, IoOp::Write(0xff));
    }
    pic
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_devices::{Bus, IntrSource, Port};

    #[test]
    fn x87_error_is_interrupt_13_until_port_f0_is_written() {
        let chipset = Chipset::new(1, 1_000_000_000).unwrap();
        let ports = Bus::<Port>::new();
        chipset.legacy.pic.claim(&ports).unwrap();
        chipset.legacy.fpu_errors.claim(&ports).unwrap();
        let mut cursor = ports.cursor();
        let mut write = |port, byte| cursor.write(Port::new(port), IoSize::B1, byte);
        for (first, vectors, cascade) in [(0x20, 0x20, 4), (0xa0, 0x28, 2)] {
            write(first, 0x11);
            for byte in [vectors, cascade, 1, 0] {
                write(first + 1, byte);
            }
        }
        assert!(!chipset.legacy.fpu_errors.set_error(true));
        assert!(chipset.legacy.pic.is_pending());
        assert_eq!(chipset.legacy.pic.acknowledge(), 0x2d);
        write(0xf0, 0);
        assert!(chipset.legacy.fpu_errors.set_error(true), "IGNNE#");
    }
}
