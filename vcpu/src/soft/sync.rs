//! What `gate` and `code` are built on; the model checker's tests put their own in the place of this file.

pub(super) use std::sync::Arc;
pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(super) type Guard<'a, T> = std::sync::MutexGuard<'a, T>;

/// Turns of a waiting loop before it gives the host's CPU to others.
const SPINS: u32 = 64;

/// A lock that a panic doesn't poison: nothing that it protects is ever half done.
#[derive(Default)]
pub(super) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub fn lock(&self) -> Guard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same for many readers.
#[derive(Default)]
pub(super) struct SharedLock<T>(RwLock<T>);

impl<T> SharedLock<T> {
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One turn of a loop that waits for another thread.
pub(super) fn pause(turns: &mut u32) {
    *turns += 1;
    if *turns < SPINS {
        std::hint::spin_loop();
    } else {
        *turns = SPINS;
        std::thread::yield_now();
    }
}
