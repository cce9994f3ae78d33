//! [`SpteLayout`]: the bit budget of a shadow page-table entry (SPTE) on one host.
//!
//! An SPTE is read by a CPU (or by the model of one), so most of its 64 bits are the hardware's. What software keeps
//! in it has to live where the hardware doesn't look. Three kinds of entry share the word:
//!
//! ```text
//!  63   62        52 51            M                     12  11 10     3 2 1 0
//!  NX   software ,   address: bits M-1..12, above: reserved  M  software,      present entry (link or leaf)
//!       keys, A/D                                            =1 A, D, PAT
//!
//!  V    generation   V: some reserved bit   gfn << 12        0  gener-   access MMIO SPTE, x86: P=1 and a bit of
//!       high part    (bit 51)                                   ation    W,U,P  51..M set: #PF with P and RSVD
//!                                                               low
//!  V    generation   gfn << 12                               0  gener-   1 1 0  MMIO SPTE, EPT: writable and not
//!       high part                                               ation           readable: misconfiguration
//!
//!  E    0            0                                       0  0        0 0 0  empty (E: only with #VE)
//! ```
//!
//! `M` is the physical width of the host. Bit 11 (`SPTE_MMU_PRESENT_MASK`) is ignored by the hardware in every format
//! and set in each link and leaf, never in an MMIO SPTE: one test tells what the MMU has mapped from everything else.
//! The generation bits overlap bits that mean something else in a present entry (A, D, NX neighbours, access
//! tracking), so "is it an MMIO SPTE?" must be asked *before* any other decoding.
//!
//! A host open to L1 terminal fault fetches from its L1 cache by the address bits of a not-present *or reserved*
//! entry. There, the top five bits that the cache compares are always set in an MMIO SPTE, and the gpa bits that they
//! hide are stored again five places higher.
//!
//! The names and rules are those of `kvm_mmu_reset_all_pte_masks`, `kvm_mmu_set_mmio_spte_mask`,
//! `kvm_mmu_set_ept_masks` and `svm_adjust_mmio_mask` in Linux.

use super::bits::bits;
use super::host::{EntryFormat, GenerationSpans, HostParams};
use super::refusal::{CachingOff, LayoutError};
use umbra_memslots::{Gfn, PAGE_SHIFT};

/// Bit 11, set by the MMU in each link and leaf (`SPTE_MMU_PRESENT_MASK`).
pub const MMU_PRESENT: u64 = 1 << 11;

/// Bits that may tell an MMIO SPTE from others (`SPTE_MMIO_ALLOWED_MASK`): 63, 51–12 and 2–0.
pub const MMIO_ALLOWED: u64 = bits(63, 63) | bits(12, 51) | bits(0, 2);

/// What a table entry holds for a moment while it is being replaced (`FROZEN_SPTE`). Nothing may mistake it for an
/// MMIO SPTE.
pub const FROZEN: u64 = bits(63, 63) | 0x5a0;

/// How far, in bits, the hidden gpa bits are displaced on a host open to L1TF
/// (`SHADOW_NONPRESENT_OR_RSVD_MASK_LEN`).
pub const L1TF_DISPLACEMENT: u32 = 5;

/// Architectural limit of physical address bits.
pub(super) const MAX_PHYSICAL_BITS: u32 = 52;
/// No long-mode CPU has fewer.
pub(super) const MIN_PHYSICAL_BITS: u32 = 32;

/// Bit 63 of an EPT entry: violations through it are not turned into #VE.
const EPT_SUPPRESS_VE: u64 = 1 << 63;
/// Bits 2:0 of an EPT entry: read, write, execute.
const EPT_RWX: u64 = 0b111;
/// Write and execute without read: a misconfiguration on every CPU (SDM vol. 3C, 29.3.3.1).
const EPT_MISCONFIGURED: u64 = 0b110;

const X86_PRESENT: u64 = 1;
const X86_WRITE: u64 = 1 << 1;
const X86_USER: u64 = 1 << 2;

// The budget adds up: no bit has two owners.
const _: () = {
    let generation = GenerationSpans::KVM;
    assert!(generation.low.mask() & generation.high.mask() == 0);
    assert!(generation.mask() & MMIO_ALLOWED == 0);
    assert!(generation.mask() & MMU_PRESENT == 0);
    assert!(MMIO_ALLOWED & MMU_PRESENT == 0);
    // Every bit belongs to somebody.
    assert!(generation.mask() | MMIO_ALLOWED | MMU_PRESENT == u64::MAX);
    // Far from wrapping at each slot update, and within one 64-bit generation.
    assert!(generation.width() >= 16 && generation.width() < 32);
    // The frozen pattern has no access bit, and an MMIO SPTE has at least one.
    assert!(FROZEN & EPT_RWX == 0 && FROZEN & X86_PRESENT == 0);
};

/// The bit budget for one host. A plain value, computed once and copied to where it is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpteLayout {
    host: HostParams,
    mmio_value: u64,
    mmio_mask: u64,
    mmio_access: u64,
    /// Address bits that are always set in an MMIO SPTE (L1TF); 0 on a host that isn't open to it.
    always_set: u64,
    /// Address bits that hold the gpa where it belongs.
    lower_gfn: u64,
    off: Option<CachingOff>,
}

impl SpteLayout {
    /// The layout that KVM would choose on such a host.
    ///
    /// A host that can't have MMIO SPTEs is not an error: see [`SpteLayout::caching_off`].
    ///
    /// # Errors
    /// [`LayoutError`] for parameters that no host has.
    pub const fn new(host: HostParams) -> Result<Self, LayoutError> {
        match host.format {
            EntryFormat::X86 => {
                let value = x86_mmio_value(&host);
                Self::with_mmio_bits(host, value, value, X86_WRITE | X86_USER)
            }
            EntryFormat::Ept { suppress_ve } => {
                let mask = if suppress_ve {
                    EPT_RWX | EPT_SUPPRESS_VE
                } else {
                    EPT_RWX
                };
                Self::with_mmio_bits(host, EPT_MISCONFIGURED, mask, 0)
            }
        }
    }

    /// A layout whose MMIO SPTEs are marked by given bits, for a vendor with needs of its own: an entry is an MMIO
    /// SPTE if `entry & mask == value`; `access` says which of the bits 2:0 hold the access.
    ///
    /// Bits that can't work switch caching off, by the rules of `kvm_mmu_set_mmio_spte_mask`.
    ///
    /// # Errors
    /// [`LayoutError`] for parameters that no host has.
    pub const fn with_mmio_bits(host: HostParams, value: u64, mask: u64, access: u64) -> Result<Self, LayoutError> {
        if host.physical_bits < MIN_PHYSICAL_BITS || host.physical_bits > MAX_PHYSICAL_BITS {
            return Err(LayoutError::Width {
                what: "the physical address width",
                bits: host.physical_bits,
            });
        }
        let (always_set, low_bits) = match host.l1tf_cache_bits {
            Some(cache) if cache < MIN_PHYSICAL_BITS || cache > MAX_PHYSICAL_BITS => {
                return Err(LayoutError::Width {
                    what: "the address width of the L1 data cache",
                    bits: cache,
                });
            }
            // Five more bits must fit above the cache's; a CPU so wide isn't open to L1TF.
            Some(cache) if cache < MAX_PHYSICAL_BITS - L1TF_DISPLACEMENT => {
                let low_bits = cache - L1TF_DISPLACEMENT;
                (bits(low_bits, cache - 1), low_bits)
            }
            _ => (0, host.physical_bits),
        };
        let spans = host.generation;
        let taken = MMIO_ALLOWED | MMU_PRESENT;
        if spans.low.mask() & spans.high.mask() != 0 || spans.mask() & taken != 0 {
            return Err(LayoutError::GenerationSpans {
                mask: spans.mask(),
                taken,
            });
        }
        let lower_gfn = bits(PAGE_SHIFT, low_bits - 1);
        let mut layout = Self {
            host,
            mmio_value: value,
            mmio_mask: mask,
            mmio_access: access,
            always_set,
            lower_gfn,
            off: None,
        };
        layout.off = layout.why_off();
        if layout.off.is_some() {
            layout.mmio_value = 0;
        }
        Ok(layout)
    }

    const fn why_off(&self) -> Option<CachingOff> {
        let (value, mask) = (self.mmio_value, self.mmio_mask);
        let displaced = self.always_set << L1TF_DISPLACEMENT;
        if !self.host.mmio_caching {
            return Some(CachingOff::ByOption);
        }
        if value == 0 {
            return Some(CachingOff::NoReservedBit {
                physical_bits: self.host.physical_bits,
            });
        }
        if mask & !MMIO_ALLOWED != 0 {
            return Some(CachingOff::MaskNotAllowed { mask });
        }
        if value & self.lower_gfn != 0 {
            return Some(CachingOff::CollidesWithGfn {
                value,
                gfn_bits: self.lower_gfn,
            });
        }
        if value & displaced != 0 {
            return Some(CachingOff::CollidesWithDisplaced { value, displaced });
        }
        if value & mask != value {
            return Some(CachingOff::ValueOutsideMask { value, mask });
        }
        if FROZEN & mask == value {
            return Some(CachingOff::MatchesOther {
                pattern: FROZEN,
                value,
                mask,
            });
        }
        if self.empty() & mask == value {
            return Some(CachingOff::MatchesOther {
                pattern: self.empty(),
                value,
                mask,
            });
        }
        None
    }

    /// The host it was computed for.
    #[must_use]
    pub const fn host(&self) -> &HostParams {
        &self.host
    }

    /// Why there are no MMIO SPTEs with this layout; `None` if there are (`enable_mmio_caching`).
    #[inline]
    #[must_use]
    pub const fn caching_off(&self) -> Option<CachingOff> {
        self.off
    }

    /// Whether there are MMIO SPTEs with this layout.
    #[inline]
    #[must_use]
    pub const fn caches_mmio(&self) -> bool {
        self.off.is_none()
    }

    /// The bits that mark an MMIO SPTE (`shadow_mmio_value`); 0 if there are none.
    #[inline]
    #[must_use]
    pub const fn mmio_value(&self) -> u64 {
        self.mmio_value
    }

    /// The bits in which [`SpteLayout::mmio_value`] is looked for (`shadow_mmio_mask`).
    #[inline]
    #[must_use]
    pub const fn mmio_mask(&self) -> u64 {
        self.mmio_mask
    }

    /// The bits of an MMIO SPTE that hold the access (`shadow_mmio_access_mask`): W and U, or none in EPT format.
    #[inline]
    #[must_use]
    pub const fn mmio_access_mask(&self) -> u64 {
        self.mmio_access
    }

    /// Address bits that are set in every MMIO SPTE (`shadow_nonpresent_or_rsvd_mask`); 0 unless open to L1TF.
    #[inline]
    #[must_use]
    pub const fn l1tf_mask(&self) -> u64 {
        self.always_set
    }

    /// Address bits that hold the gpa undisplaced (`shadow_nonpresent_or_rsvd_lower_gfn_mask`).
    #[inline]
    #[must_use]
    pub const fn lower_gfn_mask(&self) -> u64 {
        self.lower_gfn
    }

    /// Where the generation goes.
    #[inline]
    #[must_use]
    pub const fn generation_spans(&self) -> GenerationSpans {
        self.host.generation
    }

    /// Whether an MMIO SPTE can hold this gfn. Others are emulated without one.
    #[inline]
    #[must_use]
    pub const fn holds_gfn(&self, gfn: Gfn) -> bool {
        let gpa = gfn.base().get();
        gpa & !(self.lower_gfn | self.always_set) == 0
    }

    /// An entry that maps nothing: 0, or with #VE the bit that keeps it an ordinary violation.
    #[inline]
    #[must_use]
    pub const fn empty(&self) -> u64 {
        match self.host.format {
            EntryFormat::Ept { suppress_ve: true } => EPT_SUPPRESS_VE,
            _ => 0,
        }
    }

    /// Whether the entry is a link or leaf (`is_shadow_present_pte`).
    #[inline]
    #[must_use]
    pub const fn is_mmu_present(&self, entry: u64) -> bool {
        entry & MMU_PRESENT != 0
    }
}

/// The reserved bits with which an x86 MMIO SPTE is marked, and the present bit; 0 if no bit is reserved.
const fn x86_mmio_value(host: &HostParams) -> u64 {
    let reserved = match host.encryption_bit {
        None if host.physical_bits == MAX_PHYSICAL_BITS => 0,
        // Reserved on every CPU with fewer than 52 bits, and no gfn of such a host reaches it.
        None => bits(51, 51),
        // All bits above the width that encryption leaves. The C-bit may be among them and isn't reserved: if it is
        // the lowest, the mask begins above it, or it could be the only one.
        Some(c_bit) => {
            let lowest = if c_bit == host.physical_bits {
                host.physical_bits + 1
            } else {
                host.physical_bits
            };
            bits(lowest, 51)
        }
    };
    if reserved == 0 { 0 } else { reserved | X86_PRESENT }
}

#[cfg(test)]
mod tests;
