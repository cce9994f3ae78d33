//! Publication of immutable snapshots: one writer replaces, any number of readers never wait for it.
//!
//! [`Published<T>`] holds the current snapshot and an *epoch*, a number that changes with each replacement. Each
//! [`Reader<T>`] owns a clone of the snapshot it saw last together with its epoch. An access is one load of the shared
//! epoch and one comparison; nothing shared is written, no reference count is touched and no lock is taken unless the
//! snapshot was in fact replaced. This is the job that SRCU does for memory slots in Linux (`kvm_swap_active_memslots`
//! and `kvm_memslots`), in safe Rust: the reference count of the old snapshot is its grace period.
//!
//! What a reader may rely on:
//! * A snapshot is always whole: it is never modified after publication.
//! * [`Reader::get`] returns a snapshot at least as new as any replacement that happened before the call (in the
//!   happens-before sense; between unsynchronised threads, a replacement becomes visible in finite time).
//! * What one reader sees never goes backwards.
//!
//! What it may not: after a replacement, others can go on using the old snapshot until their next `get`. Whatever a
//! snapshot owns (mappings, devices) therefore stays alive until the last such reader moved on.

use crate::sync::{AtomicU64, Lock, Ordering};
use alloc::sync::Arc;
use core::fmt;

/// A slot for the current snapshot of some immutable state.
///
/// Replacements must come from one writer at a time (whoever computes the next snapshot from the present one needs
/// that anyway; [`crate::SlotTable`] is such a writer). Two unordered [`Published::store`]s are memory-safe, but which
/// one wins is not defined.
pub struct Published<T> {
    /// Number of replacements so far. Written under the lock, after the snapshot; so who sees a number and then takes
    /// the lock finds that snapshot or a later one.
    epoch: AtomicU64,
    current: Lock<Arc<T>>,
}

impl<T> Published<T> {
    /// Publishes the first snapshot.
    pub fn new(first: T) -> Self {
        Self::from_arc(Arc::new(first))
    }

    /// Publishes the first snapshot, already shared.
    pub fn from_arc(first: Arc<T>) -> Self {
        Self {
            epoch: AtomicU64::new(0),
            current: Lock::new(first),
        }
    }

    /// Replaces the snapshot. The old one is dropped by whoever lets go of it last, never while a lock is held.
    pub fn store(&self, next: Arc<T>) {
        let old = self.current.with(|current| {
            let old = core::mem::replace(current, next);
            // Release: a reader that sees this epoch must not miss the snapshot. Only this section writes the epoch.
            let epoch = self.epoch.load(Ordering::Relaxed);
            self.epoch.store(epoch.wrapping_add(1), Ordering::Release);
            old
        });
        drop(old);
    }

    /// The current snapshot, shared. Takes the lock for the length of one reference count increment: for occasional
    /// use. Frequent readers keep a [`Reader`].
    pub fn load(&self) -> Arc<T> {
        self.current.with(|current| Arc::clone(current))
    }

    /// The number of replacements so far. It never repeats (2^64 replacements do not happen).
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The current snapshot and the epoch that belongs to it.
    fn load_with_epoch(&self) -> (Arc<T>, u64) {
        self.current
            .with(|current| (Arc::clone(current), self.epoch.load(Ordering::Relaxed)))
    }
}

impl<T: fmt::Debug> fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published")
            .field("epoch", &self.epoch())
            .field("current", &self.load())
            .finish()
    }
}

/// One thread's view of a [`Published<T>`]: a cached snapshot that is renewed when the epoch changed.
///
/// Cloning gives an independent view for another thread.
pub struct Reader<T> {
    source: Arc<Published<T>>,
    seen: u64,
    snapshot: Arc<T>,
}

impl<T> Reader<T> {
    /// A view of `source`, current as of now.
    pub fn new(source: Arc<Published<T>>) -> Self {
        let (snapshot, seen) = source.load_with_epoch();
        Self { source, seen, snapshot }
    }

    /// The current snapshot. For one operation call it once and keep the reference: two calls may return different
    /// snapshots.
    #[inline]
    pub fn get(&mut self) -> &T {
        self.refresh();
        &self.snapshot
    }

    /// As [`Reader::get`], shared: for keeping a snapshot beyond the next call.
    #[inline]
    pub fn get_arc(&mut self) -> &Arc<T> {
        self.refresh();
        &self.snapshot
    }

    /// The snapshot of the last [`Reader::get`], without looking for a newer one.
    #[inline]
    pub fn cached(&self) -> &T {
        &self.snapshot
    }

    /// The epoch of the snapshot that [`Reader::cached`] returns.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.seen
    }

    /// Renews the cached snapshot if it was replaced; says whether it was. Whoever keeps anything derived from the
    /// snapshot (a last-used entry) throws it away on `true`.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        if self.source.epoch() == self.seen {
            return false;
        }
        self.reload();
        true
    }

    /// Where the snapshots come from.
    pub fn source(&self) -> &Arc<Published<T>> {
        &self.source
    }

    #[cold]
    fn reload(&mut self) {
        let (snapshot, seen) = self.source.load_with_epoch();
        self.seen = seen;
        self.snapshot = snapshot;
    }
}

impl<T> Clone for Reader<T> {
    fn clone(&self) -> Self {
        Self {
            source: Arc::clone(&self.source),
            seen: self.seen,
            snapshot: Arc::clone(&self.snapshot),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Reader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("epoch", &self.seen)
            .field("cached", &self.snapshot)
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn reader_after_store_sees_the_new_snapshot() {
        let published = Arc::new(Published::new(1));
        let mut reader = Reader::new(Arc::clone(&published));
        assert!(!reader.refresh());
        published.store(Arc::new(2));
        assert_eq!(*reader.cached(), 1);
        assert_eq!(*reader.get(), 2);
        assert_eq!(reader.epoch(), published.epoch());
    }

    #[test]
    fn old_snapshot_lives_as_long_as_a_reader_holds_it() {
        let first = Arc::new(1);
        let published = Arc::new(Published::from_arc(Arc::clone(&first)));
        let mut reader = Reader::new(Arc::clone(&published));
        published.store(Arc::new(2));
        assert_eq!(Arc::strong_count(&first), 2);
        reader.get();
        assert_eq!(Arc::strong_count(&first), 1);
    }

    #[test]
    fn dropping_an_old_snapshot_may_use_the_publication() {
        struct LoadsOnDrop(Option<Arc<Published<LoadsOnDrop>>>);
        impl Drop for LoadsOnDrop {
            fn drop(&mut self) {
                if let Some(published) = self.0.take() {
                    published.load();
                }
            }
        }
        let published = Arc::new(Published::new(LoadsOnDrop(None)));
        published.store(Arc::new(LoadsOnDrop(Some(Arc::clone(&published)))));
        published.store(Arc::new(LoadsOnDrop(None)));
        assert_eq!(published.epoch(), 2);
    }
}
