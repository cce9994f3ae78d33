//! A fault with the RSVD bit: MMIO that is known. No lock, no allocation, nothing shared written.
//!
//! KVM's `handle_mmio_page_fault`. What KVM leaves to its instruction emulator is done here as well: for an access that the
//! guest's tables may forbid, or for which they lack a flag, they are walked, without the lock.

use super::link;
use super::map::{clean_is_read_only, observed_walk, refused};
use super::mmu::ShadowMmu;
use super::outcome::{FaultOutcome, MmioAccess, ShadowFault};
use super::ports::FrameSource;
use super::root::entry_of;
use super::vcpu::{Own, ShadowVcpu};
use crate::access_mask::AccessMask;
use crate::direct::{MmioSource, SlotSet};
use crate::mmio::{CachedMmio, Freshness, MmioEra, MmioSpte};
use crate::observer::MmuObserver;
use crate::tables::TableSpace;
use crate::x86::access::Permissions;
use crate::x86::{Access, PagingMode, PagingState};
use umbra_memslots::{GuestMemory, Gva};

impl<S: TableSpace> ShadowMmu<S> {
    /// `None`: nothing is known; take the slow path.
    #[inline]
    pub(super) fn handle_mmio_page_fault<O: MmuObserver>(
        &self,
        vcpu: &mut ShadowVcpu<O>,
        memory: &impl GuestMemory,
        frames: &mut impl FrameSource,
        fault: ShadowFault,
    ) -> Option<FaultOutcome> {
        let set = frames.current();
        let own = &mut vcpu.own;
        if let Some(&mmio) = own.cache.by_gva(fault.gva, set.generation, set.address_space) {
            own.stats.cache_hits += 1;
            if surely_allowed(&own.state, mmio.access, fault.access) {
                return Some(emulate(fault, &mmio, MmioSource::Cache));
            }
            return walk_for_rights(vcpu, memory, fault, &mmio, MmioSource::Cache);
        }
        self.known_by_entry(vcpu, memory, set, fault)
    }

    /// What the MMIO SPTE says, if there is one.
    #[inline(never)]
    fn known_by_entry<O: MmuObserver>(
        &self,
        vcpu: &mut ShadowVcpu<O>,
        memory: &impl GuestMemory,
        SlotSet {
            generation,
            address_space,
        }: SlotSet,
        fault: ShadowFault,
    ) -> Option<FaultOutcome> {
        let ShadowVcpu { own, observer } = &mut *vcpu;
        let gva = fault.gva;
        let layout = &self.layout;
        let era = MmioEra::of(generation, layout.generation_spans());
        if self.eras.of(address_space) != era {
            return None;
        }
        // Who enters another era zaps everything, which this notices.
        let entry = self.leaf(own, gva)?;
        let Some(spte) = MmioSpte::recognise(layout, entry) else {
            // Zapped, or replaced, since the CPU read it.
            return Some(FaultOutcome::Retry);
        };
        let freshness = spte.check(layout, generation);
        observer.check_mmio_spte(spte, generation, spte.generation(layout), freshness == Freshness::Fresh);
        if freshness != Freshness::Fresh {
            own.stats.stale += u64::from(freshness == Freshness::Stale);
            return None;
        }
        let mmio = CachedMmio {
            gfn: spte.gfn(layout),
            gva: own.cached_gva(gva),
            access: spte.access(layout),
            generation,
            address_space,
        };
        own.stats.spte_hits += 1;
        let traced = (own.state.mode != PagingMode::None).then_some(gva);
        observer.handle_mmio_page_fault(traced, mmio.gfn, mmio.access);
        own.cache.store(mmio);
        if surely_allowed(&own.state, mmio.access, fault.access) {
            return Some(emulate(fault, &mmio, MmioSource::Spte));
        }
        walk_for_rights(vcpu, memory, fault, &mmio, MmioSource::Spte)
    }

    /// The entry at which a walk for `gva` ends. `None` if the vCPU has no root, or tables were recycled during the walk.
    fn leaf(&self, own: &Own, gva: Gva) -> Option<u64> {
        // Before the root: if that was cut off and its tables recycled, either this is the later count, and the cut is seen
        // below, or the count differs in the end.
        let before = self.pool.recycled();
        let (mut table, mut level) = self.current_root(own)?.start(gva)?;
        let mut entry = self.pool.space().load(entry_of(table, level, gva));
        while level > 1 {
            let Some(next) = link::target(&self.layout, entry).and_then(|next| self.pool.space().table_at(next)) else {
                break;
            };
            (table, level) = (next, level - 1);
            entry = self.pool.space().load(entry_of(table, level, gva));
        }
        (self.pool.recycled() == before).then_some(entry)
    }
}

fn emulate(fault: ShadowFault, mmio: &CachedMmio, source: MmioSource) -> FaultOutcome {
    FaultOutcome::Emulate(MmioAccess {
        gpa: mmio.gfn.base().wrapping_add(fault.gva.page_offset()),
        access: mmio.access,
        source,
    })
}

/// It is MMIO; the guest's tables say whether this access may happen there. `None` if they lead elsewhere now.
#[inline(never)]
fn walk_for_rights<O: MmuObserver>(
    ShadowVcpu { own, observer }: &mut ShadowVcpu<O>,
    memory: &impl GuestMemory,
    fault: ShadowFault,
    mmio: &CachedMmio,
    source: MmioSource,
) -> Option<FaultOutcome> {
    match observed_walk(&own.state, memory, observer, fault) {
        Ok(walk) if walk.gpa.gfn() == mmio.gfn => Some(FaultOutcome::Emulate(MmioAccess {
            gpa: walk.gpa,
            access: clean_is_read_only(&walk, fault.access),
            source,
        })),
        // The guest has changed its tables since.
        Ok(_) => None,
        Err(failure) => Some(refused(own, observer, failure)),
    }
}

/// Whether an access may happen to a page with these permissions and no side effect on the guest's tables is missing. An
/// MMIO SPTE doesn't hold X or the protection key, and W only where the guest's dirty flag is set.
#[inline]
fn surely_allowed(state: &PagingState, mask: AccessMask, access: Access) -> bool {
    if access.is_fetch() || state.keys.is_some() || (access.is_write() && !mask.contains(AccessMask::WRITE)) {
        return false;
    }
    Permissions { mask, key: 0 }.check(state, access).allowed
}
