//! Neighbours of a leaf that was just made are mapped ahead of their use, as far as that costs nothing: KVM's
//! `FNAME(pte_prefetch)` and `__direct_pte_prefetch`.
//!
//! Nothing that a guest could notice: an entry of a guest's table is taken only if its accessed flag is set, and gives no
//! right to write unless its dirty flag is; so is a TLB free to load it. No MMIO SPTE is ever made ahead, no table becomes
//! unsync, and no page is mapped of which writes are to be known.

use super::leaf::{self, LeafParts};
use super::pages::{NewLeaf, Set, Writer};
use super::ports::{DirtyLog, FoundFrame, FrameSource};
use super::sync::{GuestLeaf, GuestTables};
use crate::access_mask::AccessMask;
use crate::direct::FoundSlot;
use crate::observer::MmuObserver;
use crate::tables::{ENTRIES, EntryLocation, TableId, TableSpace};
use core::ops::Range;
use umbra_memslots::{Gfn, GuestMemory};

/// Entries that are looked at together (`PTE_PREFETCH_NUM`).
const AROUND: usize = if ENTRIES < 8 { ENTRIES } else { 8 };

impl<S: TableSpace, O: MmuObserver> Writer<'_, S, O> {
    /// Maps what it can of the neighbours of the leaf at `at`, which is of level 1. Says how many.
    pub(super) fn prefetch(
        &mut self,
        guest: &GuestTables<'_, impl GuestMemory>,
        frames: &mut impl FrameSource,
        at: EntryLocation,
    ) -> u64 {
        // Memory that is there now may be going.
        if !self.pages.invalidations.is_empty() {
            return 0;
        }
        let Some(role) = self.page(at.table).map(|page| page.role) else {
            return 0;
        };
        #[expect(clippy::cast_possible_truncation, reason = "8 at most")]
        let around = AROUND as u16;
        let first = at.index & !(around - 1);
        let neighbours = first..first + around;
        if role.is_direct() {
            self.prefetch_direct(frames, at, neighbours, role.access())
        } else {
            self.prefetch_guests(guest, frames, at, neighbours)
        }
    }

    /// Makes a leaf of level 1 anew from what the guest's table says now (`FNAME(invlpg)`). Says whether it did.
    pub(super) fn renew(
        &mut self,
        guest: &GuestTables<'_, impl GuestMemory>,
        frames: &mut impl FrameSource,
        at: EntryLocation,
    ) -> bool {
        if !self.pages.invalidations.is_empty() {
            return false;
        }
        let table = self.page(at.table).map(|page| (page.gfn, page.role));
        let new = table.and_then(|(gfn, role)| guest.leaf_entry(gfn, role, at.index));
        let Some((new, frame)) = new.and_then(|new| Some((new, at_hand(frames, new.gfn)?))) else {
            return false;
        };
        if frame.log == DirtyLog::WriteProtection && new.access.contains(AccessMask::WRITE) {
            frames.mark_dirty(new.gfn);
        }
        self.drop_entry(at);
        self.map_ahead(at, new, &frame);
        true
    }

    /// By the guest's table, one by one. The first that can't be mapped ends it.
    fn prefetch_guests(
        &mut self,
        guest: &GuestTables<'_, impl GuestMemory>,
        frames: &mut impl FrameSource,
        at: EntryLocation,
        neighbours: Range<u16>,
    ) -> u64 {
        let Some((gfn, role)) = self.page(at.table).map(|page| (page.gfn, page.role)) else {
            return 0;
        };
        let mut count = 0;
        for index in neighbours.filter(|&index| index != at.index) {
            let at = EntryLocation { index, ..at };
            if self.layout.is_mmu_present(self.load(at)) {
                continue;
            }
            let Some(new) = guest.leaf_entry(gfn, role, index) else {
                // What is known of the entry is out of date (an MMIO SPTE).
                self.drop_entry(at);
                break;
            };
            let Some(frame) = ahead(frames, new.gfn, new.access) else {
                break;
            };
            count += self.map_ahead(at, new, &frame);
        }
        count
    }

    /// By the gfn alone, in runs of entries that are empty: a run that lies in one slot is mapped as far as its memory is
    /// at hand, another ends it.
    fn prefetch_direct(
        &mut self,
        frames: &mut impl FrameSource,
        at: EntryLocation,
        neighbours: Range<u16>,
        access: AccessMask,
    ) -> u64 {
        let mut count = 0;
        let mut next = neighbours.start;
        while next < neighbours.end {
            let is_empty =
                |index: u16| index != at.index && !self.layout.is_mmu_present(self.load(EntryLocation { index, ..at }));
            let end = (next..neighbours.end)
                .find(|&index| !is_empty(index))
                .unwrap_or(neighbours.end);
            let Some(mapped) = self.prefetch_run(frames, at.table, next..end, access) else {
                break;
            };
            count += mapped;
            next = end + 1;
        }
        count
    }

    /// `None` if nothing more is to be tried.
    fn prefetch_run(
        &mut self,
        frames: &mut impl FrameSource,
        table: TableId,
        run: Range<u16>,
        access: AccessMask,
    ) -> Option<u64> {
        let page = self.page(table)?;
        let gfns: [Gfn; AROUND] = core::array::from_fn(|offset| {
            #[expect(clippy::cast_possible_truncation, reason = "8 at most")]
            let offset = offset as u16;
            page.leaf_gfn(run.start + offset)
        });
        let slot_of = |frames: &mut _, gfn: &Gfn| mappable(frames, *gfn, access).map(|frame| frame.slot);
        let wanted = gfns.get(..run.len())?;
        let slots: [Option<FoundSlot>; AROUND] =
            core::array::from_fn(|index| wanted.get(index).and_then(|gfn| slot_of(frames, gfn)));
        let slots = slots.get(..run.len())?;
        if slots.iter().any(|slot| slot.is_none() || *slot != slots[0]) {
            return None;
        }
        let mut count = 0;
        for (index, &gfn) in run.clone().zip(wanted) {
            let Some(frame) = ahead(frames, gfn, access) else { break };
            let key = 0;
            count += self.map_ahead(EntryLocation { table, index }, GuestLeaf { gfn, access, key }, &frame);
        }
        (run.is_empty() || count > 0).then_some(count)
    }

    /// One leaf that nobody has used yet. Says how many were made.
    fn map_ahead(&mut self, at: EntryLocation, GuestLeaf { gfn, access, key }: GuestLeaf, frame: &FoundFrame) -> u64 {
        let tracked = self
            .shadows_of(gfn)
            .any(|(_, table)| self.page(table).is_some_and(|page| !page.unsync));
        let new = NewLeaf {
            gfn,
            access,
            level: 1,
            entry: leaf::unused(leaf::encode(LeafParts {
                address: frame.address,
                access,
                key,
                host_writable: true,
                tracked,
                level: 1,
                log: frame.log,
                for_write: false,
            })),
        };
        let set = self.set_leaf(at, new);
        self.observer.set_spte(at, gfn, 1, new.entry);
        u64::from(set == Set::Changed)
    }
}

/// The memory, if it is there and a leaf that isn't made for an access may map it.
fn at_hand(frames: &mut impl FrameSource, gfn: Gfn) -> Option<FoundFrame> {
    let (_, frame) = frames.frame(gfn);
    frame.filter(|frame| !frame.slot.invalid && !frame.slot.read_only && frames.at_hand(gfn))
}

/// The memory, if it may be mapped ahead with these rights and is there.
fn ahead(frames: &mut impl FrameSource, gfn: Gfn, access: AccessMask) -> Option<FoundFrame> {
    if !frames.at_hand(gfn) {
        return None;
    }
    mappable(frames, gfn, access)
}

/// The memory, if it may be mapped ahead with these rights (`gfn_to_memslot_dirty_bitmap`; that read-only slots are left out
/// is a consequence of how KVM looks for the memory).
fn mappable(frames: &mut impl FrameSource, gfn: Gfn, access: AccessMask) -> Option<FoundFrame> {
    let (_, frame) = frames.frame(gfn);
    frame.filter(|frame| {
        let logged = access.contains(AccessMask::WRITE) && frame.log != DirtyLog::Off;
        !frame.slot.invalid && !frame.slot.read_only && !logged
    })
}
