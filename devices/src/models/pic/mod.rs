//! The two 8259A interrupt controllers of a PC, with their edge/level control.
//!
//! An [`IrqSink`] for the ISA interrupts 0 to 15 on one side, an [`IntrSource`] for a CPU on the other.

mod chip;
pub mod regs;

pub use chip::{ChipState, Expected};

use super::bytewise::bytewise;
use crate::access::{IoOp, IoSize};
use crate::bus::{Bus, BusError, Port, RegionId};
use crate::device::{BadState, Device, IoOutcome, Part, Persist, Refusal};
use crate::irq::{Gsi, IntrSource, IrqSink, Waker};
use crate::sync::lock;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Master and slave.
pub struct PicPair {
    chips: Mutex<[ChipState; 2]>,
    /// The level of INTR. Changed under the lock.
    intr: AtomicBool,
    waker: OnceLock<Waker>,
}

impl PicPair {
    /// Controllers as after power-on: nothing masked, and nothing sensible before they are initialised.
    pub fn new() -> Self {
        Self {
            chips: Mutex::default(),
            intr: AtomicBool::new(false),
            waker: OnceLock::new(),
        }
    }

    /// Claims the ports; all or none.
    ///
    /// # Errors
    /// One of them is taken.
    pub fn claim(self: &Arc<Self>, bus: &Bus<Port>) -> Result<[RegionId; 3], BusError<Port>> {
        bus.edit(|draft| {
            let mut ports = |number, first| {
                let part = Arc::new(Part::new(Arc::clone(self), first));
                draft.claim("pic", Port::new(number), regs::PORTS, part)
            };
            Ok([
                ports(regs::MASTER_PORT, 0)?,
                ports(regs::SLAVE_PORT, regs::SLAVE)?,
                ports(regs::ELCR_PORT, regs::ELCR)?,
            ])
        })
    }

    /// Changes the chips, and wakes the CPU if INTR is high then.
    fn change<R>(&self, change: impl FnOnce(&mut [ChipState; 2]) -> R) -> R {
        let (result, intr) = {
            let mut chips = lock(&self.chips);
            let result = change(&mut chips);
            let intr = chips[0].output(cascade(&chips)).is_some();
            self.intr.store(intr, Ordering::Release);
            (result, intr)
        };
        if intr && let Some(wake) = self.waker.get() {
            wake();
        }
        result
    }

    fn byte(&self, offset: u64, op: IoOp) -> IoOutcome {
        let (index, data) = match offset {
            0..regs::ELCR => (usize::from(offset >= regs::SLAVE), offset & 1 == 1),
            regs::ELCR..regs::LEN => return self.triggers(usize::from(offset & 1 == 1), op),
            _ => return IoOutcome::Refused(Refusal::NoRegister),
        };
        self.change(|chips| match op {
            IoOp::Read => {
                let output = chips[index].output(if index == 0 { cascade(chips) } else { 0 });
                IoOutcome::Value(chips[index].read(data, output).into())
            }
            IoOp::Write(byte) => {
                chips[index].write(data, byte.to_le_bytes()[0]);
                IoOutcome::Done
            }
        })
    }

    fn triggers(&self, index: usize, op: IoOp) -> IoOutcome {
        self.change(|chips| match op {
            IoOp::Read => IoOutcome::Value(chips[index].level_triggered.into()),
            IoOp::Write(byte) => {
                chips[index].set_triggers(byte.to_le_bytes()[0], regs::ELCR_MASK[index]);
                IoOutcome::Done
            }
        })
    }
}

/// The bit of the first chip's input at which the second is, if that has an interrupt.
fn cascade(chips: &[ChipState; 2]) -> u8 {
    u8::from(chips[1].output(0).is_some()) << regs::CASCADE
}

impl Default for PicPair {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PicPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PicPair")
            .field("chips", &*lock(&self.chips))
            .finish_non_exhaustive()
    }
}

impl Device for PicPair {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        bytewise(offset, size, op, |offset, op| self.byte(offset, op))
    }

    fn reset(&self) {
        self.change(|chips| {
            // The inputs are not ours.
            *chips = chips.map(|chip| ChipState {
                levels: chip.levels,
                ..ChipState::default()
            });
        });
    }
}

impl Persist for PicPair {
    type State = [ChipState; 2];

    fn save(&self) -> Self::State {
        *lock(&self.chips)
    }

    fn restore(&self, state: &Self::State) -> Result<(), BadState> {
        for (chip, allowed) in state.iter().zip(regs::ELCR_MASK) {
            let bad = |field, value: u8, expected| BadState {
                model: "pic",
                field,
                value: value.into(),
                expected,
            };
            if chip.vectors & 7 != 0 {
                return Err(bad("vectors", chip.vectors, "a multiple of 8"));
            }
            if chip.first > 7 {
                return Err(bad("first", chip.first, "an input, 0 to 7"));
            }
            if chip.level_triggered & !allowed != 0 {
                return Err(bad("level_triggered", chip.level_triggered, "inputs that can be"));
            }
        }
        self.change(|chips| *chips = *state);
        Ok(())
    }
}

impl IrqSink for PicPair {
    fn set_level(&self, gsi: Gsi, high: bool) {
        let Ok(input @ 0..16) = u8::try_from(gsi.0) else {
            return;
        };
        self.change(|chips| chips[usize::from(input >= 8)].set_level(input & 7, high));
    }
}

impl IntrSource for PicPair {
    fn is_pending(&self) -> bool {
        self.intr.load(Ordering::Acquire)
    }

    fn acknowledge(&self) -> u8 {
        self.change(|chips| match chips[0].output(cascade(chips)) {
            Some(regs::CASCADE) if chips[0].requests & 1 << regs::CASCADE == 0 => {
                chips[0].acknowledge(regs::CASCADE);
                match chips[1].output(0) {
                    Some(input) => chips[1].acknowledge(input),
                    None => chips[1].vectors | regs::SPURIOUS,
                }
            }
            Some(input) => chips[0].acknowledge(input),
            None => chips[0].vectors | regs::SPURIOUS,
        })
    }

    fn set_waker(&self, waker: Waker) {
        // A machine has one CPU that takes these interrupts; a second one is not woken.
        let _ = self.waker.set(waker);
    }
}

#[cfg(test)]
mod tests;
