//! The user's terminal while a guest runs: [`raw`] mode and its restoration, the [`keys`] that are ours and not the
//! guest's, and [`output`], the guest's way to standard output.

pub mod keys;
pub mod output;
#[expect(
    unsafe_code,
    reason = "installing a signal handler that restores the terminal when the process crashes"
)]
pub mod raw;
