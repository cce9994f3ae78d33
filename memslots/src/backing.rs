//! [`Backing`]: the promise that a slot's host addresses can be accessed.
//!
//! A slot made from raw numbers, as the ioctl takes them, is only bookkeeping: nobody in this process may follow its
//! host address. A slot made from a [`Backing`] owns a share of the mapping; every snapshot that contains the slot
//! keeps the mapping alive, so a reader that is late by one update still reads real memory.

use crate::addr::Hva;
use core::fmt;

/// A run of host memory that stays mapped, readable and writable, at one address for as long as the value lives.
///
/// # Safety
/// From construction to drop, `start() .. start() + bytes()` must be one mapping (or several without a gap) of this
/// process which may be read and written at any time from any thread, and which no Rust reference points into. The two
/// methods always return the same values. The mapping may be lazily populated, and access may fault for reasons
/// outside the process (a truncated file gives `SIGBUS`): that is the host administrator's doing, not the guest's.
pub unsafe trait Backing: Send + Sync + fmt::Debug {
    /// The address of the first byte; page aligned.
    fn start(&self) -> Hva;

    /// The length in bytes; a multiple of the page size, not 0.
    fn bytes(&self) -> u64;
}
