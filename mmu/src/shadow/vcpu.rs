//! [`ShadowVcpu`]: what one vCPU keeps for itself on the shadow side.

use super::root::RootTables;
use crate::mmio::VcpuMmioCache;
use crate::observer::{MmuObserver, NoObserver};
use crate::x86::PagingState;

/// Counts of one vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShadowStats {
    /// Faults in all.
    pub faults: u64,
    /// MMIO recognised by the vCPU's cache.
    pub cache_hits: u64,
    /// MMIO recognised by a fresh MMIO SPTE.
    pub spte_hits: u64,
    /// MMIO SPTEs met that were made at another generation.
    pub stale: u64,
    /// MMIO SPTEs made.
    pub created: u64,
    /// Pages mapped.
    pub fixed: u64,
    /// Writes to guest tables.
    pub tracked_writes: u64,
    /// Faults given to the guest.
    pub injected: u64,
    /// Roots loaded.
    pub roots: u64,
    /// Times that everything was zapped because all tables were in use.
    pub reclaims: u64,
}

/// One vCPU's part of one [`ShadowMmu`](super::ShadowMmu); not to be used with another.
#[derive(Debug)]
pub struct ShadowVcpu<O = NoObserver> {
    pub(super) own: Own,
    pub(super) observer: O,
}

/// All of it but the observer, who is borrowed apart.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) state: PagingState,
    /// The root's tables, and the epoch in which they were valid.
    pub(super) root: Option<(RootTables, u64)>,
    pub(super) cache: VcpuMmioCache,
    pub(super) stats: ShadowStats,
}

impl ShadowVcpu {
    /// A vCPU with these registers, that tells nobody.
    #[must_use]
    pub fn new(state: PagingState) -> Self {
        Self::with_observer(state, NoObserver)
    }
}

impl<O: MmuObserver> ShadowVcpu<O> {
    /// A vCPU with these registers, that tells `observer`.
    pub fn with_observer(state: PagingState, observer: O) -> Self {
        let own = Own {
            state,
            root: None,
            cache: VcpuMmioCache::new(),
            stats: ShadowStats::default(),
        };
        Self { own, observer }
    }

    /// The registers have changed, or CR3 was loaded: translations are forgotten, and the next
    /// [`ShadowMmu::root`](super::ShadowMmu::root) finds or makes the root that belongs to them.
    ///
    /// RFLAGS.AC and PKRU may change without the root: a walker has them itself.
    pub fn set_state(&mut self, state: PagingState) {
        self.own.state = state;
        self.own.root = None;
        self.own.cache.forget_gvas();
    }

    /// The registers.
    pub fn state(&self) -> &PagingState {
        &self.own.state
    }

    /// The counts so far.
    pub fn stats(&self) -> &ShadowStats {
        &self.own.stats
    }

    /// The observer.
    pub fn observer(&self) -> &O {
        &self.observer
    }

    /// The observer, to be told of what is done on behalf of this vCPU.
    pub fn observer_mut(&mut self) -> &mut O {
        &mut self.observer
    }
}
