//! The whole terminal as a screen to draw on, and its return: when the guard is dropped, on panic, on a crash and while the
//! process is stopped. Only escape sequences; modes are [`super::raw`]'s.

use super::raw;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The alternate screen, cleared, without cursor.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[2J\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?1049l";

/// Whether it is ours now.
static UP: AtomicBool = AtomicBool::new(false);
/// Whether it should be ours again when the process is continued.
static WANTED: AtomicBool = AtomicBool::new(false);
/// Whether what was drawn on it is gone.
static CLEARED: AtomicBool = AtomicBool::new(false);
/// What was to be said while there was a screen in the way.
static SAID: Mutex<String> = Mutex::new(String::new());

/// The screen is ours while this lives.
#[derive(Debug)]
#[must_use = "the screen is given back when this is dropped"]
pub struct Screen(());

impl Screen {
    /// Takes the screen; `None` if standard output is no terminal.
    ///
    /// # Errors
    /// The host refuses to install what gives it back after a crash.
    pub fn enter() -> io::Result<Option<Self>> {
        if !io::stdout().is_terminal() {
            return Ok(None);
        }
        raw::restore_whatever_happens()?;
        WANTED.store(true, Ordering::Release);
        resume();
        Ok(Some(Self(())))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        WANTED.store(false, Ordering::Release);
        leave();
    }
}

/// Takes it again after [`leave`], if anybody still wants it.
pub fn resume() {
    if WANTED.load(Ordering::Acquire) && !UP.swap(true, Ordering::AcqRel) {
        write(ENTER);
        CLEARED.store(true, Ordering::Release);
    }
}

/// Gives it back. Takes no lock and allocates nothing: signal handlers call it.
pub fn leave() {
    if UP.swap(false, Ordering::AcqRel) {
        write(LEAVE);
    }
}

/// Makes it empty.
pub fn clear() {
    if is_up() {
        write(b"\x1b[0m\x1b[2J");
    }
}

/// Whether it is ours now.
pub fn is_up() -> bool {
    UP.load(Ordering::Acquire)
}

/// Whether what was drawn has gone since this was last asked.
pub fn was_cleared() -> bool {
    CLEARED.swap(false, Ordering::AcqRel)
}

/// Keeps a text until somebody can show it.
pub(super) fn keep(text: std::fmt::Arguments<'_>) {
    use std::fmt::Write;
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = said.write_fmt(text);
}

/// Takes what was kept.
pub fn take_said() -> String {
    std::mem::take(&mut SAID.lock().unwrap_or_else(PoisonError::into_inner))
}

fn write(bytes: &[u8]) {
    // A terminal that has hung up shows nothing any more.
    let _ = rustix::io::write(rustix::stdio::stdout(), bytes);
}
