use super::*;
use crate::irq::{Gsi, IrqPins};
use crate::testing::{Conformance, RecordingSink, SharedOutput};
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

fn serial() -> Serial {
    Serial::new(io::sink(), IrqLine::detached())
}

fn read(serial: &Serial, offset: u64) -> u8 {
    match serial.access(offset, IoSize::B1, IoOp::Read) {
        IoOutcome::Value(value) => value.to_le_bytes()[0],
        other => panic!("{other:?}"),
    }
}

fn write(serial: &Serial, offset: u64, value: u8) {
    assert_eq!(
        serial.access(offset, IoSize::B1, IoOp::Write(value.into())),
        IoOutcome::Done
    );
}

/// What a guest reads while there is something to read.
fn drain(serial: &Serial) -> Vec<u8> {
    std::iter::from_fn(|| (read(serial, regs::LSR) & regs::LSR_DATA_READY != 0).then(|| read(serial, regs::DATA)))
        .collect()
}

#[test]
fn conforms() {
    // Reading the data and the interrupt identification register acknowledges.
    Conformance::of("serial", regs::LEN, serial)
        .reads_are_quiet_in(regs::IER..regs::IIR)
        .reads_are_quiet_in(regs::LCR..regs::LEN)
        .check();
}

#[test]
fn bytes_sent_come_out() {
    let out = SharedOutput::default();
    let serial = Serial::new(out.clone(), IrqLine::detached());
    for byte in b"Hello" {
        write(&serial, regs::DATA, *byte);
    }
    serial.reset();
    write(&serial, regs::DATA, b'!');
    assert_eq!(out.take(), b"Hello!");
}

#[test]
fn interrupts_are_edges_for_received_data_and_empty_transmitter() {
    let sink = Arc::new(RecordingSink::default());
    let serial = Serial::new(io::sink(), IrqPins::new(sink.clone()).line(Gsi(regs::COM1_IRQ)));
    let edge = [(Gsi(4), true), (Gsi(4), false)];
    serial.enqueue(b"a");
    assert_eq!(sink.take(), [], "not enabled");
    write(&serial, regs::IER, regs::IER_RECEIVED);
    assert_eq!(sink.take(), edge, "the byte is waiting");
    assert_eq!(read(&serial, regs::IIR) & 0xf, 4);
    assert_eq!(drain(&serial), b"a");
    serial.enqueue(b"b");
    assert_eq!(sink.take(), edge);
    write(&serial, regs::IER, regs::IER_TRANSMIT_EMPTY);
    assert_eq!(sink.take(), edge);
    assert_eq!(read(&serial, regs::IIR) & 0xf, 4 | 2);
    write(&serial, regs::DATA, b'x');
    assert_eq!(sink.take(), edge);
}

/// A reader that doesn't read: each byte waits until it is let through.
struct Stuck(std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(()).unwrap();
        self.1.recv().unwrap();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn input_is_taken_while_output_is_stuck() {
    let (stuck, is_stuck) = std::sync::mpsc::channel();
    let (let_through, let_go) = std::sync::mpsc::channel();
    let serial = Arc::new(Serial::new(Stuck(stuck, let_go), IrqLine::detached()));
    let vcpu = std::thread::spawn({
        let serial = Arc::clone(&serial);
        move || serial.access(0, IoSize::B1, IoOp::Write(b'x'.into()))
    });
    is_stuck.recv().unwrap();
    assert_eq!(serial.enqueue(b"typed"), 5);
    assert_eq!(serial.save().received, b"typed");
    let_through.send(()).unwrap();
    assert_eq!(vcpu.join().unwrap(), IoOutcome::Done);
}

#[test]
fn refused_output_is_counted_and_the_guest_goes_on() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let serial = Serial::new(Full, IrqLine::detached());
    for _ in 0..100_000 {
        write(&serial, regs::DATA, b'.');
    }
    assert_eq!(serial.lost_output(), 100_000);
}

#[test]
fn enqueue_takes_what_fits_and_signals_room() {
    let room = EventHandle::new().unwrap();
    let serial = serial().with_room_event(room.clone());
    let signalled = || room.eventfd().read().is_ok();
    assert_eq!(serial.enqueue(&[7; 100]), regs::FIFO_LEN);
    assert_eq!(serial.room(), 0);
    assert!(!signalled());
    for _ in 0..regs::FIFO_LEN / 2 - 1 {
        read(&serial, regs::DATA);
    }
    assert!(!signalled(), "not for a few bytes");
    read(&serial, regs::DATA);
    assert!(signalled());
    drain(&serial);
    assert!(!signalled(), "nobody waits any more");
}

#[test]
fn loopback_takes_no_input_and_signals_at_its_end() {
    let room = EventHandle::new().unwrap();
    let serial = serial().with_room_event(room.clone());
    write(&serial, regs::MCR, regs::MCR_LOOPBACK);
    assert_eq!(serial.enqueue(b"lost?"), 0);
    write(&serial, regs::DATA, b'x');
    assert_eq!(drain(&serial), b"x");
    write(&serial, regs::MCR, 0);
    assert!(room.eventfd().read().is_ok());
    assert_eq!(serial.enqueue(b"no"), 2);
}

#[test]
fn reset_makes_room() {
    let room = EventHandle::new().unwrap();
    let serial = serial().with_room_event(room.clone());
    serial.enqueue(&[0; 65]);
    serial.reset();
    assert!(room.eventfd().read().is_ok());
}

#[test]
fn state_with_too_many_bytes_is_refused() {
    let serial = serial();
    let state = SerialState {
        received: vec![0; 65],
        ..serial.save()
    };
    assert_eq!(serial.restore(&state).unwrap_err().value, 65);
}

/// Runs an event loop with `source` as input and a guest that reads, until `expected` arrived.
fn feed<R: Read + AsRawFd + 'static>(source: R, expected: &[u8]) -> SerialInput<R> {
    let room = EventHandle::new().unwrap();
    let serial = Arc::new(serial().with_room_event(room.clone()));
    let input = Arc::new(Mutex::new(SerialInput::new(serial.clone(), room, source)));
    let mut events = EventManager::<Arc<Mutex<dyn MutEventSubscriber>>>::new().unwrap();
    let id = events.add_subscriber(input.clone());
    let mut got = Vec::new();
    for _ in 0..10 * expected.len() {
        events.run_with_timeout(0).unwrap();
        got.extend(drain(&serial));
        if got.len() >= expected.len() {
            break;
        }
    }
    events.run_with_timeout(0).unwrap();
    assert_eq!(got, expected);
    drop(events.remove_subscriber(id).unwrap());
    drop(events);
    Arc::into_inner(input).unwrap().into_inner().unwrap()
}

fn bytes(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

#[test]
fn pipe_longer_than_the_fifo_arrives_whole_and_ends() {
    let [reader, writer] = pipe();
    let (reader, mut writer) = (File::from(reader), File::from(writer));
    let sent = bytes(5000);
    writer.write_all(&sent).unwrap();
    drop(writer);
    assert!(feed(reader, &sent).has_ended());
}

#[test]
fn regular_file_which_epoll_refuses_arrives_whole() {
    let mut file = tempfile::tempfile().unwrap();
    let sent = bytes(1000);
    file.write_all(&sent).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    assert!(feed(file, &sent).has_ended());
}

#[test]
fn filter_that_takes_everything_does_not_stall_a_regular_file() {
    /// Swallows every second read, as a filter for an escape key may.
    struct Filter(File, bool);
    impl Read for Filter {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = self.0.read(&mut buffer[..1])?;
            self.1 = !self.1;
            if self.1 && len > 0 {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                Ok(len)
            }
        }
    }
    impl AsRawFd for Filter {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_raw_fd()
        }
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"-a-b-c").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    assert!(feed(Filter(file, false), b"abc").has_ended());
}

#[test]
fn slow_guest_makes_the_input_pause_instead_of_spin() {
    let [reader, writer] = pipe();
    let (reader, mut writer) = (File::from(reader), File::from(writer));
    writer.write_all(&bytes(200)).unwrap();
    let room = EventHandle::new().unwrap();
    let serial = Arc::new(serial().with_room_event(room.clone()));
    let input = Arc::new(Mutex::new(SerialInput::new(serial.clone(), room, reader)));
    let mut events = EventManager::<Arc<Mutex<dyn MutEventSubscriber>>>::new().unwrap();
    events.add_subscriber(input);
    let handled: usize = (0..20).map(|_| events.run_with_timeout(0).unwrap()).sum();
    assert!(handled <= 2, "{handled} events for a guest that reads nothing");
    assert_eq!(drain(&serial), bytes(200)[..64]);
    events.run_with_timeout(0).unwrap();
    events.run_with_timeout(0).unwrap();
    assert_eq!(drain(&serial), bytes(200)[64..128]);
}

fn pipe() -> [OwnedFd; 2] {
    let (reader, writer) = io::pipe().unwrap();
    [reader.into(), writer.into()]
}
