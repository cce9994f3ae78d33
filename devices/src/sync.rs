//! Locks that a panic does not poison: what they protect here is whole at each step.

#[cfg(loom)]
use loom::sync::{Mutex as WriterMutex, MutexGuard as WriterGuard};
#[cfg(not(loom))]
use std::sync::{Mutex as WriterMutex, MutexGuard as WriterGuard};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The lock of the bus's writer: loom's under `--cfg loom`, so that the bus can be model-checked.
#[derive(Debug, Default)]
pub(crate) struct Lock<T>(WriterMutex<T>);

impl<T> Lock<T> {
    /// Wraps a value.
    pub(crate) fn new(value: T) -> Self {
        Self(WriterMutex::new(value))
    }

    /// Waits for exclusive access.
    pub(crate) fn lock(&self) -> WriterGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locks a device's own state. Plain std also under loom: models are not part of what is model-checked.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
