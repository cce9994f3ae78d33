//! The user's terminal while a guest runs: [`raw`] mode and its restoration, the [`keys`] that are ours and not the
//! guest's, [`output`], the guest's way to standard output, and [`screen`], for what is drawn instead.

pub mod keys;
pub mod output;
#[expect(
    unsafe_code,
    reason = "installing a signal handler that restores the terminal when the process crashes"
)]
pub mod raw;
pub mod screen;

use std::io::Write;

/// Tells the user something on standard error. If nobody can read it, there is nobody to tell. While something is drawn on
/// the terminal, the text waits for who draws, or for the end of it.
pub fn say(text: std::fmt::Arguments<'_>) {
    if screen::is_up() {
        return screen::keep(text);
    }
    let mut stderr = std::io::stderr();
    let _ = stderr.write_all(screen::take_said().as_bytes());
    let _ = stderr.write_fmt(text);
}
