//! The debug console port 0xe9 of Bochs and QEMU: each byte written is output, without a UART's ceremony.

use super::bytewise::bytewise;
use crate::access::{IoOp, IoSize};
use crate::device::{BadState, Device, IoOutcome, Persist};
use crate::sync::lock;
use std::fmt;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where and what it is (Bochs, `iodev/unmapped.cc`; QEMU, `hw/char/debugcon.c`).
pub mod regs {
    /// The port.
    pub const PORT: u16 = 0xe9;
    /// Number of ports.
    pub const LEN: u64 = 1;
    /// What a read answers, by which a guest finds out that the console is there.
    pub const PRESENT: u8 = 0xe9;
}

/// The device. It has no state that a guest could see.
pub struct DebugConsole {
    out: Mutex<Box<dyn Write + Send>>,
    lost: AtomicU64,
}

impl DebugConsole {
    /// A console that writes to `out`. What `out` refuses is lost, and counted.
    pub fn new(out: impl Write + Send + 'static) -> Self {
        Self {
            out: Mutex::new(Box::new(out)),
            lost: AtomicU64::new(0),
        }
    }

    /// Number of bytes that the output refused.
    pub fn lost_output(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Device for DebugConsole {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        bytewise(offset, size, op, |_, op| match op {
            IoOp::Read => IoOutcome::Value(u64::from(regs::PRESENT)),
            IoOp::Write(value) => {
                let [byte, ..] = value.to_le_bytes();
                if lock(&self.out).write_all(&[byte]).is_err() {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
                IoOutcome::Done
            }
        })
    }

    fn reset(&self) {}
}

impl Persist for DebugConsole {
    type State = ();

    fn save(&self) -> Self::State {}

    fn restore(&self, (): &Self::State) -> Result<(), BadState> {
        Ok(())
    }
}

impl fmt::Debug for DebugConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DebugConsole({} bytes lost)", self.lost_output())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Conformance, SharedOutput};

    #[test]
    fn conforms() {
        Conformance::of("debug_console", regs::LEN, || DebugConsole::new(std::io::sink()))
            .reads_are_quiet_in(0..regs::LEN)
            .check();
    }

    #[test]
    fn bytes_written_come_out_and_the_port_reads_as_present() {
        let out = SharedOutput::default();
        let console = DebugConsole::new(out.clone());
        for byte in b"hi" {
            console.access(0, IoSize::B1, IoOp::Write(u64::from(*byte)));
        }
        assert_eq!(out.take(), b"hi");
        assert_eq!(console.access(0, IoSize::B1, IoOp::Read), IoOutcome::Value(0xe9));
    }
}
