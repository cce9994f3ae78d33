//! [`Signals`]: what other threads tell a vCPU, while it runs or sleeps.

use crate::turns::{Bell, WeakBell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

/// Kicks and interrupts on their way to one vCPU.
#[derive(Default)]
pub(super) struct Signals {
    kicked: AtomicBool,
    interrupt: AtomicBool,
    /// A kick was answered.
    answered: AtomicBool,
    /// Held while a sleeper decides to sleep and while it is woken, so that neither misses the other.
    sleep: Mutex<()>,
    woken: Condvar,
    /// Who else is to hear of it: whoever keeps the turns of several vCPUs, if there is one.
    bell: OnceLock<WeakBell>,
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

    /// Whoever waits was looked at, and waits on. For the vCPU itself, which sleeps not now.
    pub fn leave_raised(&self) {
        self.interrupt.store(true, Ordering::SeqCst);
    }

    fn wake(&self) {
        let _guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.woken.notify_one();
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }

    /// Has `bell` ring for each kick and each interrupt. Once.
    pub fn set_bell(&self, bell: &Bell) {
        // A vCPU takes its turns in one place only.
        let _ = self.bell.set(bell.downgrade());
    }

    /// Whether an interrupt may wait.
    #[inline]
    pub fn interrupt(&self) -> bool {
        self.interrupt.load(Ordering::Acquire)
    }

    /// Whether there is anything to look at.
    #[inline]
    pub fn any(&self) -> bool {
        self.kicked.load(Ordering::Relaxed) || self.interrupt.load(Ordering::Relaxed)
    }

    /// Whether there was a kick, which is answered by that.
    #[inline]
    pub fn take_kick(&self) -> bool {
        // A load is cheaper than an exchange.
        let kicked = self.kicked.load(Ordering::Acquire) && self.kicked.swap(false, Ordering::SeqCst);
        if kicked {
            self.answered.store(true, Ordering::Relaxed);
        }
        kicked
    }

    /// Whether a kick was answered since the last time. On the vCPU's thread.
    pub fn take_answered(&self) -> bool {
        self.answered.swap(false, Ordering::Relaxed)
    }

    /// Sleeps until there is a kick, or whatever `woken` says there is, of which [`Signals::raise`] tells.
    pub fn wait(&self, woken: impl Fn() -> bool) {
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        while !(self.kicked.load(Ordering::SeqCst) || woken()) {
            guard = self.woken.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
