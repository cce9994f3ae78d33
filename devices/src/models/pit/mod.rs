//! The 8254 interval timer of a PC: three counters, of which the first interrupts and the third can be watched at port
//! 0x61.
//!
//! Somebody has to call [`Pit::tick`] when it says, so that the first counter's interrupts come in time.

mod counter;
pub mod regs;

pub use counter::CounterState;

use super::bytewise::bytewise;
use crate::access::{IoOp, IoSize};
use crate::bus::{Bus, BusError, Port, RegionId};
use crate::clock::Clock;
use crate::device::{BadState, Device, IoOutcome, Part, Persist, Refusal};
use crate::irq::{IrqLine, Waker};
use crate::sync::lock;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// The timer.
pub struct Pit {
    clock: Arc<dyn Clock>,
    line: IrqLine,
    inner: Mutex<Inner>,
    waker: OnceLock<Waker>,
}

struct Inner {
    state: PitState,
    /// Ticks of the clock up to which the counters have come.
    now: u64,
}

/// The state of the timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PitState {
    /// The counters.
    pub counters: [CounterState; 3],
    /// What was written to port 0x61.
    pub control: u8,
    /// Whether the refresh bit there is set; it toggles with each read.
    pub refresh: bool,
}

impl PitState {
    const NEW: Self = Self {
        counters: [
            CounterState::new(true),
            CounterState::new(true),
            CounterState::new(false),
        ],
        control: 0,
        refresh: false,
    };
}

impl Pit {
    /// A timer whose first counter pulses `line`.
    pub fn new(clock: Arc<dyn Clock>, line: IrqLine) -> Self {
        let now = ticks(clock.monotonic());
        Self {
            clock,
            line,
            inner: Mutex::new(Inner {
                state: PitState::NEW,
                now,
            }),
            waker: OnceLock::new(),
        }
    }

    /// Claims the ports; all or none.
    ///
    /// # Errors
    /// One of them is taken.
    pub fn claim(self: &Arc<Self>, bus: &Bus<Port>) -> Result<[RegionId; 2], BusError<Port>> {
        bus.edit(|draft| {
            let mut ports = |number, first, len| {
                let part = Arc::new(Part::new(Arc::clone(self), first));
                draft.claim("pit", Port::new(number), len, part)
            };
            Ok([ports(regs::PORT, 0, regs::LEN)?, ports(regs::GATE_PORT, regs::GATE, 1)?])
        })
    }

    /// Who is to be woken when the first counter was programmed, because [`Pit::tick`] has to be called. To be set once.
    pub fn set_waker(&self, waker: Waker) {
        // A second one would have nothing to do.
        let _ = self.waker.set(waker);
    }

    /// Interrupts if it is time, and says how long it is until the next time; `None` if there is none. Interrupts for
    /// which it came too late are one.
    pub fn tick(&self) -> Option<Duration> {
        let (due, wait) = {
            let mut inner = self.present();
            let [first, ..] = &mut inner.state.counters;
            (first.take_edges(), first.until_edge())
        };
        if due {
            self.line.pulse();
        }
        // A count is at most 0x10000 ticks. Rounded up, or it would be asked too early.
        wait.map(|ticks| Duration::from_nanos((ticks * 1_000_000_000).div_ceil(regs::HZ)))
    }

    /// The state as of now.
    fn present(&self) -> std::sync::MutexGuard<'_, Inner> {
        let mut inner = lock(&self.inner);
        let now = ticks(self.clock.monotonic());
        let passed = now.saturating_sub(inner.now);
        for counter in &mut inner.state.counters {
            counter.advance(passed);
        }
        inner.now = inner.now.max(now);
        inner
    }

    fn byte(&self, offset: u64, op: IoOp) -> IoOutcome {
        let mut inner = self.present();
        let state = &mut inner.state;
        match (offset, op) {
            (0..regs::CONTROL, IoOp::Read) => IoOutcome::Value(state.counter(offset).read().into()),
            (0..regs::CONTROL, IoOp::Write(byte)) => {
                state.counter(offset).write(byte.to_le_bytes()[0]);
                drop(inner);
                self.programmed();
                IoOutcome::Done
            }
            (regs::CONTROL, IoOp::Write(byte)) => {
                let byte = byte.to_le_bytes()[0];
                match byte >> 6 {
                    regs::READ_BACK => state.read_back(byte),
                    number => state.counters[usize::from(number)].control(byte),
                }
                IoOutcome::Done
            }
            (regs::GATE, IoOp::Read) => IoOutcome::Value(state.read_gate().into()),
            (regs::GATE, IoOp::Write(byte)) => {
                state.control = byte.to_le_bytes()[0] & regs::WRITABLE;
                state.counters[2].set_gate(state.control & regs::GATE_2 != 0);
                IoOutcome::Done
            }
            (regs::CONTROL, IoOp::Read) => IoOutcome::Refused(Refusal::WrongDirection),
            _ => IoOutcome::Refused(Refusal::NoRegister),
        }
    }

    fn programmed(&self) {
        if let Some(wake) = self.waker.get() {
            wake();
        }
    }
}

impl PitState {
    /// The counter at an offset; the last one for those beyond.
    fn counter(&mut self, offset: u64) -> &mut CounterState {
        let [first, second, third] = &mut self.counters;
        match offset {
            0 => first,
            1 => second,
            _ => third,
        }
    }

    fn read_back(&mut self, byte: u8) {
        for (number, counter) in self.counters.iter_mut().enumerate() {
            if byte >> (number + 1) & 1 == 0 {
                continue;
            }
            if byte & regs::NO_COUNT == 0 {
                counter.latch_count();
            }
            if byte & regs::NO_STATUS == 0 {
                counter.latch_status();
            }
        }
    }

    fn read_gate(&mut self) -> u8 {
        self.refresh = !self.refresh;
        let flag = |set, bit| if set { bit } else { 0 };
        self.control | flag(self.refresh, regs::REFRESH) | flag(self.counters[2].output(), regs::OUT_2)
    }
}

/// Ticks of the input clock in a time.
fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(regs::HZ) / 1_000_000_000).unwrap_or(u64::MAX)
}

impl fmt::Debug for Pit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pit")
            .field("state", &lock(&self.inner).state)
            .finish_non_exhaustive()
    }
}

impl Device for Pit {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        bytewise(offset, size, op, |offset, op| self.byte(offset, op))
    }

    fn reset(&self) {
        self.present().state = PitState::NEW;
    }
}

impl Persist for Pit {
    type State = PitState;

    fn save(&self) -> Self::State {
        self.present().state
    }

    fn restore(&self, state: &Self::State) -> Result<(), BadState> {
        for counter in &state.counters {
            let bad = |field, value: u32, expected| BadState {
                model: "pit",
                field,
                value: value.into(),
                expected,
            };
            if counter.mode > 5 {
                return Err(bad("mode", counter.mode.into(), "0 to 5"));
            }
            if !(1..=3).contains(&counter.access) {
                return Err(bad("access", counter.access.into(), "1 to 3"));
            }
            if !(1..=0x1_0000).contains(&counter.reload) {
                return Err(bad("reload", counter.reload, "1 to 0x10000"));
            }
        }
        self.present().state = *state;
        self.programmed();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
