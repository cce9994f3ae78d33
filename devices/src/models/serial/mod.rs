//! 16550A serial port, on vm-superio's UART.
//!
//! Output goes to any [`Write`], a byte at a time, on the thread of the vCPU; what it refuses is lost and counted, so
//! that a guest is never stopped by whoever reads its console. Input comes through [`Serial::enqueue`], for a file
//! descriptor by way of [`SerialInput`], no more than the FIFO can hold; or from a [`SerialScript`].
//!
//! Lock order: the UART's lock is released before the interrupt line is touched and before a byte is put out: whoever
//! types or asks for the state does not wait for a reader that doesn't read.

mod input;
pub mod regs;
mod script;

pub use input::SerialInput;
pub use script::{Script, SerialScript};

use super::bytewise::bytewise;
use crate::access::{IoOp, IoSize};
use crate::bus::EventHandle;
use crate::device::{BadState, Device, IoOutcome, Persist};
use crate::irq::IrqLine;
use crate::sync::lock;
use std::convert::Infallible;
use std::fmt;
use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use vm_superio::serial::NoEvents;
use vm_superio::{SerialState as UartState, Trigger};

type Uart = vm_superio::Serial<Pending, NoEvents, Staged>;

/// Whether the UART asked for an interrupt since this was last looked at.
#[derive(Default)]
struct Pending(AtomicBool);

impl Trigger for Pending {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// The byte that the UART sent during one access, until its lock is released. There is at most one: the transmit register
/// is a byte wide, and an access reaches it once.
#[derive(Default)]
struct Staged(Option<u8>);

impl Write for Staged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = bytes.last().copied().or(self.0);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The device.
pub struct Serial {
    uart: Mutex<Uart>,
    out: Mutex<Box<dyn Write + Send>>,
    line: IrqLine,
    lost: AtomicU64,
    /// Signalled when there is room for input again, if somebody waits for that.
    room: Option<EventHandle>,
    waiting_for_room: AtomicBool,
    /// How often in a row the guest has read the line status and done nothing else.
    polls: AtomicU32,
}

/// So many looks at the line status are more than a guest takes that only writes.
const POLLS: u32 = 16;

/// The state of the port: its registers and the bytes received but not yet read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SerialState {
    /// Divisor latch, low and high byte.
    pub divisor: [u8; 2],
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// The receive FIFO, oldest byte first; at most [`regs::FIFO_LEN`] bytes.
    pub received: Vec<u8>,
}

impl Serial {
    /// A port that sends to `out` and interrupts through `line` ([`regs::COM1_IRQ`] for COM1).
    pub fn new(out: impl Write + Send + 'static, line: IrqLine) -> Self {
        Self {
            uart: Mutex::new(Uart::new(Pending::default(), Staged::default())),
            out: Mutex::new(Box::new(out)),
            line,
            lost: AtomicU64::new(0),
            room: None,
            waiting_for_room: AtomicBool::new(false),
            polls: AtomicU32::new(0),
        }
    }

    /// Lets the port signal `room` when there is room for input again, after [`Serial::enqueue`] took less than it was
    /// given.
    #[must_use]
    pub fn with_room_event(mut self, room: EventHandle) -> Self {
        self.room = Some(room);
        self
    }

    /// Receives bytes, as many as the FIFO has room for (none in loopback mode); says how many. If these are not all, the
    /// event of [`Serial::with_room_event`] is signalled once there is room.
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut uart = lock(&self.uart);
        let taken = capacity(&mut uart).min(bytes.len());
        // Nothing can fail: there is room, and the trigger is infallible.
        let taken = uart.enqueue_raw_bytes(&bytes[..taken]).unwrap_or_default();
        if taken < bytes.len() {
            self.waiting_for_room.store(true, Ordering::Relaxed);
        }
        self.interrupt_if_pending(uart);
        taken
    }

    /// How many bytes [`Serial::enqueue`] would take now; no more are taken until the guest has read some. If it is 0, the
    /// event of [`Serial::with_room_event`] is signalled once there is room.
    pub fn room(&self) -> usize {
        let mut uart = lock(&self.uart);
        let room = capacity(&mut uart);
        if room == 0 {
            self.waiting_for_room.store(true, Ordering::Relaxed);
        }
        room
    }

    /// Whether the guest waits for input: it has the receiver's interrupt on, or looks at the line status again and again.
    pub fn listens(&self) -> bool {
        let interrupt = lock(&self.uart).state().interrupt_enable & regs::IER_RECEIVED != 0;
        interrupt || self.polls.load(Ordering::Relaxed) >= POLLS
    }

    /// Number of bytes that the output refused.
    pub fn lost_output(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn byte(uart: &mut Uart, offset: u64, op: IoOp) -> IoOutcome {
        // A region of 8 ports: the offset is below 8.
        let offset = offset.to_le_bytes()[0];
        match op {
            IoOp::Read => IoOutcome::Value(uart.read(offset).into()),
            IoOp::Write(value) => {
                // Nothing can fail: the byte is only staged, and the trigger is infallible.
                let _ = uart.write(offset, value.to_le_bytes()[0]);
                IoOutcome::Done
            }
        }
    }

    /// Sends a byte into the world.
    fn put_out(&self, byte: u8) {
        let mut out = lock(&self.out);
        if let Err(error) = out.write_all(&[byte]).and_then(|()| out.flush()) {
            let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
            if lost.is_power_of_two() {
                tracing::warn!(%error, lost, "the serial port's output refuses bytes");
            }
        }
    }

    /// After any use of the UART: passes on what it wants to say, with its lock released.
    fn interrupt_if_pending(&self, mut uart: std::sync::MutexGuard<'_, Uart>) {
        let interrupt = uart.interrupt_evt().0.swap(false, Ordering::Relaxed);
        // Not at the first byte of room, so that input comes in pieces worth an interrupt.
        let room = self.waiting_for_room.load(Ordering::Relaxed)
            && capacity(&mut uart) >= regs::FIFO_LEN / 2
            && self.waiting_for_room.swap(false, Ordering::Relaxed);
        let sent = uart.writer_mut().0.take();
        drop(uart);
        if let Some(byte) = sent {
            self.put_out(byte);
        }
        if interrupt {
            self.line.pulse();
        }
        if room && let Some(event) = &self.room {
            event.signal();
        }
    }

    /// Puts a UART of this state in the place of the present one.
    fn replace(&self, state: &UartState) -> Result<(), BadState> {
        let fresh = Uart::from_state(state, Pending::default(), NoEvents, Staged::default());
        let Ok(fresh) = fresh else {
            return Err(too_long(state.in_buffer.len()));
        };
        let mut uart = lock(&self.uart);
        *uart = fresh;
        self.interrupt_if_pending(uart);
        Ok(())
    }
}

/// Room for received bytes. None in loopback mode, when the receiver is cut off from the line.
fn capacity(uart: &mut Uart) -> usize {
    // Reading the modem control register has no side effects.
    let loopback = uart.read(regs::MCR.to_le_bytes()[0]) & regs::MCR_LOOPBACK != 0;
    if loopback { 0 } else { uart.fifo_capacity() }
}

fn too_long(len: usize) -> BadState {
    BadState {
        model: "serial",
        field: "received.len",
        value: len as u64,
        expected: "at most 64 bytes",
    }
}

impl Device for Serial {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        let polls = match op {
            IoOp::Read if offset == regs::LSR => self.polls.load(Ordering::Relaxed).saturating_add(1),
            _ => 0,
        };
        self.polls.store(polls, Ordering::Relaxed);
        let mut uart = lock(&self.uart);
        let outcome = bytewise(offset, size, op, |offset, op| Self::byte(&mut uart, offset, op));
        self.interrupt_if_pending(uart);
        outcome
    }

    fn reset(&self) {
        self.polls.store(0, Ordering::Relaxed);
        // Cannot fail: nothing is in the FIFO.
        let _ = self.replace(&UartState::default());
    }
}

impl Persist for Serial {
    type State = SerialState;

    fn save(&self) -> Self::State {
        let UartState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = lock(&self.uart).state();
        SerialState {
            divisor: [baud_divisor_low, baud_divisor_high],
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            received: in_buffer,
        }
    }

    fn restore(&self, state: &Self::State) -> Result<(), BadState> {
        let SerialState {
            divisor: [baud_divisor_low, baud_divisor_high],
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            received,
        } = state.clone();
        self.replace(&UartState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: received,
        })
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial")
            .field("state", &self.save())
            .field("line", &self.line)
            .field("lost", &self.lost_output())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
