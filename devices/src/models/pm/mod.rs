//! Power off and reset: the sleep registers and the reset register of a hardware-reduced ACPI machine, and the reset
//! control register that PC chipsets have had since the PIIX.
//!
//! The ACPI tables must name these registers: `SLEEP_CONTROL_REG`, `SLEEP_STATUS_REG`, `RESET_REG` and `RESET_VALUE` of
//! the FADT, and the `\_S5` object, from [`regs`].

use super::bytewise::bytewise;
use crate::access::{IoOp, IoSize};
use crate::device::{BadState, Device, Effect, IoOutcome, Persist, Refusal};
use std::sync::atomic::{AtomicU8, Ordering};

/// The registers: ACPI specification 6.5, sections 4.8.3.6 (reset) and 4.8.3.7 (sleep control and status); Intel PIIX4
/// data sheet (290562), section "RCR - reset control register". The port numbers but the last are our own choice.
pub mod regs {
    /// First port of [`super::PowerControl`].
    pub const PORT: u16 = 0x600;
    /// Number of ports of [`super::PowerControl`].
    pub const LEN: u64 = 5;
    /// Sleep control register: [`SLP_EN`] and [`SLP_TYP_SHIFT`].
    pub const SLEEP_CONTROL_PORT: u16 = 0x600;
    /// Sleep status register: [`WAK_STS`].
    pub const SLEEP_STATUS_PORT: u16 = 0x601;
    /// Reset register: a write of [`RESET_VALUE`] resets the machine.
    pub const RESET_PORT: u16 = 0x604;
    /// Reset control register of [`super::ResetControl`].
    pub const RESET_CONTROL_PORT: u16 = 0xcf9;

    /// What to write to [`RESET_PORT`].
    pub const RESET_VALUE: u8 = 1;
    /// Sleep type of the soft-off state, for `\_S5` and for the SLP_TYP field.
    pub const SLP_TYP_S5: u8 = 5;
    /// Lowest bit of the three-bit SLP_TYP field in the sleep control register.
    pub const SLP_TYP_SHIFT: u8 = 2;
    /// Width of the SLP_TYP field, as a mask of its value.
    pub const SLP_TYP_MASK: u8 = 7;
    /// In the sleep control register, write-only: enter the state in SLP_TYP.
    pub const SLP_EN: u8 = 1 << 5;
    /// In the sleep status register: the machine woke up. Cleared by writing 1. Always 0 here, as nothing sleeps.
    pub const WAK_STS: u8 = 1 << 7;
    /// The byte that powers the machine off, written to [`SLEEP_CONTROL_PORT`].
    pub const POWER_OFF: u8 = SLP_TYP_S5 << SLP_TYP_SHIFT | SLP_EN;

    /// In the reset control register: which reset, not how; any other bits are ignored.
    pub const SYSTEM_RESET: u8 = 1 << 1;
    /// In the reset control register: a change from 0 to 1 resets.
    pub const RESET_CPU: u8 = 1 << 2;
    /// In the reset control register: power-cycle the machine as well.
    pub const FULL_RESET: u8 = 1 << 3;
    /// The bits of the reset control register that can be read back.
    pub const RESET_CONTROL_BITS: u8 = SYSTEM_RESET | RESET_CPU | FULL_RESET;
}

/// Sleep control, sleep status and reset register.
#[derive(Default, Debug)]
pub struct PowerControl {
    /// The SLP_TYP field as last written, in place.
    sleep_type: AtomicU8,
}

/// The state of a [`PowerControl`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PowerControlState {
    /// The sleep control register as it reads: the SLP_TYP field in place.
    pub sleep_control: u8,
}

/// What the sleep control register reads as: SLP_EN is write-only.
const SLEEP_TYPE_BITS: u8 = regs::SLP_TYP_MASK << regs::SLP_TYP_SHIFT;

impl PowerControl {
    /// A device whose registers are zero.
    pub fn new() -> Self {
        Self::default()
    }

    fn write(&self, offset: u64, value: u8) -> IoOutcome {
        const SLEEP_CONTROL: u64 = (regs::SLEEP_CONTROL_PORT - regs::PORT) as u64;
        const SLEEP_STATUS: u64 = (regs::SLEEP_STATUS_PORT - regs::PORT) as u64;
        const RESET: u64 = (regs::RESET_PORT - regs::PORT) as u64;
        match offset {
            SLEEP_CONTROL => {
                self.sleep_type.store(value & SLEEP_TYPE_BITS, Ordering::SeqCst);
                // No other sleep state is in the ACPI tables, so entering one is no more than a write.
                if value & (SLEEP_TYPE_BITS | regs::SLP_EN) == regs::POWER_OFF {
                    IoOutcome::effect(Effect::PowerOff)
                } else {
                    IoOutcome::Done
                }
            }
            SLEEP_STATUS => IoOutcome::Done,
            RESET if value == regs::RESET_VALUE => IoOutcome::effect(Effect::Reset),
            RESET => IoOutcome::Done,
            _ => IoOutcome::Refused(Refusal::NoRegister),
        }
    }
}

impl Device for PowerControl {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        bytewise(offset, size, op, |offset, op| match op {
            IoOp::Read => match offset {
                0 => IoOutcome::Value(self.sleep_type.load(Ordering::SeqCst).into()),
                1 | 4 => IoOutcome::Value(0),
                _ => IoOutcome::Refused(Refusal::NoRegister),
            },
            IoOp::Write(value) => self.write(offset, value.to_le_bytes()[0]),
        })
    }

    fn reset(&self) {
        let Self { sleep_type } = self;
        sleep_type.store(0, Ordering::SeqCst);
    }
}

impl Persist for PowerControl {
    type State = PowerControlState;

    fn save(&self) -> Self::State {
        let Self { sleep_type } = self;
        PowerControlState {
            sleep_control: sleep_type.load(Ordering::SeqCst),
        }
    }

    fn restore(&self, state: &Self::State) -> Result<(), BadState> {
        let PowerControlState { sleep_control } = *state;
        if sleep_control & !SLEEP_TYPE_BITS != 0 {
            return Err(BadState {
                model: "pm",
                field: "sleep_control",
                value: sleep_control.into(),
                expected: "no bits but SLP_TYP",
            });
        }
        self.sleep_type.store(sleep_control, Ordering::SeqCst);
        Ok(())
    }
}

/// The reset control register at port 0xcf9.
#[derive(Default, Debug)]
pub struct ResetControl {
    value: AtomicU8,
}

impl ResetControl {
    /// Number of ports.
    pub const LEN: u64 = 1;

    /// A device whose register is zero.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Device for ResetControl {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        bytewise(offset, size, op, |_, op| match op {
            IoOp::Read => IoOutcome::Value(self.value.load(Ordering::SeqCst).into()),
            IoOp::Write(value) => {
                let new = value.to_le_bytes()[0] & regs::RESET_CONTROL_BITS;
                let old = self.value.swap(new, Ordering::SeqCst);
                if new & !old & regs::RESET_CPU != 0 {
                    IoOutcome::effect(Effect::Reset)
                } else {
                    IoOutcome::Done
                }
            }
        })
    }

    fn reset(&self) {
        let Self { value } = self;
        value.store(0, Ordering::SeqCst);
    }
}

impl Persist for ResetControl {
    /// The register.
    type State = u8;

    fn save(&self) -> Self::State {
        let Self { value } = self;
        value.load(Ordering::SeqCst)
    }

    fn restore(&self, state: &Self::State) -> Result<(), BadState> {
        if state & !regs::RESET_CONTROL_BITS != 0 {
            let value = u64::from(*state);
            return Err(BadState {
                model: "pm",
                field: "reset_control",
                value,
                expected: "no bits but 1 to 3",
            });
        }
        self.value.store(*state, Ordering::SeqCst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Conformance;

    #[test]
    fn conforms() {
        Conformance::of("pm", regs::LEN, PowerControl::new)
            .reads_are_quiet_in(0..regs::LEN)
            .check();
        Conformance::of("reset control", ResetControl::LEN, ResetControl::new)
            .reads_are_quiet_in(0..1)
            .check();
    }

    #[test]
    fn s5_powers_off_and_other_states_do_nothing() {
        let device = PowerControl::new();
        for value in 0..=255u8 {
            let outcome = device.access(0, IoSize::B1, IoOp::Write(value.into()));
            let off = value & 0x3c == 0x34;
            assert_eq!(outcome == IoOutcome::effect(Effect::PowerOff), off, "{value:#x}");
        }
        assert_eq!(regs::POWER_OFF, 0x34);
    }

    #[test]
    fn reset_register_takes_its_value_only() {
        let device = PowerControl::new();
        assert_eq!(
            device.access(4, IoSize::B1, IoOp::Write(1)),
            IoOutcome::effect(Effect::Reset)
        );
        assert_eq!(device.access(4, IoSize::B1, IoOp::Write(2)), IoOutcome::Done);
    }

    #[test]
    fn reset_control_resets_on_the_rise_of_its_bit() {
        let device = ResetControl::new();
        let write = |value| device.access(0, IoSize::B1, IoOp::Write(value));
        assert_eq!(write(0x02), IoOutcome::Done);
        assert_eq!(write(0x06), IoOutcome::effect(Effect::Reset));
        assert_eq!(write(0x0e), IoOutcome::Done, "already 1");
        write(0);
        assert_eq!(write(0x0e), IoOutcome::effect(Effect::Reset));
    }
}
