//! FERR# and IGNNE#: how a PC reports x87 errors by interrupt 13, to software that leaves CR0.NE clear.
//!
//! The CPU's FERR# sets a flip-flop, which is the interrupt. The handler's write to port 0xf0 clears it and, while FERR#
//! is still low, has IGNNE# tell the CPU to go on with x87 instructions all the same. When the handler has cleared the
//! error, FERR# goes up and IGNNE# with it.

use super::bytewise::bytewise;
use crate::access::{IoOp, IoSize};
use crate::bus::{Bus, BusError, Port, RegionId};
use crate::device::{BadState, Device, IoOutcome, Persist};
use crate::irq::IrqLine;
use crate::sync::lock;
use std::sync::{Arc, Mutex};

/// The ports (Intel 82371AB (PIIX4) data sheet, "Coprocessor error register"; IBM PC AT technical reference, I/O map).
pub mod regs {
    /// First port: a write lets go of the interrupt and asserts IGNNE# as long as there is an error.
    pub const PORT: u16 = 0xf0;
    /// A write resets the logic without asserting IGNNE#. (That of an AT reset the 80287 by it, too.)
    pub const RESET: u64 = 1;
    /// Number of ports.
    pub const LEN: u64 = 2;
    /// The interrupt.
    pub const IRQ: u32 = 13;
}

/// The logic between one CPU and the interrupt controllers.
pub struct FpuErrorLogic {
    line: IrqLine,
    state: Mutex<FpuErrorState>,
}

/// The state of a [`FpuErrorLogic`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FpuErrorState {
    /// FERR# is asserted.
    pub error: bool,
    /// The interrupt is requested.
    pub requested: bool,
    /// IGNNE# is asserted.
    pub ignored: bool,
}

impl FpuErrorLogic {
    /// No error; `line` is the interrupt's.
    pub fn new(line: IrqLine) -> Self {
        Self {
            line,
            state: Mutex::default(),
        }
    }

    /// Claims the ports.
    ///
    /// # Errors
    /// One of them is taken.
    pub fn claim(self: &Arc<Self>, bus: &Bus<Port>) -> Result<RegionId, BusError<Port>> {
        bus.claim("fpu errors", Port::new(regs::PORT), regs::LEN, Arc::clone(self) as _)
    }

    /// The CPU asserts FERR# or lets go of it. Whether IGNNE# is asserted then.
    pub fn set_error(&self, error: bool) -> bool {
        let ignored = self.change(|state| {
            state.requested |= error && !state.error;
            state.ignored &= error;
            state.error = error;
        });
        self.line.update(|| lock(&self.state).requested);
        ignored
    }

    /// Whether IGNNE# is asserted after a change.
    fn change(&self, change: impl FnOnce(&mut FpuErrorState)) -> bool {
        let mut state = lock(&self.state);
        change(&mut state);
        state.ignored
    }
}

impl Device for FpuErrorLogic {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        bytewise(offset, size, op, |offset, op| match op {
            IoOp::Read => IoOutcome::Value(0xff),
            IoOp::Write(_) => {
                self.change(|state| {
                    state.requested = false;
                    state.ignored = state.error && offset != regs::RESET;
                });
                self.line.update(|| lock(&self.state).requested);
                IoOutcome::Done
            }
        })
    }

    fn reset(&self) {
        self.change(|state| *state = FpuErrorState::default());
        self.line.update(|| lock(&self.state).requested);
    }
}

impl Persist for FpuErrorLogic {
    type State = FpuErrorState;

    fn save(&self) -> Self::State {
        *lock(&self.state)
    }

    fn restore(&self, state: &Self::State) -> Result<(), BadState> {
        if state.ignored && !state.error {
            return Err(BadState {
                model: "fpu_error",
                field: "ignored",
                value: 1,
                expected: "IGNNE# only during an error",
            });
        }
        self.change(|present| *present = *state);
        self.line.update(|| lock(&self.state).requested);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
