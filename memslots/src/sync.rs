//! The one lock and the one atomic that publication needs, on std, on bare metal and under loom.
//!
//! `loom` replaces both when the crate is built with `--cfg loom`, so that [`crate::publish`] can be model-checked.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU64, Ordering};

#[cfg(loom)]
type Inner<T> = loom::sync::Mutex<T>;
#[cfg(all(not(loom), feature = "std"))]
type Inner<T> = std::sync::Mutex<T>;
#[cfg(all(not(loom), not(feature = "std")))]
type Inner<T> = spin::Mutex<T>;

/// A mutual exclusion lock with a closure interface, so that no guard outlives the few instructions it protects.
pub(crate) struct Lock<T>(Inner<T>);

impl<T> Lock<T> {
    /// Wraps a value.
    pub(crate) fn new(value: T) -> Self {
        Self(Inner::new(value))
    }

    /// Runs `critical` with exclusive access. A panic inside an earlier critical section does not make the lock
    /// unusable: every critical section in this crate leaves the value whole at each step.
    pub(crate) fn with<R>(&self, critical: impl FnOnce(&mut T) -> R) -> R {
        #[cfg(any(loom, feature = "std"))]
        let mut guard = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        #[cfg(all(not(loom), not(feature = "std")))]
        let mut guard = self.0.lock();
        critical(&mut guard)
    }
}
