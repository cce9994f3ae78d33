//! [`VcpuMmioCache`]: the last MMIO page of one vCPU.
//!
//! KVM's `vcpu_cache_mmio_info`, `vcpu_match_mmio_gva`, `vcpu_match_mmio_gpa` and `vcpu_clear_mmio_info`
//! (`arch/x86/kvm/x86.h`), without their zero sentinels: page 0 can be cached like any other.

use crate::access_mask::AccessMask;
use umbra_memslots::{AddressSpaceId, Generation, Gfn, Gva};

/// What is known about one page without memslot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CachedMmio {
    /// The frame.
    pub gfn: Gfn,
    /// The page through which the vCPU last reached it; `None` where there is no paging that the entry depends on
    /// (direct tables), or the address isn't one of this vCPU's own (nested).
    pub gva: Option<Gva>,
    /// What the guest's tables allow there.
    pub access: AccessMask,
    /// The memslots' generation, in full, at which there was no slot.
    pub generation: Generation,
    /// The address space whose memslots those were.
    pub address_space: AddressSpaceId,
}

/// One remembered MMIO page. Owned by a vCPU's thread: no locks, no atomics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VcpuMmioCache {
    entry: Option<CachedMmio>,
}

impl VcpuMmioCache {
    /// An empty cache.
    #[must_use]
    pub const fn new() -> Self {
        Self { entry: None }
    }

    /// Remembers a page. While the memslots are being changed nothing is remembered, and what was is left alone.
    #[inline]
    pub fn store(&mut self, found: CachedMmio) {
        if !found.generation.is_in_progress() {
            self.entry = Some(CachedMmio {
                gva: found.gva.map(Gva::page_base),
                ..found
            });
        }
    }

    /// What is known about the page that `gva` lies in, for who sees the memslots of `address_space` at `current`.
    ///
    /// The guest's tables aren't looked at: the caller compares [`CachedMmio::access`] with the access wanted, and
    /// has called [`VcpuMmioCache::forget_gva`] and [`VcpuMmioCache::forget_gvas`] where x86 says that translations
    /// are invalidated.
    #[inline]
    #[must_use]
    pub fn by_gva(&self, gva: Gva, current: Generation, address_space: AddressSpaceId) -> Option<&CachedMmio> {
        let page = gva.page_base();
        self.entry
            .as_ref()
            .filter(|entry| entry.gva == Some(page) && is_current(entry, current, address_space))
    }

    /// What is known about a frame, for who sees the memslots of `address_space` at `current`.
    #[inline]
    #[must_use]
    pub fn by_gfn(&self, gfn: Gfn, current: Generation, address_space: AddressSpaceId) -> Option<&CachedMmio> {
        self.entry
            .as_ref()
            .filter(|entry| entry.gfn == gfn && is_current(entry, current, address_space))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entry = None;
    }

    /// Forgets which address led to the page (a root was loaded, all translations were flushed). That the frame has
    /// no memslot stays true.
    pub fn forget_gvas(&mut self) {
        if let Some(entry) = &mut self.entry {
            entry.gva = None;
        }
    }

    /// Forgets the translation of one page (INVLPG).
    pub fn forget_gva(&mut self, gva: Gva) {
        if let Some(entry) = &mut self.entry
            && entry.gva == Some(gva.page_base())
        {
            entry.gva = None;
        }
    }
}

#[inline]
fn is_current(entry: &CachedMmio, current: Generation, address_space: AddressSpaceId) -> bool {
    // A generation in progress never equals a stored one.
    entry.generation == current && entry.address_space == address_space
}

#[cfg(test)]
mod tests {
    use super::*;

    const NORMAL: AddressSpaceId = AddressSpaceId::Normal;

    fn found(gva: Option<u64>, gfn: u64, generation: u64) -> CachedMmio {
        CachedMmio {
            gfn: Gfn::new(gfn).unwrap(),
            gva: gva.map(Gva::new),
            access: AccessMask::ALL,
            generation: Generation::from_raw(generation),
            address_space: NORMAL,
        }
    }

    fn holding(entry: CachedMmio) -> VcpuMmioCache {
        let mut cache = VcpuMmioCache::new();
        cache.store(entry);
        cache
    }

    #[test]
    fn page_zero_is_cached_like_any_other() {
        let cache = holding(found(Some(0), 0, 4));
        let generation = Generation::from_raw(4);
        assert!(cache.by_gva(Gva::new(0xfff), generation, NORMAL).is_some());
        assert!(cache.by_gfn(Gfn::new(0).unwrap(), generation, NORMAL).is_some());
        assert!(VcpuMmioCache::new().by_gva(Gva::new(0), generation, NORMAL).is_none());
        assert!(
            VcpuMmioCache::new()
                .by_gfn(Gfn::new(0).unwrap(), generation, NORMAL)
                .is_none()
        );
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let cache = holding(found(Some(0x7000), 0xd0, 4));
        let now = Generation::from_raw(4);
        let hit = |gva, generation, space| cache.by_gva(Gva::new(gva), generation, space).is_some();
        assert!(hit(0x7123, now, NORMAL));
        assert!(!hit(0x8000, now, NORMAL));
        assert!(!hit(0x7123, Generation::from_raw(6), NORMAL));
        // Equal in every bit that an SPTE would hold, yet not the same.
        assert!(!hit(0x7123, Generation::from_raw(4 + (1 << 40)), NORMAL));
        assert!(!hit(0x7123, now, AddressSpaceId::Smm));
        assert!(!hit(0x7123, now.begin_update(), NORMAL));
    }

    #[test]
    fn entry_without_gva_is_found_by_gfn_only() {
        let cache = holding(found(None, 0xd0, 4));
        assert!(cache.by_gva(Gva::new(0), Generation::from_raw(4), NORMAL).is_none());
        assert!(
            cache
                .by_gfn(Gfn::new(0xd0).unwrap(), Generation::from_raw(4), NORMAL)
                .is_some()
        );
    }

    #[test]
    fn nothing_is_stored_during_an_update() {
        let mut cache = holding(found(Some(0x7000), 0xd0, 4));
        let during = found(Some(0x9000), 0xd9, Generation::from_raw(4).begin_update().get());
        cache.store(during);
        assert_eq!(cache, holding(found(Some(0x7000), 0xd0, 4)));
    }

    #[test]
    fn invlpg_forgets_one_translation_and_keeps_the_frame() {
        let mut cache = holding(found(Some(0x7000), 0xd0, 4));
        let now = Generation::from_raw(4);
        cache.forget_gva(Gva::new(0x8000));
        assert!(cache.by_gva(Gva::new(0x7000), now, NORMAL).is_some());
        cache.forget_gva(Gva::new(0x7fff));
        assert!(cache.by_gva(Gva::new(0x7000), now, NORMAL).is_none());
        assert!(cache.by_gfn(Gfn::new(0xd0).unwrap(), now, NORMAL).is_some());
        cache.clear();
        assert_eq!(cache, VcpuMmioCache::new());
    }
}
