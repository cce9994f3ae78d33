//! What crosses privilege levels in 64-bit mode – `syscall sysret swapgs int iretq`, and exceptions and interrupts on the
//! way – does the same by fast operations as by the instruction core, in good order and in bad.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "parts of instructions are cut from larger numbers"
)]

mod directed;
mod machine;
mod random;
#[path = "../emulate_silicon/rng.rs"]
#[allow(dead_code, reason = "shared with another test")]
mod rng;
