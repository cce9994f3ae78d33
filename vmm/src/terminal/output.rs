//! The guest's console output on its way to a file descriptor.
//!
//! Nothing is buffered: a guest that floods the serial port runs as fast as the reader reads. A vCPU blocked in `write`
//! because nobody reads is let go by [`ConsoleGate::close`] and a signal (the kick).

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const BROKEN: u8 = 2;

/// Whether guest output still goes anywhere. Shared between the writers and who stops them.
#[derive(Clone, Debug, Default)]
pub struct ConsoleGate(Arc<Gate>);

#[derive(Debug, Default)]
struct Gate {
    state: AtomicU8,
    /// Whether the last byte written was other than a newline.
    mid_line: AtomicBool,
}

impl ConsoleGate {
    /// From now on output is dropped, and a write interrupted by a signal is not taken up again.
    pub fn close(&self) {
        // A broken pipe stays known.
        let state = &self.0.state;
        let _ = state.compare_exchange(OPEN, CLOSED, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Whether the reader has gone away.
    pub fn is_broken(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == BROKEN
    }

    /// Whether the guest left its last line unfinished.
    pub fn is_mid_line(&self) -> bool {
        self.0.mid_line.load(Ordering::Relaxed)
    }
}

/// A writer to a file descriptor that never fails and never outlives its gate.
#[derive(Clone, Debug)]
pub struct ConsoleOutput<F> {
    fd: BorrowedFd<'static>,
    gate: ConsoleGate,
    on_broken: F,
}

impl<F: Fn()> ConsoleOutput<F> {
    /// Output to `fd`; `on_broken` is called once when its reader has gone away.
    pub fn new(fd: BorrowedFd<'static>, gate: ConsoleGate, on_broken: F) -> Self {
        Self { fd, gate, on_broken }
    }

    fn broken(&self) {
        if self.gate.0.state.swap(BROKEN, Ordering::AcqRel) != BROKEN {
            (self.on_broken)();
        }
    }
}

impl<F: Fn()> io::Write for ConsoleOutput<F> {
    /// Takes all of `bytes`, always: what can't be written is dropped, since a guest can do nothing about it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() && self.gate.0.state.load(Ordering::Acquire) == OPEN {
            match rustix::io::write(self.fd, rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => wait_writable(self.fd),
                Err(_) => self.broken(),
            }
        }
        if let Some(last) = bytes.last() {
            self.gate.0.mid_line.store(*last != b'\n', Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Somebody else made the descriptor non-blocking (it is shared with the shell): wait, but not past a stop request.
fn wait_writable(fd: BorrowedFd<'_>) {
    let mut set = [rustix::event::PollFd::from_borrowed_fd(
        fd,
        rustix::event::PollFlags::OUT,
    )];
    let timeout = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 50_000_000,
    };
    let _ = rustix::event::poll(&mut set, Some(&timeout));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::atomic::AtomicU32;

    /// A descriptor that lives as long as the test process.
    fn leak(fd: impl Into<OwnedFd>) -> BorrowedFd<'static> {
        let fd: &'static OwnedFd = Box::leak(Box::new(fd.into()));
        fd.as_fd()
    }

    #[test]
    fn bytes_reach_the_reader() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut output = ConsoleOutput::new(leak(writer), ConsoleGate::default(), || {});
        output.write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[test]
    fn broken_pipe_is_told_once_and_never_an_error() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let told = Arc::new(AtomicU32::new(0));
        let gate = ConsoleGate::default();
        let mut output = ConsoleOutput::new(leak(writer), gate.clone(), {
            let told = told.clone();
            move || {
                told.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..3 {
            output.write_all(b"into the void").unwrap();
        }
        assert_eq!(told.load(Ordering::Relaxed), 1);
        gate.close();
        assert!(gate.is_broken());
    }

    #[test]
    fn closed_gate_drops_output() {
        let (_reader, writer) = io::pipe().unwrap();
        let gate = ConsoleGate::default();
        gate.close();
        let mut output = ConsoleOutput::new(leak(writer), gate, || panic!("not broken"));
        // More than a pipe holds: would block for ever if it were written.
        output.write_all(&[0; 1 << 20]).unwrap();
    }

    #[test]
    fn full_nonblocking_pipe_waits_for_the_reader() {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let mut output = ConsoleOutput::new(leak(writer), ConsoleGate::default(), || {});
        let writing = std::thread::spawn(move || output.write_all(&[7; 1 << 18]).unwrap());
        let mut bytes = vec![0; 1 << 18];
        reader.read_exact(&mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 7));
        writing.join().unwrap();
    }
}
