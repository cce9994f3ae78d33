//! [`SerialInput`]: from a file descriptor (standard input, a pipe, a socket) to a serial port, driven by event-manager.
//!
//! It never reads more than the port has room for, so nothing is lost however slow the guest; while there is no room it
//! stops watching the descriptor instead of spinning on it.

use super::{Serial, regs};
use crate::bus::EventHandle;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// `Events` datum of the source.
const SOURCE: u32 = 0;
/// `Events` datum of the port's room event.
const ROOM: u32 = 1;

/// How the source is being watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Watch {
    /// By epoll.
    Polled,
    /// Not now: the port has no room.
    Paused,
    /// epoll can't watch it (a regular file, `/dev/null`): it is always ready.
    AlwaysReady,
    /// It has ended.
    Ended,
}

/// Feeds a serial port from `source`. Register it with an `event_manager::EventManager`.
///
/// A source that filters what it reads (an escape key, say) and has nothing left reports
/// [`io::ErrorKind::WouldBlock`]; `Ok(0)` is the end.
#[derive(Debug)]
pub struct SerialInput<R> {
    serial: Arc<Serial>,
    room: EventHandle,
    source: R,
    watch: Watch,
}

impl<R: Read + AsRawFd> SerialInput<R> {
    /// Feeds `serial`, which was built [`Serial::with_room_event`]\(`room`), from `source`.
    pub fn new(serial: Arc<Serial>, room: EventHandle, source: R) -> Self {
        Self {
            serial,
            room,
            source,
            watch: Watch::Paused,
        }
    }

    /// Whether the source has ended or failed.
    pub fn has_ended(&self) -> bool {
        self.watch == Watch::Ended
    }

    /// Moves what there is room for, and pauses if there is none.
    fn pump(&mut self, ops: &mut EventOps<'_>) {
        loop {
            let room = self.serial.room().min(regs::FIFO_LEN);
            if room == 0 {
                if self.watch == Watch::Polled {
                    self.unwatch(ops, Watch::Paused);
                }
                return;
            }
            let mut buffer = [0; regs::FIFO_LEN];
            match self.source.read(&mut buffer[..room]) {
                Ok(0) => return self.unwatch(ops, Watch::Ended),
                // There was room for all of it, and only this thread fills the port.
                Ok(len) => {
                    self.serial.enqueue(&buffer[..len]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // A filter took everything. Nobody says when an unwatched source has more, so come again soon.
                    if self.watch == Watch::AlwaysReady {
                        self.room.signal();
                    }
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot read the serial port's input any more");
                    return self.unwatch(ops, Watch::Ended);
                }
            }
            // epoll says when there is more; nobody does for a file.
            if self.watch != Watch::AlwaysReady {
                return;
            }
        }
    }

    fn watch(&mut self, ops: &mut EventOps<'_>) {
        match ops.add(Events::with_data_raw(self.source.as_raw_fd(), SOURCE, EventSet::IN)) {
            Ok(()) => self.watch = Watch::Polled,
            // EPERM: not a kind of file that epoll watches.
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EPERM => {
                self.watch = Watch::AlwaysReady;
                self.pump(ops);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot watch the serial port's input");
                self.watch = Watch::Ended;
            }
        }
    }

    fn unwatch(&mut self, ops: &mut EventOps<'_>, next: Watch) {
        if self.watch == Watch::Polled
            && let Err(error) = ops.remove(Events::with_data_raw(self.source.as_raw_fd(), SOURCE, EventSet::IN))
        {
            tracing::warn!(%error, "cannot stop watching the serial port's input");
        }
        self.watch = next;
    }
}

impl<R: Read + AsRawFd> MutEventSubscriber for SerialInput<R> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::with_data_raw(self.room.as_raw_fd(), ROOM, EventSet::IN)) {
            tracing::warn!(%error, "cannot watch the serial port's room event");
        }
        self.watch(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.data() != ROOM {
            return self.pump(ops);
        }
        // The count does not matter, that it is taken does.
        let _ = self.room.eventfd().read();
        match self.watch {
            Watch::Paused => self.watch(ops),
            Watch::AlwaysReady => self.pump(ops),
            Watch::Polled | Watch::Ended => {}
        }
    }
}
