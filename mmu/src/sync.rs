//! The atomics and the lock that the lock-free parts are built on: loom's when it checks them, otherwise the real ones.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU64, Ordering};

/// Waits a little for another thread.
#[cfg(loom)]
pub(crate) use loom::thread::yield_now as relax;

/// Waits a little for another thread.
#[cfg(not(loom))]
pub(crate) use core::hint::spin_loop as relax;

/// A mutex whose guard is a closure's argument, so that its three implementations look the same and no guard escapes.
pub(crate) struct Lock<T>(Inner<T>);

#[cfg(loom)]
type Inner<T> = loom::sync::Mutex<T>;
#[cfg(all(feature = "std", not(loom)))]
type Inner<T> = std::sync::Mutex<T>;
#[cfg(all(not(feature = "std"), not(loom)))]
type Inner<T> = spin::Mutex<T>;

impl<T> Lock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Inner::new(value))
    }

    /// Runs `f` with the lock held. Not re-entrant.
    #[cfg(any(feature = "std", loom))]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        // A panic under the lock can only come from a broken invariant or from an observer; what the lock guards is
        // consistent between any two steps, so others may go on.
        let mut guard = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        f(&mut guard)
    }

    /// Runs `f` with the lock held. Not re-entrant.
    #[cfg(not(any(feature = "std", loom)))]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock())
    }
}
