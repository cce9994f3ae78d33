//! Raw mode, and the promise that the terminal is given back: when the guard is dropped, on panic, on a stop signal
//! and when the process crashes.
//!
//! Only input is raw. Output processing stays on, so that our own messages (and a guest's bare `\n`) start at the
//! left margin.

use super::screen;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use rustix::termios::{OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr};
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Modes to go back to. Set once, before raw mode is ever entered; read from signal handlers, so it is never locked.
static COOKED: OnceLock<Termios> = OnceLock::new();
/// Whether the terminal is raw now.
static RAW: AtomicBool = AtomicBool::new(false);

/// The terminal is ours while this lives.
#[derive(Debug)]
#[must_use = "the terminal is restored when this is dropped"]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes standard input raw if it is a terminal and we are its foreground job; otherwise does nothing.
    ///
    /// # Errors
    /// The terminal refuses to be read or set (it hung up).
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = rustix::stdio::stdin();
        // A background job that changed the modes would take the terminal away from the shell.
        if !isatty(stdin) || !in_foreground() {
            return Ok(None);
        }
        let cooked = tcgetattr(stdin)?;
        // Only the first time: later there is nothing else to go back to.
        let _ = COOKED.set(cooked);
        restore_whatever_happens()?;
        let guard = Self(());
        guard.resume()?;
        Ok(Some(guard))
    }

    /// Gives the terminal back for a while: before the process stops itself.
    pub fn suspend(&self) {
        restore_modes();
    }

    /// Takes the terminal again: after the process was continued, when the shell has put its own modes in force.
    /// Returns whether it is ours now: not when continued in the background.
    ///
    /// # Errors
    /// As [`RawTerminal::enter`].
    pub fn resume(&self) -> io::Result<bool> {
        let Some(cooked) = COOKED.get() else { return Ok(false) };
        if !in_foreground() {
            return Ok(false);
        }
        let mut raw = cooked.clone();
        raw.make_raw();
        raw.output_modes |= cooked.output_modes & (OutputModes::OPOST | OutputModes::ONLCR);
        RAW.store(true, Ordering::Release);
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(true)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore_modes();
    }
}

/// From now on, a panic or a crash first gives the terminal back.
///
/// # Errors
/// The host refuses to install a signal handler.
pub fn restore_whatever_happens() -> io::Result<()> {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if INSTALLED.swap(true, Ordering::AcqRel) {
        return Ok(());
    }
    restore_on_panic();
    restore_on_crash()
}

/// Gives the screen back, and puts the saved modes back if raw mode is on. Takes no lock and allocates nothing: signal handlers call it.
pub fn restore() {
    screen::leave();
    restore_modes();
}

fn restore_modes() {
    if RAW.swap(false, Ordering::AcqRel)
        && let Some(cooked) = COOKED.get()
    {
        // A terminal that has hung up has no modes to restore.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, cooked);
    }
}

/// Whether we are the terminal's foreground job.
pub fn in_foreground() -> bool {
    tcgetpgrp(rustix::stdio::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// A panic on any thread first gives the terminal back, so that its message can be read.
fn restore_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        report(info);
    }));
}

/// A crash of the process (guest RAM whose file was truncated under us, for example) gives the terminal back and then
/// takes its ordinary course: the handler is used once and the cause recurs.
fn restore_on_crash() -> io::Result<()> {
    extern "C" fn handler(_: std::ffi::c_int) {
        restore();
    }
    let flags = SaFlags::SA_RESETHAND | SaFlags::SA_ONSTACK;
    let action = SigAction::new(SigHandler::Handler(handler), flags, SigSet::empty());
    for signal in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGILL,
        Signal::SIGFPE,
        Signal::SIGABRT,
    ] {
        // SAFETY: the handler is async-signal-safe: an atomic swap, a read of a OnceLock that was set before, and the
        // tcsetattr system call.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}
