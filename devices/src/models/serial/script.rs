//! [`SerialScript`]: input that is known before, typed at times that depend on nothing but the guest and its clock.

use super::{Serial, regs};
use crate::clock::Clock;
use crate::sync::lock;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bytes that are still to be typed. Clones are the same: what one port took is gone, so a machine that is built anew goes
/// on where the one before it was.
#[derive(Clone, Default)]
pub struct Script(Arc<Mutex<VecDeque<u8>>>);

impl Script {
    /// These bytes, in this order.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(bytes.into())))
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        lock(&self.0).len()
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").field("left", &self.left()).finish()
    }
}

/// Types a [`Script`] into a serial port, as fast as a line of 115 200 baud, while the guest listens.
#[derive(Debug)]
pub struct SerialScript<C> {
    serial: Arc<Serial>,
    clock: Arc<C>,
    script: Script,
    /// When the line is free for the next byte.
    next: Mutex<Duration>,
}

impl<C: Clock> SerialScript<C> {
    /// Types `script` into `serial` by the time of `clock`.
    pub fn new(serial: Arc<Serial>, clock: Arc<C>, script: Script) -> Self {
        Self {
            serial,
            clock,
            script,
            next: Mutex::default(),
        }
    }

    /// Types a byte if it is time and the guest listens. Says how long it is until the next; `None` if there is none, or
    /// if the guest doesn't listen: then it is to be asked again after the guest has done something.
    pub fn tick(&self) -> Option<Duration> {
        let mut bytes = lock(&self.script.0);
        let byte = *bytes.front()?;
        let now = self.clock.monotonic();
        let mut next = lock(&self.next);
        if *next > now {
            return Some(*next - now);
        }
        if !self.serial.listens() || self.serial.enqueue(&[byte]) == 0 {
            return None;
        }
        bytes.pop_front();
        *next = now + regs::BYTE_TIME;
        (!bytes.is_empty()).then_some(regs::BYTE_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{IoOp, IoSize};
    use crate::clock::ManualClock;
    use crate::device::{Device, IoOutcome};
    use crate::irq::IrqLine;
    use std::io;

    fn access(serial: &Serial, offset: u64, op: IoOp) -> u8 {
        match serial.access(offset, IoSize::B1, op) {
            IoOutcome::Value(value) => value.to_le_bytes()[0],
            _ => 0,
        }
    }

    fn machine(script: &Script) -> (Arc<Serial>, Arc<ManualClock>, SerialScript<ManualClock>) {
        let serial = Arc::new(Serial::new(io::sink(), IrqLine::detached()));
        let clock = Arc::new(ManualClock::default());
        let typing = SerialScript::new(Arc::clone(&serial), Arc::clone(&clock), script.clone());
        (serial, clock, typing)
    }

    #[test]
    fn bytes_come_one_by_one_once_the_guest_listens() {
        let script = Script::new(b"abc".to_vec());
        let (serial, clock, typing) = machine(&script);
        clock.advance(Duration::from_secs(1));
        assert_eq!(typing.tick(), None, "nobody listens");
        access(&serial, regs::IER, IoOp::Write(regs::IER_RECEIVED.into()));
        assert_eq!(typing.tick(), Some(regs::BYTE_TIME));
        assert_eq!(typing.tick(), Some(regs::BYTE_TIME), "the line is busy");
        assert_eq!(serial.save_received(), b"a");
        clock.advance(regs::BYTE_TIME / 2);
        assert_eq!(typing.tick(), Some(regs::BYTE_TIME - regs::BYTE_TIME / 2));
        clock.advance(regs::BYTE_TIME);
        assert_eq!(typing.tick(), Some(regs::BYTE_TIME));
        clock.advance(regs::BYTE_TIME);
        assert_eq!((typing.tick(), script.left()), (None, 0));
        assert_eq!(serial.save_received(), b"abc");
    }

    #[test]
    fn guest_that_polls_listens_too() {
        let (serial, _, typing) = machine(&Script::new(b"a".to_vec()));
        // As a kernel does that writes to its console: the status before each byte, and once behind.
        for _ in 0..100 {
            access(&serial, regs::LSR, IoOp::Read);
            access(&serial, regs::LSR, IoOp::Read);
            access(&serial, regs::DATA, IoOp::Write(b'x'.into()));
        }
        typing.tick();
        assert_eq!(access(&serial, regs::LSR, IoOp::Read) & regs::LSR_DATA_READY, 0);
        for _ in 0..100 {
            access(&serial, regs::LSR, IoOp::Read);
        }
        typing.tick();
        assert_eq!(
            access(&serial, regs::LSR, IoOp::Read) & regs::LSR_DATA_READY,
            regs::LSR_DATA_READY
        );
    }

    #[test]
    fn next_machine_goes_on_with_what_is_left() {
        let script = Script::new(b"ab".to_vec());
        for byte in [b"a", b"b"] {
            let (serial, _, typing) = machine(&script);
            access(&serial, regs::IER, IoOp::Write(regs::IER_RECEIVED.into()));
            typing.tick();
            assert_eq!(serial.save_received(), byte);
        }
    }

    impl Serial {
        fn save_received(&self) -> Vec<u8> {
            crate::device::Persist::save(self).received
        }
    }
}
