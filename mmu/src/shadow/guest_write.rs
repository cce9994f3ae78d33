//! The guest's memory was written other than through a mapping: what was derived from it goes. KVM's
//! `kvm_mmu_track_write`.

use super::bits::bits;
use super::pages::Writer;
use super::role::PageRole;
use crate::observer::MmuObserver;
use crate::tables::{EntryLocation, TableId, TableSpace};
use alloc::vec::Vec;
use umbra_memslots::Gfn;

/// After that many emulated writes without a walk through it, a page is taken for ordinary data
/// (`detect_write_flooding`).
const FLOOD: u8 = 3;

impl<S: TableSpace, O: MmuObserver> Writer<'_, S, O> {
    /// The guest changed bytes `offset..offset + bytes` of the frame.
    pub(super) fn guest_wrote(&mut self, gfn: Gfn, offset: u16, bytes: u16) {
        let shadows: Vec<(PageRole, TableId)> = self.shadows_of(gfn).collect();
        for (role, table) in shadows {
            let Some(page) = self.pages.pages.get_mut(table) else {
                continue;
            };
            // A table of the last level becomes writable instead of being written to through emulation.
            page.writes += u8::from(role.level() > 1);
            let size = if role.has_4_byte_gpte() { 4 } else { 8 };
            if page.writes >= FLOOD || is_misaligned(offset, bytes, size) {
                self.zap(table);
                continue;
            }
            let (first, last) = (offset / size, (offset + bytes.max(1) - 1) / size);
            for index in (first..=last).flat_map(|entry| shadow_indices(role, entry)) {
                self.drop_entry(EntryLocation { table, index });
            }
        }
    }
}

/// A guest doesn't write parts of two page-table entries at once, or less than half of one (`detect_write_misaligned`):
/// then it is no table any more. But a single byte at the start of an entry is a change of its flags, as `andb` in
/// Linux's `clear_bit` makes.
fn is_misaligned(offset: u16, bytes: u16, size: u16) -> bool {
    if bytes == 1 && offset.is_multiple_of(size) {
        return false;
    }
    bytes < 4 || offset / size != (offset + bytes - 1) / size
}

/// Which entries of a page with this role shadow guest entry `entry` of the table (none, one or two).
fn shadow_indices(role: PageRole, entry: u16) -> impl Iterator<Item = u16> {
    // A four-byte PDE covers 4 MiB, ours 2 MiB.
    let (first, count) = if role.has_4_byte_gpte() && role.level() == 2 {
        (2 * entry, 2)
    } else {
        (entry, 1)
    };
    let quadrant = if role.has_4_byte_gpte() {
        u16::from(role.quadrant())
    } else {
        0
    };
    (first..first + count)
        .filter(move |index| index >> 9 == quadrant)
        .map(|index| {
            #[expect(clippy::cast_possible_truncation, reason = "nine bits")]
            let index = (u64::from(index) & bits(0, 8)) as u16;
            index
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_that_are_no_table_edits_are_told_from_those_that_are() {
        for (offset, bytes, size, expected) in [
            (8, 8, 8, false),
            (8, 4, 8, false),
            (12, 4, 8, false),
            (12, 4, 4, false),
            (8, 1, 8, false),
            (9, 1, 8, true),
            (8, 2, 8, true),
            (4, 8, 8, true),
            (4, 8, 4, true),
            (6, 4, 8, true),
        ] {
            assert_eq!(
                is_misaligned(offset, bytes, size),
                expected,
                "{bytes} bytes at {offset}"
            );
        }
    }
}
