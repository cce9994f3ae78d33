//! [`ShadowVcpu`]: what one vCPU keeps for itself on the shadow side.

use super::root_cache::Loaded;
use crate::mmio::VcpuMmioCache;
use crate::observer::{MmuObserver, NoObserver};
use crate::x86::PagingState;
use alloc::vec::Vec;
use umbra_memslots::{Gpa, Gva};

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
    /// Pages mapped besides, because they are neighbours of one.
    pub prefetched: u64,
    /// Pages made writable again without the lock.
    pub fast_fixed: u64,
    /// Writes to guest tables.
    pub tracked_writes: u64,
    /// Faults given to the guest.
    pub injected: u64,
    /// Roots loaded.
    pub roots: u64,
    /// Those of them that were remembered.
    pub root_hits: u64,
    /// Times that pages were zapped because all tables were in use.
    pub reclaims: u64,
    /// Pages that were zapped then.
    pub reclaimed_pages: u64,
}

impl ShadowStats {
    /// So many pages had to go.
    pub(super) fn note_reclaim(&mut self, pages: u32) {
        self.reclaims += u64::from(pages > 0);
        self.reclaimed_pages += u64::from(pages);
    }
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
    pub(super) root: Option<Loaded>,
    /// Roots that were current before, the last one first.
    pub(super) previous: Vec<Loaded>,
    pub(super) pcid: u16,
    /// Addresses are those of the guest's guest.
    pub(super) guest_mode: bool,
    pub(super) cache: VcpuMmioCache,
    pub(super) stats: ShadowStats,
}

impl Own {
    /// An address, as the MMIO cache may know it.
    pub(super) fn cached_gva(&self, gva: Gva) -> Option<Gva> {
        (!self.guest_mode).then_some(gva)
    }
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
        Self::in_mode(state, false, observer)
    }

    /// A vCPU's other half: what it keeps while its guest (L1), a hypervisor, runs a guest of its own (L2) on a nested table
    /// in x86 format (AMD's nested paging). `table` is that table: long mode, with nCR3 as the root. KVM's `guest_mmu`.
    ///
    /// It is used as any other, with L2's physical addresses in the place of virtual ones:
    ///
    /// * the walker of the shadow is the second stage of the CPU that runs L2. Its accesses are user-mode accesses (APM
    ///   vol. 2, 15.25.5);
    /// * [`FaultOutcome::Inject`](super::FaultOutcome::Inject) is a nested page fault for L1;
    /// * what L1 writes to its nested tables it writes through the mappings of its own half, which is how they stay in step.
    ///   Its INVLPGA is [`ShadowMmu::invlpg`](super::ShadowMmu::invlpg), its flush of an ASID, or another nCR3,
    ///   [`ShadowVcpu::set_state`];
    /// * MMIO is recognised by MMIO SPTEs alone, which hold L1's gfns: the vCPU's cache is keyed by other addresses.
    ///
    /// L2 has at most 47 address bits: what lies above is answered by
    /// [`FaultOutcome::NonCanonical`](super::FaultOutcome::NonCanonical).
    pub fn nested(table: PagingState, observer: O) -> Self {
        Self::in_mode(table, true, observer)
    }

    fn in_mode(state: PagingState, guest_mode: bool, observer: O) -> Self {
        let own = Own {
            state,
            root: None,
            previous: Vec::new(),
            pcid: 0,
            guest_mode,
            cache: VcpuMmioCache::new(),
            stats: ShadowStats::default(),
        };
        Self { own, observer }
    }

    /// The registers have changed, or CR3 was loaded: translations are forgotten, and the next
    /// [`ShadowMmu::root`](super::ShadowMmu::root) finds or makes the root that belongs to them.
    ///
    /// RFLAGS.AC and PKRU may change without the root: a walker has them itself. For the flag alone there is
    /// [`ShadowVcpu::set_alignment_flag`], which costs nothing.
    pub fn set_state(&mut self, state: PagingState) {
        if rules_of(&self.own.state) != rules_of(&state) {
            self.own.forget_roots();
        }
        self.load_cr3(state, self.own.pcid, true);
        self.own.outdate_roots(|_| true);
    }

    /// RFLAGS.AC has changed and nothing else. Translations stay: whoever uses one looks at the flag (SDM vol. 3A section
    /// 4.6.1, SMAP).
    pub fn set_alignment_flag(&mut self, ac: bool) {
        self.own.state.ac = ac;
    }

    /// CR3 was loaded, in an address space of this PCID (0 where PCIDs aren't in use). With `keep` (bit 63 of the value)
    /// the translations that are known of the PCID stay: then a root that is remembered doesn't catch up with the guest's
    /// tables.
    pub fn load_cr3(&mut self, state: PagingState, pcid: u16, keep: bool) {
        let own = &mut self.own;
        if own.state != state || own.pcid != pcid {
            own.leave_root();
        }
        if !keep {
            own.outdate_roots(|root| root == pcid);
        }
        own.state = state;
        own.pcid = pcid;
        own.cache.forget_gvas();
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

/// What of the registers decides how tables are read: when it changes, no root is of use any more (KVM's
/// `KVM_MMU_*_ROLE_BITS`).
const fn rules_of(state: &PagingState) -> PagingState {
    let keys = if state.keys.is_some() { Some(0) } else { None };
    PagingState {
        root: Gpa::new(0),
        pdptes: [0; 4],
        ac: false,
        keys,
        ..*state
    }
}
