//! From the terminal to the guest's serial port, with our own commands picked out.
//!
//! Only for a terminal: what is typed is always read, however busy or dead the guest is, because `Ctrl-a x` may be
//! among it. What the guest has no room for waits here, up to a limit; beyond it typing is lost, as on a real line.
//! Pipes and files go through [`umbra_devices::models::serial::SerialInput`], which loses nothing.

use crate::terminal::keys::{Command, Key, Keys};
use std::collections::VecDeque;
use std::io;
use umbra_devices::models::serial::Serial;

/// How many typed bytes wait for the guest.
const LIMIT: usize = 4096;

/// Typed input on its way.
#[derive(Debug, Default)]
pub struct ConsoleInput {
    keys: Keys,
    waiting: VecDeque<u8>,
}

impl ConsoleInput {
    /// Reads what was typed and gives the guest its part. Returns our part, or `None` when the terminal is gone.
    ///
    /// # Errors
    /// The terminal can't be read (we are in the background).
    pub fn read(&mut self, mut terminal: impl io::Read, serial: &Serial) -> io::Result<Option<Vec<Command>>> {
        let mut bytes = [0; 256];
        let read = match terminal.read(&mut bytes) {
            Ok(0) => return Ok(None),
            Ok(read) => read,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => 0,
            Err(error) => return Err(error),
        };
        let mut commands = Vec::new();
        for &byte in bytes.get(..read).unwrap_or_default() {
            match self.keys.feed(byte) {
                Key::Guest(byte) if self.waiting.len() < LIMIT => self.waiting.push_back(byte),
                Key::Guest(_) | Key::Nothing => {}
                Key::Command(command) => commands.push(command),
            }
        }
        self.pump(serial);
        Ok(Some(commands))
    }

    /// Gives the guest what it has room for.
    pub fn pump(&mut self, serial: &Serial) {
        while !self.waiting.is_empty() {
            let taken = serial.enqueue(self.waiting.as_slices().0);
            if taken == 0 {
                return;
            }
            self.waiting.drain(..taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_devices::irq::IrqLine;
    use umbra_devices::{Device, IoOp, IoOutcome, IoSize};

    fn received(serial: &Serial) -> Vec<u8> {
        let read = |offset| match serial.access(offset, IoSize::B1, IoOp::Read) {
            IoOutcome::Value(value) => value.to_le_bytes()[0],
            other => panic!("{other:?}"),
        };
        let mut bytes = Vec::new();
        while read(5) & 1 != 0 {
            bytes.push(read(0));
        }
        bytes
    }

    #[test]
    fn commands_are_picked_out_and_the_rest_arrives() {
        let serial = Serial::new(io::sink(), IrqLine::detached());
        let mut input = ConsoleInput::default();
        let commands = input.read(&b"ab\x01sc\x01ad"[..], &serial).unwrap();
        assert_eq!(commands, Some(vec![Command::Stats]));
        assert_eq!(received(&serial), b"abc\x01d");
    }

    #[test]
    fn commands_are_heard_though_the_guest_reads_nothing() {
        let serial = Serial::new(io::sink(), IrqLine::detached());
        let mut input = ConsoleInput::default();
        for _ in 0..100 {
            assert_eq!(input.read(&[b'x'; 256][..], &serial).unwrap(), Some(vec![]));
        }
        assert_eq!(input.read(&b"\x01x"[..], &serial).unwrap(), Some(vec![Command::Quit]));
        let mut arrived = 0;
        loop {
            let bytes = received(&serial).len();
            if bytes == 0 {
                break;
            }
            arrived += bytes;
            input.pump(&serial);
        }
        assert!((LIMIT..=LIMIT + 64).contains(&arrived), "{arrived}");
    }

    #[test]
    fn end_of_the_terminal_is_told() {
        let serial = Serial::new(io::sink(), IrqLine::detached());
        assert_eq!(ConsoleInput::default().read(&b""[..], &serial).unwrap(), None);
    }
}
