//! Signals as events: blocked in every thread and read from a descriptor, so that nothing happens inside a handler.

use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::io;

/// A signal that was sent to us, by what it asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// End, and then die by this signal, so that the parent sees why.
    Stop(Signal),
    /// Print statistics.
    Stats,
    /// Stop the process as job control does; the terminal has to be given back first.
    Suspend,
    /// The process was continued.
    Continued,
}

const STOPPING: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// The descriptor on which signals arrive.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Blocks the signals that we read. To be called before any other thread exists: threads inherit what is blocked.
    ///
    /// # Errors
    /// The host refuses (no file descriptor left).
    pub fn new() -> io::Result<Self> {
        let mut set: SigSet = STOPPING.into_iter().collect();
        // SIGTTIN and SIGTTOU are only blocked: in the background, reading the terminal fails instead of stopping us.
        let others = [
            Signal::SIGUSR1,
            Signal::SIGTSTP,
            Signal::SIGCONT,
            Signal::SIGTTIN,
            Signal::SIGTTOU,
        ];
        set.extend(others);
        set.thread_block()?;
        Ok(Self {
            fd: SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?,
        })
    }

    /// The next request, or `None` when there is no more for now.
    pub fn next(&self) -> Option<Request> {
        loop {
            let info = self.fd.read_signal().ok()??;
            let signal = i32::try_from(info.ssi_signo)
                .ok()
                .and_then(|number| Signal::try_from(number).ok());
            return Some(match signal {
                Some(Signal::SIGUSR1) => Request::Stats,
                Some(Signal::SIGTSTP) => Request::Suspend,
                Some(Signal::SIGCONT) => Request::Continued,
                Some(signal) if STOPPING.contains(&signal) => Request::Stop(signal),
                _ => continue,
            });
        }
    }
}

impl std::os::fd::AsRawFd for Signals {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.fd)
    }
}

impl std::os::fd::AsFd for Signals {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Stops the process as `SIGTSTP` would have. Returns when it is continued.
pub fn stop_self() {
    // SIGSTOP can be neither blocked nor refused.
    let _ = raise(Signal::SIGSTOP);
}

/// Sends us the request that follows being continued: the shell sends none when it brings a running job to the
/// foreground.
pub fn continue_self() {
    let _ = kill(Pid::this(), Signal::SIGCONT);
}

/// Dies by `signal`, whose disposition is the default one. Returns only if the signal turns out not to be deadly.
pub fn die_by(signal: Signal) {
    let _ = SigSet::from(signal).thread_unblock();
    let _ = raise(signal);
}
