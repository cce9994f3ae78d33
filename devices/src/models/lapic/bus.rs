//! What local APICs share: messages, and the time.

use super::LocalApic;
use super::chip::Now;
use super::ipi::{Destination, Ipi, Shorthand};
use crate::clock::Clock;
use crate::irq::{DeliveryMode, Message, Msi, MsiSink, Waker};
use crate::sync::lock;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// Who is told that a level-triggered interrupt has ended: an I/O APIC.
pub trait EoiListener: Send + Sync {
    /// The interrupt with this vector has ended on some CPU. Called with no lock held.
    fn end_of_interrupt(&self, vector: u8);
}

/// The local APICs of a machine, with identifiers from 0 on, and the messages among them.
pub struct ApicBus {
    apics: Vec<Arc<LocalApic>>,
    clock: Arc<dyn Clock>,
    tsc_hz: u64,
    /// Weak, because an I/O APIC holds the bus.
    listener: OnceLock<Weak<dyn EoiListener>>,
    /// Until when whoever keeps the time sleeps, in nanoseconds of the clock; `u64::MAX` while nothing is known.
    sleeps_until: AtomicU64,
    /// Wakes whoever keeps the time.
    waker: OnceLock<Waker>,
}

impl ApicBus {
    /// `count` local APICs as after reset. `clock` drives their timers; the CPUs' time-stamp counters run at `tsc_hz`.
    pub fn new(count: u32, clock: Arc<dyn Clock>, tsc_hz: u64) -> Arc<Self> {
        Arc::new_cyclic(|bus| Self {
            apics: (0..count).map(|id| Arc::new(LocalApic::new(id, bus.clone()))).collect(),
            clock,
            tsc_hz,
            listener: OnceLock::new(),
            sleeps_until: AtomicU64::new(u64::MAX),
            waker: OnceLock::new(),
        })
    }

    /// The APIC with this identifier.
    pub fn apic(&self, id: u32) -> Option<&Arc<LocalApic>> {
        self.apics.get(usize::try_from(id).ok()?)
    }

    /// All of them, by identifier.
    pub fn apics(&self) -> &[Arc<LocalApic>] {
        &self.apics
    }

    /// Whom to tell of the ends of level-triggered interrupts. Once.
    pub fn set_listener(&self, listener: Weak<dyn EoiListener>) {
        // A machine has one I/O APIC.
        let _ = self.listener.set(listener);
    }

    /// Who is to be woken when a timer is set to end before the time for which [`ApicBus::tick`] was last told to wait.
    /// Once.
    pub fn set_waker(&self, waker: Waker) {
        let _ = self.waker.set(waker);
    }

    /// Raises the interrupts of timers that have ended. Says how long to wait before the next call; `None`: until the
    /// waker is called.
    pub fn tick(&self) -> Option<Duration> {
        // A timer that is set from here on wakes, because it may have been passed by already.
        self.sleeps_until.store(u64::MAX, Ordering::SeqCst);
        let now = self.nanoseconds();
        let next = self.apics.iter().filter_map(|apic| apic.tick(now)).min()?;
        self.sleeps_until.store(next, Ordering::SeqCst);
        Some(Duration::from_nanos(next.saturating_sub(self.nanoseconds())))
    }

    pub(super) fn timer_is_set(&self, end: u64) {
        if end < self.sleeps_until.load(Ordering::SeqCst)
            && let Some(wake) = self.waker.get()
        {
            wake();
        }
    }

    pub(super) fn now(&self, tsc: u64) -> Now {
        Now {
            ns: self.nanoseconds(),
            tsc,
            tsc_hz: self.tsc_hz,
        }
    }

    fn nanoseconds(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn end_of_interrupt(&self, vector: u8) {
        if let Some(listener) = self.listener.get().and_then(Weak::upgrade) {
            listener.end_of_interrupt(vector);
        }
    }

    /// Sends what a CPU's APIC was told to.
    pub(super) fn send(&self, sender: u32, ipi: &Ipi) {
        let to = match ipi.shorthand {
            Shorthand::None => ipi.destination,
            Shorthand::Itself => {
                if let Some(apic) = self.apic(sender) {
                    apic.receive(ipi.mode, ipi.vector, false);
                }
                return;
            }
            Shorthand::Everybody | Shorthand::Others => Destination::All,
        };
        let except = (ipi.shorthand == Shorthand::Others).then_some(sender);
        self.deliver_to(to, except, ipi.mode, ipi.vector, false);
    }

    fn deliver_to(&self, to: Destination, except: Option<u32>, mode: DeliveryMode, vector: u8, level: bool) {
        let meant = |apic: &&Arc<LocalApic>| {
            except != Some(apic.id()) && {
                let chip = lock(&apic.chip);
                chip.accepts(mode) && to.includes(&chip.address(apic.id()))
            }
        };
        if mode == DeliveryMode::LowestPriority {
            let lowest = self
                .apics
                .iter()
                .filter(meant)
                .min_by_key(|apic| lock(&apic.chip).apr());
            if let Some(apic) = lowest {
                apic.receive(mode, vector, level);
            }
            return;
        }
        for apic in self.apics.iter().filter(meant) {
            apic.receive(mode, vector, level);
        }
    }
}

impl MsiSink for ApicBus {
    fn deliver(&self, msi: Msi) {
        let Some(message) = Message::from_msi(msi) else {
            tracing::debug!(?msi, "not an interrupt message");
            return;
        };
        self.deliver_to(message.into(), None, message.mode, message.vector, message.level);
    }
}

impl EoiListener for crate::models::ioapic::IoApic {
    fn end_of_interrupt(&self, vector: u8) {
        Self::end_of_interrupt(self, vector);
    }
}

impl fmt::Debug for ApicBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApicBus")
            .field("apics", &self.apics)
            .finish_non_exhaustive()
    }
}
