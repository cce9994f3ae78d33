//! The I/O APIC: 24 inputs, each of which sends the message that its redirection entry says.
//!
//! An [`IrqSink`] for global system interrupts 0 to 23 on one side, and for machines whose local APICs are elsewhere an
//! [`MsiSink`] on the other. A line's level means asserted or not, whatever polarity the guest has chosen: on a PC the
//! choice follows the wiring, and here there is none.

mod entry;
pub mod regs;

pub use entry::Entry;

use crate::access::{IoOp, IoSize};
use crate::device::{BadState, Device, IoOutcome, Persist, Refusal};
use crate::irq::{Gsi, IrqSink, Msi, MsiSink};
use crate::sync::lock;
use std::fmt;
use std::sync::{Arc, Mutex};

const PINS: usize = regs::PINS as usize;

/// The device.
pub struct IoApic {
    sink: Arc<dyn MsiSink>,
    chip: Mutex<Chip>,
}

/// What a guest can tell, and what the sink was told last.
#[derive(Clone, Default)]
struct Chip {
    state: IoApicState,
    routes: [Option<Msi>; PINS],
}

/// The state of an [`IoApic`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IoApicState {
    /// Index of the register that the window shows.
    pub select: u8,
    /// The identifier register.
    pub id: u32,
    /// The redirection entries.
    pub entries: [Entry; PINS],
    /// The inputs that are asserted, a bit for each.
    pub levels: u32,
}

impl IoApic {
    /// An I/O APIC as after reset, whose messages go to `sink`.
    pub fn new(sink: Arc<dyn MsiSink>) -> Self {
        Self {
            sink,
            chip: Mutex::default(),
        }
    }

    /// A CPU's interrupt with this vector, which was level-triggered, has ended: inputs that sent it may send again.
    pub fn end_of_interrupt(&self, vector: u8) {
        lock(&self.chip).end(vector, &*self.sink);
    }

    fn register(&self, size: IoSize, op: IoOp) -> IoOutcome {
        if size != IoSize::B4 {
            return IoOutcome::Refused(Refusal::WrongSize);
        }
        let mut chip = lock(&self.chip);
        let index = chip.state.select;
        match op {
            IoOp::Read => chip
                .state
                .read(index)
                .map_or(IoOutcome::Refused(Refusal::NoRegister), |value| {
                    IoOutcome::Value(value.into())
                }),
            IoOp::Write(value) => chip.write(index, low(value), &*self.sink),
        }
    }
}

impl IoApicState {
    /// The register with this index.
    fn read(&self, index: u8) -> Option<u32> {
        Some(match index {
            regs::ID | regs::ARBITRATION => self.id,
            regs::VERSION => regs::VERSION_VALUE,
            _ => {
                let (pin, high) = half_of(index)?;
                low(self.entries[pin].bits() >> if high { 32 } else { 0 })
            }
        })
    }
}

impl Chip {
    fn write(&mut self, index: u8, value: u32, sink: &dyn MsiSink) -> IoOutcome {
        match (index, half_of(index)) {
            (regs::ID, _) => self.state.id = value & regs::ID_MASK,
            (regs::VERSION | regs::ARBITRATION, _) => return IoOutcome::Refused(Refusal::WrongDirection),
            (_, Some((pin, high))) => {
                self.state.entries[pin].write_half(high, value);
                self.publish(pin, sink);
                self.send_level(pin, sink);
            }
            (_, None) => return IoOutcome::Refused(Refusal::NoRegister),
        }
        IoOutcome::Done
    }

    /// Tells the sink what an input sends now. A masked input keeps its last route: an interrupt of its may be in
    /// service, and its end must still be reported.
    fn publish(&mut self, pin: usize, sink: &dyn MsiSink) {
        let entry = self.state.entries[pin];
        let Some(msi) = entry.message().map(|message| message.to_msi()) else {
            return;
        };
        if !entry.is_masked() && self.routes[pin] != Some(msi) {
            self.routes[pin] = Some(msi);
            sink.route(pin.to_le_bytes()[0], msi);
        }
    }

    /// An input changes.
    fn set_level(&mut self, pin: usize, high: bool, sink: &dyn MsiSink) {
        let bit = 1 << pin;
        let rises = high && self.state.levels & bit == 0;
        self.state.levels = if high {
            self.state.levels | bit
        } else {
            self.state.levels & !bit
        };
        let entry = self.state.entries[pin];
        if entry.is_level() {
            self.send_level(pin, sink);
        } else if rises && !entry.is_masked() {
            // An edge on a masked input is lost (data sheet, "interrupt mask").
            send(entry, sink);
        }
    }

    /// Sends a level-triggered interrupt if it is due.
    fn send_level(&mut self, pin: usize, sink: &dyn MsiSink) {
        let asserted = self.state.levels & 1 << pin != 0;
        let entry = &mut self.state.entries[pin];
        if asserted && entry.is_level() && !entry.is_masked() && !entry.remote_irr() {
            entry.set_remote_irr(true);
            send(*entry, sink);
        }
    }

    fn end(&mut self, vector: u8, sink: &dyn MsiSink) {
        for pin in 0..PINS {
            let entry = &mut self.state.entries[pin];
            if entry.remote_irr() && entry.vector() == vector {
                entry.set_remote_irr(false);
                self.send_level(pin, sink);
            }
        }
    }

    fn publish_all(&mut self, sink: &dyn MsiSink) {
        for pin in 0..PINS {
            self.publish(pin, sink);
        }
    }
}

fn send(entry: Entry, sink: &dyn MsiSink) {
    if let Some(message) = entry.message() {
        sink.deliver(message.to_msi());
    }
}

/// The input, and whether it is the high half, of the redirection entry at this index.
fn half_of(index: u8) -> Option<(usize, bool)> {
    let half = index.checked_sub(regs::REDIRECTION)?;
    (half < 2 * regs::PINS).then_some((usize::from(half / 2), half % 2 == 1))
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
const fn low(value: u64) -> u32 {
    value as u32
}

impl fmt::Debug for IoApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoApic")
            .field("state", &lock(&self.chip).state)
            .finish_non_exhaustive()
    }
}

impl Device for IoApic {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        match (offset, op) {
            (regs::SELECT, IoOp::Read) => IoOutcome::Value(lock(&self.chip).state.select.into()),
            (regs::SELECT, IoOp::Write(index)) => {
                lock(&self.chip).state.select = index.to_le_bytes()[0];
                IoOutcome::Done
            }
            (regs::WINDOW, _) => self.register(size, op),
            (regs::EOI, IoOp::Write(vector)) => {
                self.end_of_interrupt(vector.to_le_bytes()[0]);
                IoOutcome::Done
            }
            (regs::EOI, IoOp::Read) => IoOutcome::Refused(Refusal::WrongDirection),
            _ => IoOutcome::Refused(Refusal::NoRegister),
        }
    }

    fn reset(&self) {
        let mut chip = lock(&self.chip);
        // The inputs are not ours.
        chip.state = IoApicState {
            levels: chip.state.levels,
            ..IoApicState::default()
        };
    }
}

impl Persist for IoApic {
    type State = IoApicState;

    fn save(&self) -> Self::State {
        lock(&self.chip).state.clone()
    }

    /// Sends nothing: an interrupt that waits at an asserted input was sent before the state was saved.
    fn restore(&self, state: &Self::State) -> Result<(), BadState> {
        let bad = |field, value: u32, expected| BadState {
            model: "ioapic",
            field,
            value: value.into(),
            expected,
        };
        if state.id & !regs::ID_MASK != 0 {
            return Err(bad("id", state.id, "only bits 27:24"));
        }
        if state.levels >> regs::PINS != 0 {
            return Err(bad("levels", state.levels, "24 inputs"));
        }
        let mut chip = lock(&self.chip);
        chip.state = state.clone();
        chip.publish_all(&*self.sink);
        Ok(())
    }
}

impl IrqSink for IoApic {
    fn set_level(&self, gsi: Gsi, high: bool) {
        if let Ok(pin) = usize::try_from(gsi.0)
            && pin < PINS
        {
            lock(&self.chip).set_level(pin, high, &*self.sink);
        }
    }
}

#[cfg(test)]
mod tests;
