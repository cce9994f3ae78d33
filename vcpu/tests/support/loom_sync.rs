//! `soft/sync.rs`, on the model checker's types.

pub(super) use loom::sync::Arc;
pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use loom::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(super) type Guard<'a, T> = MutexGuard<'a, T>;

#[derive(Default)]
pub(super) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub fn lock(&self) -> Guard<'_, T> {
        self.0.lock().unwrap()
    }
}

#[derive(Default)]
pub(super) struct SharedLock<T>(RwLock<T>);

impl<T> SharedLock<T> {
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap()
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap()
    }
}

pub(super) fn pause(_turns: &mut u32) {
    loom::thread::yield_now();
}
