//! [`Signals`]: what other threads tell a vCPU, while it runs or sleeps.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Kicks and interrupts on their way to one vCPU.
#[derive(Default)]
pub(super) struct Signals {
    kicked: AtomicBool,
    interrupt: AtomicBool,
    /// Held while a sleeper decides to sleep and while it is woken, so that neither misses the other.
    sleep: Mutex<()>,
    woken: Condvar,
}

impl Signals {
    /// Makes the vCPU come out.
    pub fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// An interrupt may wait.
    pub fn raise(&self) {
        self.interrupt.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whoever waits is about to be looked at. What comes later raises again.
    pub fn lower(&self) {
        self.interrupt.store(false, Ordering::SeqCst);
    }

    fn wake(&self) {
        let _guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.woken.notify_one();
    }

    /// Whether an interrupt may wait.
    #[inline]
    pub fn interrupt(&self) -> bool {
        self.interrupt.load(Ordering::Acquire)
    }

    /// Whether there was a kick, which is answered by that.
    #[inline]
    pub fn take_kick(&self) -> bool {
        // A load is cheaper than an exchange.
        self.kicked.load(Ordering::Acquire) && self.kicked.swap(false, Ordering::SeqCst)
    }

    /// Sleeps until there is a kick, or, if `open`, an interrupt, or something `urgent`, of which [`Signals::raise`] tells
    /// too.
    pub fn wait(&self, open: bool, urgent: impl Fn() -> bool) {
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        while !(self.kicked.load(Ordering::SeqCst) || open && self.interrupt.load(Ordering::SeqCst) || urgent()) {
            guard = self.woken.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
