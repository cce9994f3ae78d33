//! Writes that the kernel kept back ("coalesced MMIO"): they are delivered before the next exit of any vCPU.
//!
//! All vCPUs of a VM share one ring. Whoever takes writes out of it must have delivered them before another vCPU
//! delivers later ones, or handles an exit that came after them: so one vCPU at a time has the *turn*, from the moment
//! it looks into the ring until what it found is delivered. A turn is short (a few device writes, no guest code), and
//! nobody takes turns until the first zone is registered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Who may empty the ring.
#[derive(Default)]
pub(super) struct Turns {
    in_use: AtomicBool,
    holder: Mutex<Option<u32>>,
    free: Condvar,
}

/// A write from the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct KeptWrite {
    /// Address or port.
    pub address: u64,
    /// Bytes, 1 to 8.
    pub length: u32,
    /// Whether it is a port.
    pub port: bool,
    /// Little-endian.
    pub data: u64,
}

impl Turns {
    /// From now on there may be something in the ring.
    pub fn begin_use(&self) {
        self.in_use.store(true, Ordering::Release);
    }

    /// Whether there may be something in the ring.
    #[inline]
    pub fn are_in_use(&self) -> bool {
        self.in_use.load(Ordering::Acquire)
    }

    /// Waits for the turn of `vcpu`; nothing if it has it.
    pub fn take(&self, vcpu: u32) {
        let mut holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        while holder.is_some_and(|other| other != vcpu) {
            holder = self.free.wait(holder).unwrap_or_else(PoisonError::into_inner);
        }
        *holder = Some(vcpu);
    }

    /// Ends the turn of `vcpu`; nothing if it does not have it.
    pub fn give_up(&self, vcpu: u32) {
        let mut holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        if *holder == Some(vcpu) {
            *holder = None;
            self.free.notify_one();
        }
    }
}
