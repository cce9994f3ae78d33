//! Which writes may change a page table that the backend has derived something from.
//!
//! A KVM without second-level paging has shadows of the guest's page tables and notices the guest's own writes to them, but
//! not ours, so that it has to be told. Which pages are tables only it knows. What can be told is what a word was before it
//! was written: an entry that a shadow was made of was present, and the walk that made it had set its accessed bit.

use umbra_mmu::x86::PagingMode;

/// Present, accessed.
const PRESENT: u64 = 1;
const ACCESSED: u64 = 1 << 5;
/// Dirty.
const DIRTY: u64 = 1 << 6;

/// Whether eight aligned bytes that were `old` and become `new` may be page-table entries that a shadow was made of, by
/// which the shadow is wrong now. May say yes without need, never no.
///
/// `mode` is the present paging mode, `physical_bits` the width of the guest's physical addresses.
pub fn may_change_a_table(old: u64, new: u64, mode: PagingMode, physical_bits: u32) -> bool {
    // What the walk itself sets changes no right.
    if old & !(ACCESSED | DIRTY) == new & !(ACCESSED | DIRTY) && old & !new == 0 {
        return false;
    }
    match mode {
        PagingMode::Level4 | PagingMode::Level5 => is_entry(old, physical_bits),
        // Four bytes each; PDPTE registers have no accessed bit.
        PagingMode::None | PagingMode::Bits32 | PagingMode::Pae => (old | old >> 32) & PRESENT != 0,
    }
}

/// Whether a walk can have been through an entry of this value: no address bit beyond the CPU's width is set.
fn is_entry(value: u64, physical_bits: u32) -> bool {
    let reserved = (1 << 52) - (1u64 << physical_bits.clamp(32, 52));
    value & (PRESENT | ACCESSED) == PRESENT | ACCESSED && value & reserved == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 0x8000_0000_1234_5067;

    fn long(old: u64, new: u64) -> bool {
        may_change_a_table(old, new, PagingMode::Level4, 48)
    }

    #[test]
    fn change_of_a_present_entry_counts() {
        assert!(long(ENTRY, 0), "unmapped");
        assert!(long(ENTRY, ENTRY & !2), "write-protected");
        assert!(long(ENTRY, ENTRY ^ 0x1000), "another page");
        assert!(long(ENTRY, ENTRY & !ACCESSED), "not accessed any more");
    }

    #[test]
    fn what_no_shadow_was_made_of_does_not_count() {
        assert!(!long(0, ENTRY), "mapped");
        assert!(!long(ENTRY & !ACCESSED, 0), "never walked");
        assert!(!long(ENTRY & !DIRTY, ENTRY), "written to");
        assert!(!long(0xffff_8880_1234_5067, 0), "a pointer of the kernel's");
    }

    #[test]
    fn without_long_mode_any_present_entry_counts() {
        for mode in [PagingMode::None, PagingMode::Bits32, PagingMode::Pae] {
            assert!(may_change_a_table(0x1067 << 32, 0, mode, 36));
            assert!(may_change_a_table(1, 0, mode, 36));
            assert!(!may_change_a_table(0x1066 << 32 | 2, 0, mode, 36));
        }
    }
}
