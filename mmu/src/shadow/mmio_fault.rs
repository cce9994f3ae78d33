//! A fault with the RSVD bit: MMIO that is known. No lock, no allocation, nothing shared written.
//!
//! KVM's `handle_mmio_page_fault`, with one addition: an access that the guest's tables may forbid takes the slow path,
//! which knows exactly and gives the guest its fault. (KVM leaves that to its instruction emulator.)

use super::link;
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
use crate::x86::{Access, PagingState};
use umbra_memslots::{Gfn, Gva};

impl<S: TableSpace> ShadowMmu<S> {
    /// `None`: nothing is known, or not for sure; take the slow path.
    pub(super) fn handle_mmio_page_fault<O: MmuObserver>(
        &self,
        ShadowVcpu { own, observer }: &mut ShadowVcpu<O>,
        frames: &mut impl FrameSource,
        ShadowFault { gva, access, .. }: ShadowFault,
    ) -> Option<FaultOutcome> {
        let SlotSet {
            generation,
            address_space,
        } = frames.current();
        let emulate = |gfn: Gfn, access, source| {
            let gpa = gfn.base().wrapping_add(gva.page_offset());
            Some(FaultOutcome::Emulate(MmioAccess { gpa, access, source }))
        };
        if let Some(cached) = own.cache.by_gva(gva, generation, address_space) {
            let (gfn, mask) = (cached.gfn, cached.access);
            if !surely_allowed(&own.state, mask, access) {
                return None;
            }
            own.stats.cache_hits += 1;
            return emulate(gfn, mask, MmioSource::Cache);
        }
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
        let (gfn, mask) = (spte.gfn(layout), spte.access(layout));
        if !surely_allowed(&own.state, mask, access) {
            return None;
        }
        own.stats.spte_hits += 1;
        observer.handle_mmio_page_fault(Some(gva), gfn, mask);
        own.cache.store(CachedMmio {
            gfn,
            gva: own.cached_gva(gva),
            access: mask,
            generation,
            address_space,
        });
        emulate(gfn, mask, MmioSource::Spte)
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

/// Whether an access may happen to a page with these permissions and no side effect on the guest's tables is missing. An
/// MMIO SPTE doesn't hold X or the protection key, and W only where the guest's dirty flag is set.
fn surely_allowed(state: &PagingState, mask: AccessMask, access: Access) -> bool {
    if access.is_fetch() || state.keys.is_some() || (access.is_write() && !mask.contains(AccessMask::WRITE)) {
        return false;
    }
    Permissions { mask, key: 0 }.check(state, access).allowed
}
