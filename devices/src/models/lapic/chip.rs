//! The state of one local APIC, and what accesses and messages make of it. No locks and no other APIC here.

use super::ipi::{Address, Destination, Ipi, Shorthand};
use super::regs;
use super::timer::{Timer, TimerMode};
use super::vectors::Vectors;
use crate::irq::DeliveryMode;

/// Everything a guest can tell two local APICs of one number apart by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LapicState {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// Task priority.
    pub tpr: u8,
    /// Logical destination; an x2APIC's follows from its identifier.
    pub ldr: u32,
    /// Destination format.
    pub dfr: u32,
    /// Spurious interrupt vector.
    pub svr: u32,
    /// Error status, as it reads.
    pub esr: u32,
    /// Errors since it was last written.
    pub errors: u32,
    /// Interrupt command.
    pub icr: u64,
    /// Local vector table: timer, thermal sensor, performance counters, LINT0, LINT1, error.
    pub lvt: [u32; 6],
    /// Requested.
    pub irr: Vectors,
    /// In service.
    pub isr: Vectors,
    /// Of the requested and in-service ones, those whose end is told to the I/O APICs.
    pub tmr: Vectors,
    /// The timer.
    pub timer: Timer,
    /// An NMI waits for the CPU.
    pub nmi: bool,
    /// An INIT waits.
    pub init: bool,
    /// A start-up interrupt waits, with this vector.
    pub start_up: Option<u8>,
}

/// There is no such register, or not in this direction, or a reserved bit was set: an x2APIC raises #GP(0) for that, an
/// xAPIC notes an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadAccess;

/// What is to be done after an access, when no lock is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing.
    None,
    /// Send this.
    Send(Ipi),
    /// Tell the I/O APICs that a level-triggered interrupt has ended.
    End(u8),
}

/// The clocks as they are now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Nanoseconds of the APIC's clock.
    pub ns: u64,
    /// The CPU's time-stamp counter, where it matters.
    pub tsc: u64,
    /// Its frequency in Hz.
    pub tsc_hz: u64,
}

impl LapicState {
    /// As after reset and what firmware does: off in software, but with the pins in "virtual wire mode", LINT0 to the
    /// 8259s and LINT1 to NMI (MultiProcessor Specification 1.4 section 3.6.2.1).
    pub fn new(id: u32) -> Self {
        let mut chip = Self {
            base: regs::BASE | regs::BASE_ON | if id == 0 { regs::BASE_BOOTSTRAP } else { 0 },
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [regs::LVT_MASKED; 6],
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            timer: Timer::default(),
            nmi: false,
            init: false,
            start_up: None,
        };
        chip.lvt[regs::LVT_LINT0] = DeliveryMode::ExtInt.bits() << 8;
        chip.lvt[regs::LVT_LINT1] = DeliveryMode::Nmi.bits() << 8;
        chip
    }

    /// What an INIT leaves (SDM vol. 3A section 11.4.7.3).
    fn initialise(&mut self, id: u32) {
        *self = Self {
            base: self.base,
            lvt: [regs::LVT_MASKED; 6],
            init: true,
            ..Self::new(id)
        };
    }

    /// It is not switched off in IA32_APIC_BASE.
    pub fn is_on(&self) -> bool {
        self.base & regs::BASE_ON != 0
    }

    /// It is an x2APIC.
    pub fn is_x2apic(&self) -> bool {
        self.base & regs::BASE_X2APIC != 0
    }

    fn is_enabled(&self) -> bool {
        self.is_on() && self.svr & regs::SVR_ENABLED != 0
    }

    /// The 8259s' interrupts come through: by LINT0, or because there is no APIC between them and the CPU.
    pub fn takes_external(&self) -> bool {
        let entry = self.lvt[regs::LVT_LINT0];
        let external = DeliveryMode::from_bits(entry >> 8) == DeliveryMode::ExtInt;
        !self.is_on() || external && entry & regs::LVT_MASKED == 0
    }

    /// What messages are compared with.
    pub fn address(&self, id: u32) -> Address {
        if self.is_x2apic() {
            let ldr = (id >> 4) << 16 | 1 << (id & 0xf);
            return Address { id, ldr, dfr: None };
        }
        Address {
            id,
            ldr: self.ldr,
            dfr: Some(self.dfr),
        }
    }

    /// Processor priority: only vectors of a higher class interrupt.
    pub fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= in_service {
            self.tpr
        } else {
            in_service
        }
    }

    /// Arbitration priority, by which the receiver of a lowest-priority interrupt is chosen.
    pub fn apr(&self) -> u8 {
        let waiting = self.irr.highest().unwrap_or(0) & 0xf0;
        let busy = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= waiting && self.tpr & 0xf0 > busy {
            self.tpr
        } else {
            (self.tpr & 0xf0).max(busy).max(waiting)
        }
    }

    /// The vector that interrupts the CPU now.
    pub fn deliverable(&self) -> Option<u8> {
        let vector = self.irr.highest().filter(|_| self.is_enabled())?;
        (vector & 0xf0 > self.ppr() & 0xf0).then_some(vector)
    }

    /// The CPU takes the interrupt.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(vector) = self.deliverable() else {
            return self.svr.to_le_bytes()[0];
        };
        self.irr.set(vector, false);
        self.isr.set(vector, true);
        vector
    }

    /// Whether it takes ordinary interrupts.
    pub fn accepts(&self, mode: DeliveryMode) -> bool {
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => self.is_enabled(),
            _ => self.is_on(),
        }
    }

    /// A message arrives.
    pub fn receive(&mut self, id: u32, mode: DeliveryMode, vector: u8, level: bool) {
        if !self.accepts(mode) {
            return;
        }
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if vector < 16 => self.error(regs::ESR_RECEIVED_VECTOR),
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.irr.set(vector, true);
                self.tmr.set(vector, level);
            }
            DeliveryMode::Nmi => self.nmi = true,
            DeliveryMode::Init => self.initialise(id),
            DeliveryMode::StartUp => self.start_up = Some(vector),
            // There is no system management mode here; and an 8259's interrupt comes by a pin, not as a message.
            DeliveryMode::Smi | DeliveryMode::ExtInt | DeliveryMode::Reserved => {}
        }
    }

    /// An interrupt of the local vector table is due.
    fn local(&mut self, entry: usize) {
        let entry = self.lvt[entry];
        if entry & regs::LVT_MASKED == 0 && self.is_enabled() {
            let vector = entry.to_le_bytes()[0];
            if vector < 16 {
                self.errors |= regs::ESR_RECEIVED_VECTOR;
            } else {
                self.irr.set(vector, true);
                self.tmr.set(vector, false);
            }
        }
    }

    pub(super) fn error(&mut self, bit: u32) {
        self.errors |= bit;
        self.local(regs::LVT_ERROR);
    }

    fn timer_mode(&self) -> TimerMode {
        TimerMode::of(self.lvt[regs::LVT_TIMER])
    }

    /// Time has passed.
    pub fn tick(&mut self, now: u64) {
        if self.timer.tick(self.timer_mode(), now) {
            self.local(regs::LVT_TIMER);
        }
    }

    fn end_of_interrupt(&mut self) -> Action {
        let Some(vector) = self.isr.highest() else {
            return Action::None;
        };
        self.isr.set(vector, false);
        if self.tmr.has(vector) {
            Action::End(vector)
        } else {
            Action::None
        }
    }

    /// Reads the register at this offset, a multiple of 16.
    ///
    /// # Errors
    /// There is none, or it can't be read.
    pub fn read(&self, id: u32, offset: u16, now: &Now) -> Result<u32, BadAccess> {
        let wide = self.is_x2apic();
        let index = usize::from(offset >> 4);
        Ok(match offset {
            regs::ID if wide => id,
            regs::ID => id << 24,
            regs::VERSION => regs::VERSION_VALUE,
            regs::TPR => self.tpr.into(),
            regs::APR if !wide => self.apr().into(),
            regs::PPR => self.ppr().into(),
            regs::EOI | regs::REMOTE_READ if !wide => 0,
            regs::LDR => self.address(id).ldr,
            regs::DFR if !wide => self.dfr,
            regs::SVR => self.svr,
            regs::ISR..0x180 => self.isr.word(index),
            regs::TMR..0x200 => self.tmr.word(index),
            regs::IRR..0x280 => self.irr.word(index),
            regs::ESR => self.esr,
            regs::ICR => low(self.icr),
            regs::ICR_HIGH if !wide => low(self.icr >> 32),
            regs::LVT..0x380 => self.lvt[usize::from(offset - regs::LVT) / 16],
            regs::INITIAL_COUNT => self.timer.initial,
            regs::CURRENT_COUNT => self.timer.current(self.timer_mode(), now.ns),
            regs::DIVIDE => self.timer.divide,
            _ => return Err(BadAccess),
        })
    }

    /// Writes the register at this offset, a multiple of 16.
    ///
    /// # Errors
    /// There is none, or it can't be written.
    pub fn write(&mut self, offset: u16, value: u32, now: &Now) -> Result<Action, BadAccess> {
        let wide = self.is_x2apic();
        match offset {
            regs::TPR => self.tpr = value.to_le_bytes()[0],
            regs::EOI => return Ok(self.end_of_interrupt()),
            regs::LDR if !wide => self.ldr = value & 0xff00_0000,
            regs::DFR if !wide => self.dfr = value | 0x0fff_ffff,
            regs::SVR => self.set_svr(value),
            regs::ESR => self.esr = std::mem::take(&mut self.errors),
            regs::ICR if !wide => {
                let command = value & regs::ICR_WRITABLE;
                self.icr = self.icr & !0xffff_ffff | u64::from(command);
                let logical = command & regs::ICR_LOGICAL != 0;
                let to = Destination::narrow(self.icr.to_le_bytes()[7], logical);
                return Ok(self.command(command, to));
            }
            regs::ICR_HIGH if !wide => self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32,
            regs::LVT..0x380 => self.set_lvt(usize::from(offset - regs::LVT) / 16, value),
            regs::INITIAL_COUNT => self.timer.start(value, self.timer_mode(), now.ns),
            regs::DIVIDE => self.timer.set_divide(value, self.timer_mode(), now.ns),
            regs::SELF_IPI if wide => {
                let to = Destination::All;
                // Bits 19:18 say "itself".
                return Ok(self.command(1 << 18 | value & 0xff, to));
            }
            _ => return Err(BadAccess),
        }
        Ok(Action::None)
    }

    /// Writes an x2APIC's interrupt command register, which is a whole.
    pub fn write_wide_command(&mut self, value: u64) -> Action {
        self.icr = value;
        let command = low(value);
        let to = Destination::wide(low(value >> 32), command & regs::ICR_LOGICAL != 0);
        self.command(command, to)
    }

    fn command(&mut self, command: u32, to: Destination) -> Action {
        match Ipi::from_command(command, to) {
            Some(ipi) if ipi.is_illegal() => self.error(regs::ESR_SEND_VECTOR),
            // Only ordinary interrupts can be sent to oneself by shorthand.
            Some(ipi) if ipi.shorthand == Shorthand::Itself && ipi.mode != DeliveryMode::Fixed => {}
            Some(ipi) => return Action::Send(ipi),
            None => {}
        }
        Action::None
    }

    fn set_svr(&mut self, value: u32) {
        self.svr = value & regs::SVR_WRITABLE;
        if self.svr & regs::SVR_ENABLED == 0 {
            self.lvt = self.lvt.map(|entry| entry | regs::LVT_MASKED);
        }
    }

    fn set_lvt(&mut self, index: usize, value: u32) {
        let before = self.timer_mode();
        let mut entry = value & regs::LVT_WRITABLE[index];
        if self.svr & regs::SVR_ENABLED == 0 {
            entry |= regs::LVT_MASKED;
        }
        self.lvt[index] = entry;
        self.timer.change_mode(before, self.timer_mode());
    }

    /// Writes IA32_TSC_DEADLINE, which does nothing unless the timer is in that mode.
    pub fn set_deadline(&mut self, deadline: u64, now: &Now) {
        if self.timer_mode() == TimerMode::Deadline {
            self.timer.set_deadline(deadline, now.tsc, now.tsc_hz, now.ns);
        }
    }

    /// Writes IA32_APIC_BASE; of the address only what fits `physical_bits`.
    ///
    /// # Errors
    /// A reserved bit, or a mode that can't follow the present one (SDM vol. 3A figure 11-27).
    pub fn set_base(&mut self, id: u32, value: u64, physical_bits: u32) -> Result<(), BadAccess> {
        let address = (1u64 << physical_bits.clamp(13, 52)) - (1 << 12);
        let mode = |base: u64| (base & regs::BASE_ON != 0, base & regs::BASE_X2APIC != 0);
        let impossible = matches!(
            (mode(self.base), mode(value)),
            (_, (false, true)) | ((false, false), (true, true)) | ((true, true), (true, false))
        );
        let known = address | regs::BASE_BOOTSTRAP | regs::BASE_X2APIC | regs::BASE_ON;
        if value & !known != 0 || impossible {
            return Err(BadAccess);
        }
        if self.is_on() && value & regs::BASE_ON == 0 {
            // Switching it off loses everything.
            let events = (self.nmi, self.init, self.start_up);
            *self = Self {
                lvt: [regs::LVT_MASKED; 6],
                ..Self::new(id)
            };
            (self.nmi, self.init, self.start_up) = events;
        }
        self.base = value & !regs::BASE_BOOTSTRAP | self.base & regs::BASE_BOOTSTRAP;
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
pub(super) const fn low(value: u64) -> u32 {
    value as u32
}
