//! How a run ends, and how the thread that notices tells the one that waits.

use crate::exit_status::ExitStatus;
use nix::sys::signal::Signal;
use std::io;
use std::sync::{Mutex, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why the guest runs no longer.
#[derive(Debug)]
pub enum Ending {
    /// It powered off.
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// It wrote this to the debug-exit port.
    DebugExit(u32),
    /// It can't go on: triple fault, crash, or something that the backend can't execute. With the report for people.
    Died {
        /// The exit status that says which.
        status: ExitStatus,
        /// What happened, possibly in several lines.
        report: String,
    },
    /// The host failed under it.
    HostFailed {
        /// What failed.
        reason: String,
    },
    /// Nobody reads standard output any more.
    OutputClosed,
    /// The user asked for it.
    Quit,
    /// The time that it was given is over.
    TimeUp,
    /// A signal asked for it.
    Signal(Signal),
    /// A thread of the vmm panicked; its message has been printed.
    Bug,
}

/// Where threads leave the ending. The first one counts, what comes after is its consequence; but a reset gives way.
#[derive(Debug)]
pub struct EndingBox {
    first: Mutex<Option<Ending>>,
    wake: EventFd,
}

impl EndingBox {
    /// An empty one.
    ///
    /// # Errors
    /// The host has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            first: Mutex::new(None),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Leaves an ending and wakes who waits.
    pub fn put(&self, ending: Ending) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        // A reset is only a new beginning: whoever wants an end at the same moment must get it.
        if first.as_ref().is_none_or(|first| matches!(first, Ending::Reset)) {
            *first = Some(ending);
        }
        drop(first);
        // Fails only when it is at its limit, and then it wakes all the same.
        let _ = self.wake.write(1);
    }

    /// Takes the ending, if there is one.
    pub fn take(&self) -> Option<Ending> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Readable when there is an ending.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_ending_counts_and_wakes() {
        let endings = EndingBox::new().unwrap();
        assert!(endings.take().is_none());
        assert!(endings.wake().read().is_err(), "nothing to wake for");
        endings.put(Ending::DebugExit(7));
        endings.put(Ending::PowerOff);
        assert_eq!(endings.wake().read().unwrap(), 2);
        assert!(matches!(endings.take(), Some(Ending::DebugExit(7))));
    }

    #[test]
    fn reset_gives_way_to_any_real_ending() {
        let endings = EndingBox::new().unwrap();
        endings.put(Ending::Reset);
        endings.put(Ending::Signal(Signal::SIGTERM));
        endings.put(Ending::Reset);
        assert!(matches!(endings.take(), Some(Ending::Signal(Signal::SIGTERM))));
    }
}
