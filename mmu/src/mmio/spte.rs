//! [`MmioSpte`]: "this gfn has no memslot", remembered in the page-table entry itself. Encoding and decoding only.
//!
//! KVM's `make_mmio_spte`, `is_mmio_spte`, `get_mmio_spte_gfn`, `get_mmio_spte_access` and
//! `get_mmio_spte_generation`, bit for bit.

use crate::access_mask::AccessMask;
use crate::mmio::MmioGen;
use crate::shadow::SpteLayout;
use crate::shadow::layout::L1TF_DISPLACEMENT;
use core::fmt;
use umbra_memslots::{Generation, Gfn, PAGE_SHIFT};

/// A page-table entry that says "MMIO": gfn, access and generation behind bits that make every walk over it fault.
///
/// Always a 4 KiB entry, at level 1. Only means something together with the layout it was made for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MmioSpte(u64);

/// What an MMIO SPTE holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MmioFacts {
    /// The frame that has no memslot.
    pub gfn: Gfn,
    /// What the guest's tables allow there; always empty in EPT format, which has no room for it.
    pub access: AccessMask,
    /// The cut of the generation at which that was true.
    pub generation: MmioGen,
}

/// Whether an MMIO SPTE may be believed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Freshness {
    /// The memslots are the same as when it was made.
    Fresh,
    /// They changed since.
    Stale,
    /// They are changing.
    InProgress,
}

impl MmioSpte {
    /// Makes the entry; `None` if the layout has no MMIO SPTEs or none with such a gfn
    /// ([`SpteLayout::holds_gfn`]): that access has to be emulated without one.
    #[inline]
    #[must_use]
    pub const fn encode(layout: &SpteLayout, gfn: Gfn, access: AccessMask, generation: MmioGen) -> Option<Self> {
        if !layout.caches_mmio() || !layout.holds_gfn(gfn) {
            return None;
        }
        let gpa = gfn.base().get();
        let hidden = gpa & layout.l1tf_mask();
        Some(Self(
            generation.to_entry(layout.generation_spans())
                | layout.mmio_value()
                | (access.bits() as u64 & layout.mmio_access_mask())
                | gpa
                | layout.l1tf_mask()
                | (hidden << L1TF_DISPLACEMENT),
        ))
    }

    /// The entry as an MMIO SPTE, if it is one. To be asked before any other decoding.
    #[inline]
    #[must_use]
    pub const fn recognise(layout: &SpteLayout, entry: u64) -> Option<Self> {
        if layout.caches_mmio() && entry & layout.mmio_mask() == layout.mmio_value() {
            Some(Self(entry))
        } else {
            None
        }
    }

    /// The entry as the hardware sees it.
    #[inline]
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The frame it is about.
    #[inline]
    #[must_use]
    pub const fn gfn(self, layout: &SpteLayout) -> Gfn {
        let gpa = (self.0 & layout.lower_gfn_mask()) | ((self.0 >> L1TF_DISPLACEMENT) & layout.l1tf_mask());
        Gfn::from_masked(gpa >> PAGE_SHIFT)
    }

    /// What the guest's tables allow there, as far as the format has room.
    #[inline]
    #[must_use]
    pub const fn access(self, layout: &SpteLayout) -> AccessMask {
        #[expect(clippy::cast_possible_truncation, reason = "the access is in bits 2:0")]
        AccessMask::from_masked((self.0 & layout.mmio_access_mask()) as u8)
    }

    /// When it was made.
    #[inline]
    #[must_use]
    pub const fn generation(self, layout: &SpteLayout) -> MmioGen {
        MmioGen::from_entry(self.0, layout.generation_spans())
    }

    /// Everything it holds.
    #[inline]
    #[must_use]
    pub const fn facts(self, layout: &SpteLayout) -> MmioFacts {
        MmioFacts {
            gfn: self.gfn(layout),
            access: self.access(layout),
            generation: self.generation(layout),
        }
    }

    /// Whether it may be believed by who sees the memslots at `current` (KVM's `check_mmio_spte`).
    ///
    /// Says nothing about wraps: see [`crate::mmio::MmioEra`].
    #[inline]
    #[must_use]
    pub fn check(self, layout: &SpteLayout, current: Generation) -> Freshness {
        if current.is_in_progress() {
            Freshness::InProgress
        } else if self.generation(layout) == MmioGen::cut(current, layout.generation_spans()) {
            Freshness::Fresh
        } else {
            Freshness::Stale
        }
    }
}

impl fmt::Debug for MmioSpte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MmioSpte({:#018x})", self.0)
    }
}
