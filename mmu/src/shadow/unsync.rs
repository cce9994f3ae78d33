//! Guest tables of the last level may be written by the guest without a fault: their shadows are *unsync*, may hold what
//! the tables held earlier, and catch up when the guest flushes its TLB (`sync`). As with a TLB, that is what x86 allows.
//! KVM's `mmu_try_to_unsync_pages`, `mark_unsync` and `mmu_unsync_walk`.
//!
//! Invariant: while a leaf allows writes to a frame, every shadow of a guest table in that frame is unsync (and so of
//! level 1).

use super::pages::Writer;
use crate::observer::MmuObserver;
use crate::tables::{ENTRIES, EntryLocation, TableId, TableSpace};
use alloc::vec::Vec;
use umbra_memslots::Gfn;

/// One bit for each entry of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct ChildBits([u64; ENTRIES.div_ceil(64)]);

impl ChildBits {
    pub(super) fn any(&self) -> bool {
        self.0.iter().any(|&word| word != 0)
    }

    fn set(&mut self, index: u16) {
        self.0[usize::from(index / 64)] |= 1 << (index % 64);
    }

    fn clear(&mut self, index: u16) {
        self.0[usize::from(index / 64)] &= !(1 << (index % 64));
    }

    fn indices(self) -> impl Iterator<Item = u16> {
        (0u16..).step_by(64).zip(self.0).flat_map(|(first, mut word)| {
            core::iter::from_fn(move || {
                let index = (word != 0).then(|| word.trailing_zeros())?;
                word &= word - 1;
                #[expect(clippy::cast_possible_truncation, reason = "below 64")]
                let index = index as u16;
                Some(first + index)
            })
        })
    }
}

/// Writes to the frame must be known of: it is a guest table above the last level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct MustStayTracked;

impl<S: TableSpace, O: MmuObserver> Writer<'_, S, O> {
    /// Before a leaf allows writes to the frame: makes all shadows of it unsync.
    pub(super) fn try_unsync(&mut self, gfn: Gfn) -> Result<(), MustStayTracked> {
        let mut shadows: Vec<TableId> = Vec::new();
        for (role, table) in self.shadows_of(gfn) {
            if role.level() > 1 {
                return Err(MustStayTracked);
            }
            shadows.push(table);
        }
        for table in shadows {
            let Some(page) = self.pages.pages.get_mut(table).filter(|page| !page.unsync) else {
                continue;
            };
            page.unsync = true;
            let (role, parents) = (page.role, page.parents.clone());
            self.observer.unsync_page(gfn, role);
            for parent in parents {
                self.mark_parent(parent);
            }
        }
        Ok(())
    }

    /// The entry leads to a page that is unsync or has such below it.
    pub(super) fn mark_parent(&mut self, at: EntryLocation) {
        let Some(page) = self.pages.pages.get_mut(at.table) else {
            return;
        };
        let known = page.unsync_children.any();
        page.unsync_children.set(at.index);
        if !known {
            for parent in page.parents.clone() {
                self.mark_parent(parent);
            }
        }
    }

    /// All unsync pages below a page. Forgets marks that are out of date.
    pub(super) fn unsync_below(&mut self, table: TableId) -> Vec<TableId> {
        let mut found = Vec::new();
        self.collect_unsync(table, &mut found);
        found
    }

    /// Says whether there are any.
    fn collect_unsync(&mut self, table: TableId, found: &mut Vec<TableId>) -> bool {
        let Some(marks) = self.page(table).map(|page| page.unsync_children) else {
            return false;
        };
        let mut any = false;
        for index in marks.indices() {
            let child = self.target(EntryLocation { table, index });
            let below = child.is_some_and(|child| {
                let unsync = self.page(child).is_some_and(|page| page.unsync);
                if unsync && !found.contains(&child) {
                    found.push(child);
                }
                unsync || self.collect_unsync(child, found)
            });
            any |= below;
            if !below && let Some(page) = self.pages.pages.get_mut(table) {
                page.unsync_children.clear(index);
            }
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_is_its_own() {
        let mut marks = ChildBits::default();
        for index in [0, 63, 64, 511] {
            marks.set(index);
        }
        marks.clear(64);
        assert!(marks.indices().eq([0, 63, 511]));
        for index in [0, 63, 511] {
            assert!(marks.any());
            marks.clear(index);
        }
        assert_eq!(marks, ChildBits::default());
    }
}
