//! The PC's CMOS: MC146818 real-time clock and 114 bytes of battery-backed RAM, in which firmware leaves the memory size.
//!
//! The time is the clock's, plus an offset that the guest makes when it sets the time. Alarm and periodic interrupts are
//! not generated; their registers can be written and read.

mod calendar;
pub mod regs;

use super::bytewise::bytewise;
use crate::access::{IoOp, IoSize};
use crate::clock::Clock;
use crate::device::{BadState, Device, IoOutcome, Persist, Refusal};
use crate::sync::lock;
use calendar::DateTime;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long before the second changes the update-in-progress flag rises (data sheet, "update cycle": 244 µs).
const UPDATE_WARNING: Duration = Duration::from_micros(244);
const SECOND: Duration = Duration::from_secs(1);
/// The guest's time stays this close to 1970 in seconds (a million years), so that nothing a guest does overflows.
const TIME_LIMIT: i64 = 1 << 45;

/// How much RAM the guest has, for the registers that firmware would have filled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemorySize {
    /// Bytes of RAM below 4 GiB, counted from 0 (the hole at 640 KiB included).
    pub below_4g: u64,
    /// Bytes of RAM above 4 GiB.
    pub above_4g: u64,
}

/// The device.
pub struct Cmos {
    clock: Arc<dyn Clock>,
    memory: MemorySize,
    state: Mutex<CmosState>,
}

/// The state of the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CmosState {
    /// The index register, without the NMI bit.
    pub index: u8,
    /// The 128 registers as last written. Those of the time and registers C and D are not read from here.
    pub registers: Vec<u8>,
    /// The guest's time less the clock's, in seconds.
    pub offset_seconds: i64,
    /// The time in seconds since 1970 while the guest is setting it (`B_SET`).
    pub stopped_at: Option<i64>,
}

impl Cmos {
    /// A CMOS with the time of `clock` and the registers for this much memory.
    pub fn new(clock: Arc<dyn Clock>, memory: MemorySize) -> Self {
        Self {
            clock,
            memory,
            state: Mutex::new(CmosState::at_reset(memory)),
        }
    }
}

impl CmosState {
    fn at_reset(memory: MemorySize) -> Self {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        let mut registers = vec![0; regs::REGISTERS];
        let mut put = |first: u8, bytes: usize, value: u64| {
            let most = (1 << (8 * bytes)) - 1;
            let first = usize::from(first);
            registers[first..first + bytes].copy_from_slice(&value.min(most).to_le_bytes()[..bytes]);
        };
        put(regs::A, 1, regs::A_AT_RESET.into());
        put(regs::B, 1, regs::B_AT_RESET.into());
        put(regs::BASE_MEMORY, 2, 640);
        let extended = memory.below_4g.saturating_sub(MIB) / KIB;
        put(regs::EXTENDED_MEMORY, 2, extended);
        put(regs::EXTENDED_MEMORY_2, 2, extended);
        put(
            regs::MEMORY_ABOVE_16M,
            2,
            memory.below_4g.saturating_sub(16 * MIB) / (64 * KIB),
        );
        put(regs::MEMORY_ABOVE_4G, 3, memory.above_4g / (64 * KIB));
        Self {
            index: 0,
            registers,
            offset_seconds: 0,
            stopped_at: None,
        }
    }

    fn mode(&self) -> u8 {
        self.registers[usize::from(regs::B)]
    }

    fn time(&self, now: Duration) -> DateTime {
        DateTime::from_unix(
            self.stopped_at
                .unwrap_or_else(|| within_limit(seconds(now) + self.offset_seconds)),
        )
    }

    fn set_time(&mut self, now: Duration, time: DateTime) {
        let time = within_limit(time.to_unix());
        if self.stopped_at.is_some() {
            self.stopped_at = Some(time);
        } else {
            self.offset_seconds = within_limit(time - seconds(now));
        }
    }

    fn read(&self, now: Duration) -> u8 {
        let time = self.time(now);
        let number = match self.index {
            regs::SECONDS => time.second,
            regs::MINUTES => time.minute,
            regs::HOURS => return self.encode_hour(time.hour),
            regs::WEEKDAY => time.weekday(),
            regs::DAY => time.day,
            regs::MONTH => time.month,
            regs::YEAR => percent(time.year),
            regs::CENTURY => percent(time.year.div_euclid(100)),
            regs::A => return self.registers[usize::from(regs::A)] | self.update_flag(now),
            regs::C => return 0,
            regs::D => return regs::D_VALID,
            index => return self.registers[usize::from(index & regs::INDEX_MASK)],
        };
        self.encode(number)
    }

    fn write(&mut self, now: Duration, value: u8) {
        let mut time = self.time(now);
        let number = self.decode(value);
        match self.index {
            regs::SECONDS => time.second = number,
            regs::MINUTES => time.minute = number,
            regs::HOURS => time.hour = self.decode_hour(value),
            regs::DAY => time.day = number,
            regs::MONTH => time.month = number,
            regs::YEAR => time.year = time.year.div_euclid(100) * 100 + i64::from(number % 100),
            regs::CENTURY => time.year = i64::from(number) * 100 + time.year.rem_euclid(100),
            // The day of the week follows from the date; C and D are read-only.
            regs::WEEKDAY | regs::C | regs::D => return,
            regs::A => {
                self.registers[usize::from(regs::A)] = value & !regs::A_UPDATE_IN_PROGRESS;
                return;
            }
            regs::B => return self.write_mode(now, value),
            index => {
                self.registers[usize::from(index & regs::INDEX_MASK)] = value;
                return;
            }
        }
        self.set_time(now, time);
    }

    fn write_mode(&mut self, now: Duration, value: u8) {
        self.registers[usize::from(regs::B)] = value;
        let set = value & regs::B_SET != 0;
        match self.stopped_at {
            None if set => self.stopped_at = Some(self.time(now).to_unix()),
            Some(at) if !set => {
                self.stopped_at = None;
                self.offset_seconds = within_limit(at - seconds(now));
            }
            _ => {}
        }
    }

    fn update_flag(&self, now: Duration) -> u8 {
        let within_second = Duration::from_nanos(now.subsec_nanos().into());
        let updating = self.stopped_at.is_none() && within_second + UPDATE_WARNING >= SECOND;
        if updating { regs::A_UPDATE_IN_PROGRESS } else { 0 }
    }

    fn encode(&self, number: u8) -> u8 {
        if self.mode() & regs::B_BINARY != 0 {
            number
        } else {
            ((number / 10) << 4) | (number % 10)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.mode() & regs::B_BINARY != 0 {
            value
        } else {
            (value >> 4) * 10 + (value & 0xf)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.mode() & regs::B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let twelve = (hour + 11) % 12 + 1;
        self.encode(twelve) | if hour >= 12 { regs::HOURS_PM } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.mode() & regs::B_24_HOURS != 0 {
            return self.decode(value);
        }
        let afternoon = if value & regs::HOURS_PM != 0 { 12 } else { 0 };
        self.decode(value & !regs::HOURS_PM) % 12 + afternoon
    }
}

/// Whole seconds since 1970 of the clock.
fn seconds(now: Duration) -> i64 {
    i64::try_from(now.as_secs()).map_or(TIME_LIMIT, within_limit)
}

fn within_limit(seconds: i64) -> i64 {
    seconds.clamp(-TIME_LIMIT, TIME_LIMIT)
}

/// The last two decimal digits.
fn percent(number: i64) -> u8 {
    u8::try_from(number.rem_euclid(100)).unwrap_or_default()
}

impl Device for Cmos {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        let now = self.clock.unix_time();
        let mut state = lock(&self.state);
        bytewise(offset, size, op, |offset, op| match (offset, op) {
            // The index of a real one is write-only; reading it back is a help that chipsets give.
            (regs::INDEX, IoOp::Read) => IoOutcome::Value(state.index.into()),
            (regs::INDEX, IoOp::Write(value)) => {
                state.index = value.to_le_bytes()[0] & regs::INDEX_MASK;
                IoOutcome::Done
            }
            (regs::DATA, IoOp::Read) => IoOutcome::Value(state.read(now).into()),
            (regs::DATA, IoOp::Write(value)) => {
                state.write(now, value.to_le_bytes()[0]);
                IoOutcome::Done
            }
            _ => IoOutcome::Refused(Refusal::NoRegister),
        })
    }

    /// The time that the guest set is forgotten too: after a reset it is the clock's.
    fn reset(&self) {
        let Self {
            clock: _,
            memory,
            state,
        } = self;
        *lock(state) = CmosState::at_reset(*memory);
    }
}

impl Persist for Cmos {
    type State = CmosState;

    fn save(&self) -> Self::State {
        lock(&self.state).clone()
    }

    fn restore(&self, state: &Self::State) -> Result<(), BadState> {
        let CmosState {
            index,
            registers,
            offset_seconds,
            stopped_at,
        } = state;
        let bad = |field, value, expected| {
            Err(BadState {
                model: "cmos",
                field,
                value,
                expected,
            })
        };
        if *index > regs::INDEX_MASK {
            return bad("index", (*index).into(), "at most 0x7f");
        }
        if registers.len() != regs::REGISTERS {
            return bad("registers.len", registers.len() as u64, "128 registers");
        }
        for (field, seconds) in [
            ("offset_seconds", *offset_seconds),
            ("stopped_at", stopped_at.unwrap_or_default()),
        ] {
            if seconds != within_limit(seconds) {
                return bad(field, seconds.cast_unsigned(), "at most 2^45 in either direction");
            }
        }
        *lock(&self.state) = state.clone();
        Ok(())
    }
}

impl fmt::Debug for Cmos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cmos")
            .field("memory", &self.memory)
            .field("state", &lock(&self.state))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
