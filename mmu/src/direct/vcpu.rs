//! [`DirectVcpu`]: what one vCPU keeps for itself on the direct side, so that its hot path writes nothing shared.

use super::table::LastTable;
use crate::mmio::VcpuMmioCache;
use crate::observer::{MmuObserver, NoObserver};
use umbra_memslots::SlotId;

/// The kind of an access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// A read or an instruction fetch.
    Read,
    /// A write.
    Write,
}

/// How an access came to be known as MMIO.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MmioSource {
    /// The vCPU's own cache: its last MMIO page.
    Cache,
    /// A fresh MMIO SPTE.
    Spte,
    /// A search of the memslots.
    Search,
}

/// What is to be done about an access that the hardware didn't complete.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MmioAnswer {
    /// No memslot: emulate it, on the bus.
    Mmio(MmioSource),
    /// A write to a read-only memslot: emulate it, on the bus. Never cached.
    ReadOnlyWrite(SlotId),
    /// A memslot is there now, or is just being changed: let the guest try again.
    Retry(SlotId),
}

/// Counts of one vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DirectStats {
    /// Recognised by the vCPU's cache.
    pub cache_hits: u64,
    /// Recognised by a fresh MMIO SPTE.
    pub spte_hits: u64,
    /// MMIO SPTEs met that were made at another generation (each followed by a search).
    pub stale: u64,
    /// Searches of the memslots.
    pub searches: u64,
    /// MMIO SPTEs made.
    pub created: u64,
    /// Writes to read-only slots.
    pub read_only_writes: u64,
    /// Accesses that found a slot, and were told to try again.
    pub retries: u64,
    /// Times this vCPU zapped an address space because the generation in SPTEs had wrapped.
    pub wraps: u64,
    /// Times this vCPU zapped an address space because all tables were in use.
    pub reclaims: u64,
}

/// One vCPU's part of one [`DirectMmu`](super::DirectMmu); not to be used with another.
#[derive(Clone, Debug, Default)]
pub struct DirectVcpu<O = NoObserver> {
    pub(super) cache: VcpuMmioCache,
    pub(super) last: LastTable,
    pub(super) stats: DirectStats,
    pub(super) observer: O,
}

impl DirectVcpu {
    /// Knows nothing yet, tells nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl<O: MmuObserver> DirectVcpu<O> {
    /// Knows nothing yet, tells `observer`.
    pub fn with_observer(observer: O) -> Self {
        Self {
            cache: VcpuMmioCache::new(),
            last: LastTable::new(),
            stats: DirectStats::default(),
            observer,
        }
    }

    /// Its counts so far.
    #[inline]
    pub fn stats(&self) -> &DirectStats {
        &self.stats
    }

    /// Its observer.
    pub fn observer(&self) -> &O {
        &self.observer
    }

    /// Its observer.
    pub fn observer_mut(&mut self) -> &mut O {
        &mut self.observer
    }

    /// Forgets the last MMIO page, e.g. on a reset of the vCPU. Never needed for correctness.
    pub fn forget(&mut self) {
        self.cache.clear();
    }
}
