//! Links: entries that lead to a table of the next lower level. KVM's `make_nonleaf_spte`.

use super::bits::bits;
use super::host::EntryFormat;
use super::layout::{MMU_PRESENT, SpteLayout};

/// Address bits of a present entry.
const ADDRESS: u64 = bits(12, 51);
/// Bit 7: the entry maps a large page instead of leading to a table (both formats, above level 1).
const LARGE: u64 = 1 << 7;
/// P, R/W, U/S and A: a link forbids nothing, the leaf decides.
const X86_LINK: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 5;
/// R, W, X, and the accessed flag, which is ignored where EPT has none.
const EPT_LINK: u64 = 0b111 | 1 << 8;

/// The entry that leads to the table at `address` (of which bits 51–12 count).
#[inline]
#[must_use]
pub const fn encode(layout: &SpteLayout, address: u64) -> u64 {
    let flags = match layout.host().format {
        EntryFormat::X86 => X86_LINK,
        EntryFormat::Ept { .. } => EPT_LINK,
    };
    (address & ADDRESS) | MMU_PRESENT | flags
}

/// The address of the table that an entry above level 1 leads to, if it is a link.
#[inline]
#[must_use]
pub const fn target(layout: &SpteLayout, entry: u64) -> Option<u64> {
    if layout.is_mmu_present(entry) && entry & LARGE == 0 {
        Some(entry & ADDRESS)
    } else {
        None
    }
}
