//! i8042, the PS/2 controller: as much of it as an operating system's probe needs to come to its end quickly, and the
//! reset line.
//!
//! No keyboard and no mouse are attached: bytes for them vanish, and there are no interrupts.

pub mod regs;

use super::bytewise::bytewise;
use crate::access::{IoOp, IoSize};
use crate::bus::{Bus, BusError, Port, RegionId};
use crate::device::{BadState, Device, Effect, IoOutcome, Part, Persist, Refusal};
use crate::sync::lock;
use std::sync::{Arc, Mutex};

/// The controller.
#[derive(Debug)]
pub struct I8042 {
    state: Mutex<I8042State>,
}

/// The state of the controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct I8042State {
    /// The controller command byte.
    pub config: u8,
    /// The output port (A20 and reset lines).
    pub output_port: u8,
    /// The byte that waits at the data port.
    pub output: Option<u8>,
    /// The last byte read at the data port: it can be read again.
    pub last_output: u8,
    /// The command whose parameter is awaited.
    pub pending: Option<u8>,
    /// Whether the last write was to the command port.
    pub last_was_command: bool,
}

impl Default for I8042State {
    fn default() -> Self {
        Self {
            config: regs::CONFIG_AT_RESET,
            output_port: regs::OUTPUT_NOT_RESET | regs::OUTPUT_A20,
            output: None,
            last_output: 0,
            pending: None,
            last_was_command: false,
        }
    }
}

impl I8042 {
    /// A controller as after power-on.
    pub fn new() -> Self {
        Self {
            state: Mutex::new(I8042State::default()),
        }
    }

    /// Claims the data and the command port; both or none.
    ///
    /// # Errors
    /// One of them is taken.
    pub fn claim(self: &Arc<Self>, bus: &Bus<Port>) -> Result<[RegionId; 2], BusError<Port>> {
        bus.edit(|draft| {
            let mut port = |number, first| {
                draft.claim(
                    "i8042",
                    Port::new(number),
                    1,
                    Arc::new(Part::new(Arc::clone(self), first)),
                )
            };
            Ok([
                port(regs::DATA_PORT, regs::DATA)?,
                port(regs::COMMAND_PORT, regs::COMMAND)?,
            ])
        })
    }
}

impl Default for I8042 {
    fn default() -> Self {
        Self::new()
    }
}

impl I8042State {
    fn read_data(&mut self) -> u8 {
        if let Some(byte) = self.output.take() {
            self.last_output = byte;
        }
        self.last_output
    }

    fn status(self) -> u8 {
        let flag = |set, bit| if set { bit } else { 0 };
        regs::STATUS_UNLOCKED
            | flag(self.output.is_some(), regs::STATUS_OUTPUT_FULL)
            | flag(self.config & regs::CONFIG_SYSTEM != 0, regs::STATUS_SYSTEM)
            | flag(self.last_was_command, regs::STATUS_COMMAND)
    }

    fn write_data(&mut self, byte: u8) -> IoOutcome {
        self.last_was_command = false;
        match self.pending.take() {
            Some(regs::CMD_WRITE_CONFIG) => self.config = byte,
            Some(regs::CMD_WRITE_OUTPUT_PORT) => {
                self.output_port = byte | regs::OUTPUT_NOT_RESET;
                if byte & regs::OUTPUT_NOT_RESET == 0 {
                    return IoOutcome::effect(Effect::Reset);
                }
            }
            // The auxiliary loop echoes as if from the keyboard, by which a driver sees at once that there is no
            // auxiliary interface.
            Some(regs::CMD_KEYBOARD_LOOP | regs::CMD_AUX_LOOP) => self.output = Some(byte),
            // For the keyboard or the auxiliary device, which aren't there.
            _ => {}
        }
        IoOutcome::Done
    }

    fn command(&mut self, command: u8) -> IoOutcome {
        self.last_was_command = true;
        self.pending = None;
        match command {
            regs::CMD_READ_CONFIG => self.output = Some(self.config),
            regs::CMD_DISABLE_AUX => self.config |= regs::CONFIG_AUX_DISABLED,
            regs::CMD_ENABLE_AUX => self.config &= !regs::CONFIG_AUX_DISABLED,
            regs::CMD_TEST_AUX => self.output = Some(regs::TEST_CLOCK_LOW),
            regs::CMD_SELF_TEST => {
                self.config |= regs::CONFIG_SYSTEM;
                self.output = Some(regs::SELF_TEST_PASSED);
            }
            regs::CMD_TEST_KEYBOARD => self.output = Some(regs::TEST_OK),
            regs::CMD_DISABLE_KEYBOARD => self.config |= regs::CONFIG_KEYBOARD_DISABLED,
            regs::CMD_ENABLE_KEYBOARD => self.config &= !regs::CONFIG_KEYBOARD_DISABLED,
            regs::CMD_READ_OUTPUT_PORT => self.output = Some(self.output_port),
            regs::CMD_WRITE_CONFIG
            | regs::CMD_WRITE_OUTPUT_PORT
            | regs::CMD_KEYBOARD_LOOP
            | regs::CMD_AUX_LOOP
            | regs::CMD_WRITE_AUX => self.pending = Some(command),
            regs::CMD_PULSE_FIRST.. if command & regs::OUTPUT_NOT_RESET == 0 => {
                return IoOutcome::effect(Effect::Reset);
            }
            // Unknown commands are ignored, as by the controller.
            _ => {}
        }
        IoOutcome::Done
    }
}

impl Device for I8042 {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        let mut state = lock(&self.state);
        bytewise(offset, size, op, |offset, op| match (offset, op) {
            (regs::DATA, IoOp::Read) => IoOutcome::Value(state.read_data().into()),
            (regs::DATA, IoOp::Write(value)) => state.write_data(value.to_le_bytes()[0]),
            (regs::COMMAND, IoOp::Read) => IoOutcome::Value(state.status().into()),
            (regs::COMMAND, IoOp::Write(value)) => state.command(value.to_le_bytes()[0]),
            _ => IoOutcome::Refused(Refusal::NoRegister),
        })
    }

    fn reset(&self) {
        *lock(&self.state) = I8042State::default();
    }
}

impl Persist for I8042 {
    type State = I8042State;

    fn save(&self) -> Self::State {
        *lock(&self.state)
    }

    fn restore(&self, state: &Self::State) -> Result<(), BadState> {
        *lock(&self.state) = *state;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
