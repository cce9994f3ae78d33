//! Unsync pages catch up with the guest's tables. KVM's `mmu_sync_children`, `FNAME(sync_spte)` and `sync_mmio_spte`.
//!
//! One deliberate difference: an MMIO SPTE that stays keeps the generation that it was made at. KVM stamps it with the
//! current one without looking for a slot; a slot created over the gfn meanwhile could then be overlooked.

use super::leaf;
use super::pages::Writer;
use super::ports::FrameSource;
use super::role::PageRole;
use super::root::{RootTables, entry_of};
use crate::access_mask::AccessMask;
use crate::mmio::MmioSpte;
use crate::observer::MmuObserver;
use crate::pool::entries;
use crate::tables::{EntryLocation, INDEX_BITS, TableId, TableSpace};
use crate::x86::{GuestPte, PagingState};
use umbra_memslots::{EntrySize, Gfn, GuestMemory, Gva};

/// What a guest's entries are read from, and by which rules.
pub(super) struct GuestTables<'a, M> {
    pub(super) state: &'a PagingState,
    pub(super) memory: &'a M,
}

impl<M: GuestMemory> GuestTables<'_, M> {
    /// The guest's entry that entry `index` of a page of the last level was made from, if a leaf could be made from it
    /// now: it is present, was used, and has no reserved bit set (else `FNAME(prefetch_invalid_gpte)`).
    pub(super) fn leaf_entry(&self, gfn: Gfn, role: PageRole, index: u16) -> Option<GuestLeaf> {
        let quadrant = if role.has_4_byte_gpte() { role.quadrant() } else { 0 };
        let index = u64::from(quadrant) << INDEX_BITS | u64::from(index);
        let size = if role.has_4_byte_gpte() {
            EntrySize::B4
        } else {
            EntrySize::B8
        };
        let gpa = gfn.base().wrapping_add(index * size.bytes());
        let pte = GuestPte::new(self.memory.read_entry(gpa, size).ok()?);
        let usable = pte.has(GuestPte::PRESENT | GuestPte::ACCESSED) && !self.state.reserved.violated_by(1, true, pte);
        let address = match size {
            EntrySize::B4 => pte.address32(),
            EntrySize::B8 => pte.address(),
        };
        let access = role.access() & pte.permits();
        usable.then(|| GuestLeaf {
            gfn: address.gfn(),
            // The write that sets the dirty flag must fault (`FNAME(protect_clean_gpte)`).
            access: if pte.has(GuestPte::DIRTY) {
                access
            } else {
                access.without(AccessMask::WRITE)
            },
            key: if self.state.mode.is_long() {
                pte.protection_key()
            } else {
                0
            },
        })
    }
}

/// What a guest's entry of the last level says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GuestLeaf {
    pub(super) gfn: Gfn,
    pub(super) access: AccessMask,
    pub(super) key: u8,
}

impl<S: TableSpace, O: MmuObserver> Writer<'_, S, O> {
    /// All pages below this one catch up, and the guest's tables are write-protected again.
    pub(super) fn sync_below(&mut self, guest: &GuestTables<'_, impl GuestMemory>, table: TableId) {
        let pages = self.unsync_below(table);
        if pages.is_empty() {
            return;
        }
        for &page in &pages {
            if let Some(gfn) = self.page(page).map(|page| page.gfn) {
                self.write_protect(gfn);
            }
        }
        // From now on nobody writes to them without our knowledge.
        self.flush_now();
        for table in pages {
            let Some(page) = self.pages.pages.get_mut(table) else {
                continue;
            };
            page.unsync = false;
            let (gfn, role) = (page.gfn, page.role);
            self.observer.sync_page(gfn, role);
            self.sync_entries(guest, table);
        }
        self.unsync_below(table);
    }

    /// The entries of a page catch up; the guest may go on writing to the table, if it may now.
    pub(super) fn sync_entries(&mut self, guest: &GuestTables<'_, impl GuestMemory>, table: TableId) {
        for at in entries(table) {
            self.sync_entry(guest, at);
        }
    }

    /// One entry of a page of the last level catches up.
    pub(super) fn sync_entry(&mut self, guest: &GuestTables<'_, impl GuestMemory>, at: EntryLocation) {
        let old = self.load(at);
        if old == self.layout.empty() {
            return;
        }
        let Some(page) = self.page(at.table) else { return };
        let Some(new) = guest.leaf_entry(page.gfn, page.role, at.index) else {
            self.drop_entry(at);
            return;
        };
        if let Some(spte) = MmioSpte::recognise(self.layout, old) {
            self.sync_mmio(at, spte, new);
        } else if new.gfn != page.leaf_gfn(at.index) {
            self.drop_entry(at);
        } else if self.replace(at, |entry| leaf::with_rights(entry, new.access, new.key)) {
            self.needs_flush = true;
            self.set_source(at, new.gfn, new.access);
        }
    }

    /// What is known of one page is thrown away, and made anew where that takes no time; else it catches up (`kvm_mmu_invlpg`).
    /// Pages that aren't unsync can't be behind.
    pub(super) fn invalidate(
        &mut self,
        guest: &GuestTables<'_, impl GuestMemory>,
        frames: &mut impl FrameSource,
        root: RootTables,
        gva: Gva,
    ) {
        let mut next = root.start(gva);
        while let Some((table, level)) = next {
            let at = entry_of(table, level, gva);
            let Some(page) = self.page(table) else { return };
            if page.unsync && !self.renew(guest, frames, at) {
                if MmioSpte::recognise(self.layout, self.load(at)).is_some() {
                    self.drop_entry(at);
                }
                self.sync_entry(guest, at);
            }
            next = self.target(at).map(|below| (below, level - 1));
        }
    }

    fn sync_mmio(&mut self, at: EntryLocation, spte: MmioSpte, new: GuestLeaf) {
        let made = spte.generation(self.layout);
        let again = MmioSpte::encode(self.layout, new.gfn, new.access, made);
        match again.filter(|_| spte.gfn(self.layout) == new.gfn) {
            Some(again) => {
                self.observer.mark_mmio_spte(at, new.gfn, new.access, made);
                self.pool.space().store(at, again.raw());
            }
            None => {
                self.drop_entry(at);
            }
        }
    }
}
