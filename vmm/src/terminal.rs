//! The user's terminal while a guest runs: [`raw`] mode and its restoration, the [`keys`] that are ours and not the
//! guest's, and [`output`], the guest's way to standard output.

pub mod keys;
pub mod output;
#[expect(
    unsafe_code,
    reason = "installing a signal handler that restores the terminal when the process crashes"
)]
pub mod raw;

use std::io::Write;

/// Tells the user something on standard error. If nobody can read it, there is nobody to tell.
pub fn say(text: std::fmt::Arguments<'_>) {
    let _ = std::io::stderr().write_fmt(text);
}
