//! Local APICs, as xAPIC and x2APIC, and the [`ApicBus`] that carries messages among them and from I/O APICs.
//!
//! A [`LocalApic`] has a lock, but its CPU doesn't take it to see whether something waits: that is an atomic. A message
//! is delivered on the thread of whoever sends it, one lock at a time: an I/O APIC's, then one local APIC's. What a
//! local APIC sends, it sends when it has let go of its own lock.
//!
//! Read in this order: [`regs`], [`vectors`], [`timer`], [`ipi`] (who is meant), [`chip`] (the state and its rules),
//! then here, then [`bus`].

pub mod bus;
pub mod chip;
pub mod ipi;
mod persist;
pub mod regs;
pub mod timer;
pub mod vectors;

pub use bus::{ApicBus, EoiListener};
pub use chip::{BadAccess, LapicState};

use crate::access::{IoOp, IoSize};
use crate::device::{Device, IoOutcome, Refusal};
use crate::irq::{DeliveryMode, IntrSource, Waker};
use crate::sync::lock;
use chip::{Action, Now, low};
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

/// What waits for the CPU, in [`LocalApic::waiting`].
mod waiting {
    /// A vector of this APIC.
    pub(super) const VECTOR: u8 = 1;
    /// An INIT or start-up interrupt.
    pub(super) const EVENT: u8 = 2;
    /// Not that something waits, but that an 8259's interrupts would come through.
    pub(super) const EXTERNAL_OPEN: u8 = 4;
    /// An NMI.
    pub(super) const NMI: u8 = 8;
}

/// What reaches a CPU besides interrupts with a vector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuEvent {
    /// It is reset and waits for a start-up interrupt, or if it is the one that starts first, starts.
    Init,
    /// If it waits: it starts in real mode at the page with this number.
    StartUp(u8),
    /// Non-maskable interrupt.
    Nmi,
}

/// One CPU's APIC.
pub struct LocalApic {
    id: u32,
    bus: Weak<ApicBus>,
    chip: Mutex<LapicState>,
    /// Bits of [`waiting`]. Changed under the lock.
    waiting: AtomicU8,
    waker: OnceLock<Arc<Waker>>,
    /// The 8259s, at LINT0.
    external: OnceLock<Arc<dyn IntrSource>>,
}

impl LocalApic {
    fn new(id: u32, bus: Weak<ApicBus>) -> Self {
        let apic = Self {
            id,
            bus,
            chip: Mutex::new(LapicState::new(id)),
            waiting: AtomicU8::new(0),
            waker: OnceLock::new(),
            external: OnceLock::new(),
        };
        apic.change(|_| ());
        apic
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Wires 8259s to LINT0: for one APIC of a machine, once.
    pub fn set_external(&self, source: Arc<dyn IntrSource>) {
        if self.external.set(Arc::clone(&source)).is_ok()
            && let Some(waker) = self.waker.get().cloned()
        {
            source.set_waker(Box::new(move || waker()));
        }
    }

    /// Whether there is an INIT or start-up interrupt, or, if the CPU takes one now, an NMI. No lock.
    #[inline]
    pub fn has_event(&self, nmi_open: bool) -> bool {
        let events = waiting::EVENT | if nmi_open { waiting::NMI } else { 0 };
        self.waiting.load(Ordering::Acquire) & events != 0
    }

    /// Takes one of them; INIT comes first, then a start-up interrupt.
    pub fn take_event(&self, nmi_open: bool) -> Option<CpuEvent> {
        if !self.has_event(nmi_open) {
            return None;
        }
        self.change(|chip| {
            if std::mem::take(&mut chip.init) {
                return Some(CpuEvent::Init);
            }
            let start_up = chip.start_up.take().map(CpuEvent::StartUp);
            start_up.or_else(|| (nmi_open && std::mem::take(&mut chip.nmi)).then_some(CpuEvent::Nmi))
        })
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        lock(&self.chip).base
    }

    /// Writes IA32_APIC_BASE on a CPU with so many physical address bits.
    ///
    /// # Errors
    /// The CPU raises #GP(0).
    pub fn set_base(&self, value: u64, physical_bits: u32) -> Result<(), BadAccess> {
        self.change(|chip| chip.set_base(self.id, value, physical_bits))
    }

    /// CR8: the upper half of the task priority.
    pub fn cr8(&self) -> u64 {
        u64::from(lock(&self.chip).tpr >> 4)
    }

    /// Writes CR8, 0 to 15.
    pub fn set_cr8(&self, value: u64) {
        self.change(|chip| chip.tpr = value.to_le_bytes()[0] << 4);
    }

    /// Reads IA32_TSC_DEADLINE or an MSR of the x2APIC.
    ///
    /// # Errors
    /// The CPU raises #GP(0).
    pub fn read_msr(&self, index: u32) -> Result<u64, BadAccess> {
        let chip = lock(&self.chip);
        if index == regs::TSC_DEADLINE_MSR {
            return Ok(chip.timer.deadline);
        }
        match msr_offset(index).filter(|_| chip.is_x2apic()).ok_or(BadAccess)? {
            regs::ICR => Ok(chip.icr),
            offset => chip.read(self.id, offset, &self.now(0)).map(u64::from),
        }
    }

    /// Writes IA32_TSC_DEADLINE or an MSR of the x2APIC, when the CPU's time-stamp counter is `tsc`.
    ///
    /// # Errors
    /// The CPU raises #GP(0).
    pub fn write_msr(&self, index: u32, value: u64, tsc: u64) -> Result<(), BadAccess> {
        let now = self.now(tsc);
        let action = self.change(|chip| {
            if index == regs::TSC_DEADLINE_MSR {
                chip.set_deadline(value, &now);
                return Ok(Action::None);
            }
            let offset = msr_offset(index).filter(|_| chip.is_x2apic()).ok_or(BadAccess)?;
            let writable = match offset {
                regs::ICR => 0xffff_ffff_0000_0000 | u64::from(regs::ICR_WRITABLE),
                regs::EOI | regs::ESR => 0,
                regs::TPR | regs::SELF_IPI => 0xff,
                regs::SVR => regs::SVR_WRITABLE.into(),
                regs::DIVIDE => timer::Timer::DIVIDE_WRITABLE.into(),
                regs::LVT..0x380 => regs::LVT_WRITABLE[usize::from(offset - regs::LVT) / 16].into(),
                _ => u32::MAX.into(),
            };
            if value & !writable != 0 {
                return Err(BadAccess);
            }
            match offset {
                regs::ICR => Ok(chip.write_wide_command(value)),
                _ => chip.write(offset, low(value), &now),
            }
        })?;
        self.carry_out(action);
        Ok(())
    }

    /// Delivers an interrupt to it.
    fn receive(&self, mode: DeliveryMode, vector: u8, level: bool) {
        self.change(|chip| chip.receive(self.id, mode, vector, level));
    }

    /// Lets time pass; says when the timer ends next.
    fn tick(&self, now: u64) -> Option<u64> {
        let end = lock(&self.chip).timer.end?;
        if end > now {
            return Some(end);
        }
        self.change(|chip| {
            chip.tick(now);
            chip.timer.end
        })
    }

    /// Changes the state. Wakes the CPU if there is something for it that wasn't before, and whoever keeps the time if
    /// the timer ends earlier now.
    fn change<R>(&self, change: impl FnOnce(&mut LapicState) -> R) -> R {
        let (result, gained, end) = {
            let mut chip = lock(&self.chip);
            let before = chip.timer.end;
            let result = change(&mut chip);
            let mut bits = 0;
            if chip.deliverable().is_some() {
                bits |= waiting::VECTOR;
            }
            if chip.init || chip.start_up.is_some() {
                bits |= waiting::EVENT;
            }
            if chip.nmi {
                bits |= waiting::NMI;
            }
            if chip.takes_external() {
                bits |= waiting::EXTERNAL_OPEN;
            }
            let old = self.waiting.swap(bits, Ordering::AcqRel);
            (result, bits & !old, chip.timer.end.filter(|_| chip.timer.end != before))
        };
        if gained != 0
            && let Some(wake) = self.waker.get()
        {
            wake();
        }
        if let Some(end) = end
            && let Some(bus) = self.bus.upgrade()
        {
            bus.timer_is_set(end);
        }
        result
    }

    fn carry_out(&self, action: Action) {
        let Some(bus) = self.bus.upgrade() else { return };
        match action {
            Action::None => {}
            Action::Send(ipi) => bus.send(self.id, &ipi),
            Action::End(vector) => bus.end_of_interrupt(vector),
        }
    }

    fn now(&self, tsc: u64) -> Now {
        self.bus
            .upgrade()
            .map_or(Now { ns: 0, tsc, tsc_hz: 1 }, |bus| bus.now(tsc))
    }
}

/// The register behind an MSR of the x2APIC.
fn msr_offset(index: u32) -> Option<u16> {
    let register = index.checked_sub(regs::X2APIC_MSRS)?;
    (register < regs::X2APIC_MSR_COUNT).then_some(())?;
    u16::try_from(register << 4).ok()
}

impl fmt::Debug for LocalApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalApic")
            .field("id", &self.id)
            .field("chip", &*lock(&self.chip))
            .finish_non_exhaustive()
    }
}

/// The xAPIC's page. The CPU asks only while it is one.
impl Device for LocalApic {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        let now = self.now(0);
        if size != IoSize::B4 || !offset.is_multiple_of(16) {
            return IoOutcome::Refused(Refusal::WrongSize);
        }
        let register = u16::try_from(offset).unwrap_or(u16::MAX);
        let done = self.change(|chip| {
            if chip.is_x2apic() || !chip.is_on() {
                return Err(());
            }
            let done = match op {
                IoOp::Read => chip.read(self.id, register, &now).map(|value| (value, Action::None)),
                IoOp::Write(value) => chip.write(register, low(value), &now).map(|action| (0, action)),
            };
            if done.is_err() {
                chip.error(regs::ESR_NO_REGISTER);
            }
            done.map_err(|BadAccess| ())
        });
        match (done, op) {
            (Err(()), _) => IoOutcome::Refused(Refusal::NoRegister),
            (Ok((value, _)), IoOp::Read) => IoOutcome::Value(value.into()),
            (Ok((_, action)), IoOp::Write(_)) => {
                self.carry_out(action);
                IoOutcome::Done
            }
        }
    }

    fn reset(&self) {
        self.change(|chip| *chip = LapicState::new(self.id));
    }
}

impl IntrSource for LocalApic {
    fn is_pending(&self) -> bool {
        let waiting = self.waiting.load(Ordering::Acquire);
        waiting & waiting::VECTOR != 0
            || waiting & waiting::EXTERNAL_OPEN != 0 && self.external.get().is_some_and(|source| source.is_pending())
    }

    fn acknowledge(&self) -> u8 {
        let open = self.waiting.load(Ordering::Acquire) & waiting::EXTERNAL_OPEN != 0;
        match self.external.get().filter(|source| open && source.is_pending()) {
            Some(source) => source.acknowledge(),
            None => self.change(LapicState::acknowledge),
        }
    }

    fn set_waker(&self, waker: Waker) {
        let waker = Arc::new(waker);
        if self.waker.set(Arc::clone(&waker)).is_ok()
            && let Some(source) = self.external.get()
        {
            source.set_waker(Box::new(move || waker()));
        }
    }
}

#[cfg(test)]
mod tests;
