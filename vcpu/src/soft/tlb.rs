//! The TLB: from a linear page to host memory with one comparison.
//!
//! There is a table for each way of accessing (who, and what for), so that an entry needs no permissions: it is there if
//! the access is allowed. Entries point into the memory of one snapshot of the slots, which the TLB holds on to.

use super::host::{self, Page, Place};
use crate::emulate::{Access, AccessKind};
use std::sync::Arc;
use umbra_memslots::{Gfn, Gpa, Gva, Memslots, PAGE_SIZE};

/// Entries of a table.
const SETS: usize = 256;
/// Tables: three rights times three kinds.
const TABLES: usize = 9;
/// The page of no address.
const EMPTY: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Entry {
    /// Linear address of the page.
    page: u64,
    host: *mut u8,
    gfn: Gfn,
}

/// One vCPU's translations.
pub(super) struct Tlb {
    slots: Arc<Memslots>,
    epoch: u64,
    tables: Box<[[Entry; SETS]; TABLES]>,
}

// SAFETY: the pointers in entries lead to memory of guest RAM, which any thread may access (see `host`), and which the
// snapshot that moves along keeps mapped.
unsafe impl Send for Tlb {}

impl Tlb {
    /// Knows nothing, and is to find memory in `slots`.
    pub fn new(slots: Arc<Memslots>) -> Self {
        let empty = Entry {
            page: EMPTY,
            host: std::ptr::null_mut(),
            gfn: Gpa::new(0).gfn(),
        };
        Self {
            slots,
            epoch: 0,
            tables: Box::new([[empty; SETS]; TABLES]),
        }
    }

    /// The snapshot in which memory is found.
    pub fn slots(&self) -> &Arc<Memslots> {
        &self.slots
    }

    /// Goes over to another snapshot, if it is another.
    pub fn renew(&mut self, slots: &Arc<Memslots>) {
        if !Arc::ptr_eq(slots, &self.slots) {
            self.flush();
            self.slots = Arc::clone(slots);
        }
    }

    /// Forgets everything.
    pub fn flush(&mut self) {
        self.epoch += 1;
        for entry in self.tables.as_flattened_mut() {
            entry.page = EMPTY;
        }
    }

    /// Forgets one page.
    pub fn flush_page(&mut self, at: Gva) {
        self.epoch += 1;
        for table in self.tables.iter_mut() {
            let entry = &mut table[index(at)];
            if entry.page == at.page_base().get() {
                entry.page = EMPTY;
            }
        }
    }

    /// Forgets every right to write to a frame.
    pub fn flush_writes(&mut self, gfn: Gfn) {
        for rights in 0..3 {
            for entry in &mut self.tables[3 * rights + AccessKind::Write as usize] {
                if entry.gfn == gfn {
                    entry.page = EMPTY;
                }
            }
        }
    }

    /// The memory of an access within a page, if it is known.
    #[inline]
    pub fn find(&self, at: Gva, length: usize, access: Access) -> Option<Place<'_>> {
        let entry = self.entry(at, access)?;
        // SAFETY: the page was found in `self.slots`, or the entry would have been emptied in `renew`; and that snapshot
        // is alive as long as `self` is borrowed.
        let page = unsafe { Page::again(entry.host) };
        page.at(at.page_offset(), length)
    }

    /// The guest-physical address, if it is known.
    #[inline]
    pub fn find_gpa(&self, at: Gva, access: Access) -> Option<Gpa> {
        let entry = self.entry(at, access)?;
        Some(entry.gfn.base().wrapping_add(at.page_offset()))
    }

    /// The `W` bits at `at`, if the right to read them is known. `rights` are [`crate::soft::fast::mode::Mode`]'s.
    #[inline(always)]
    pub fn load<const W: u32>(&self, rights: u8, at: u64) -> Option<u64> {
        let host = self.host::<W>(rights, AccessKind::Read, at)?;
        // SAFETY: `host` gives the address of `W` bits in a page that the snapshot keeps mapped.
        Some(unsafe { host::load::<W>(host) })
    }

    /// The same if the right to write is known.
    #[inline(always)]
    pub fn load_to_write<const W: u32>(&self, rights: u8, at: u64) -> Option<u64> {
        let host = self.host::<W>(rights, AccessKind::Write, at)?;
        // SAFETY: as in `load`.
        Some(unsafe { host::load::<W>(host) })
    }

    /// Writes the low `W` bits of `value`, if the right to write is known. Says whether it is.
    #[inline(always)]
    pub fn store<const W: u32>(&self, rights: u8, at: u64, value: u64) -> bool {
        let Some(host) = self.host::<W>(rights, AccessKind::Write, at) else {
            return false;
        };
        // SAFETY: as in `load`.
        unsafe { host::store::<W>(host, value) };
        true
    }

    /// Writes `value`, `W` bits wide, into all of `bytes` bytes from `at` on, if the right to write to all of them is known.
    /// Says whether it is.
    pub fn fill_range<const W: u32>(&self, rights: u8, at: u64, value: u64, bytes: u64) -> bool {
        let known = self.knows_range(rights, AccessKind::Write, at, bytes);
        let mut done = 0;
        while known && done < bytes {
            let at = at + done;
            let part = (bytes - done).min(PAGE_SIZE - at % PAGE_SIZE);
            let Some(host) = self.host::<8>(rights, AccessKind::Write, at) else {
                return false;
            };
            // SAFETY: as in `load`, and the part ends in the page.
            unsafe { host::fill::<W>(host, value, part as usize) };
            done += part;
        }
        known
    }

    /// Copies `bytes` bytes upwards in elements of `W` bits, if the rights for all of them are known. Says whether they are.
    pub fn copy_range<const W: u32>(&self, rights: u8, from: u64, to: u64, bytes: u64) -> bool {
        let known = self.knows_range(rights, AccessKind::Read, from, bytes)
            && self.knows_range(rights, AccessKind::Write, to, bytes);
        let mut done = 0;
        while known && done < bytes {
            let (from, to) = (from + done, to + done);
            let left = |at: u64| PAGE_SIZE - at % PAGE_SIZE;
            let part = (bytes - done).min(left(from)).min(left(to));
            let (Some(source), Some(destination)) = (
                self.host::<8>(rights, AccessKind::Read, from),
                self.host::<8>(rights, AccessKind::Write, to),
            ) else {
                return false;
            };
            // SAFETY: as in `load`, and the part ends in both pages.
            unsafe { host::copy::<W>(source, destination, part as usize) };
            done += part;
        }
        known
    }

    /// Whether the right to access all of `bytes` bytes from `at` on is known.
    fn knows_range(&self, rights: u8, kind: AccessKind, at: u64, bytes: u64) -> bool {
        let pages = at / PAGE_SIZE..=(at + bytes - 1) / PAGE_SIZE;
        pages
            .into_iter()
            .all(|page| self.host::<8>(rights, kind, page * PAGE_SIZE).is_some())
    }

    /// The host address of `W` bits that lie within one page.
    #[inline(always)]
    fn host<const W: u32>(&self, rights: u8, kind: AccessKind, at: u64) -> Option<*mut u8> {
        let table = self.tables.get(3 * usize::from(rights) + kind as usize)?;
        let entry = &table[index(Gva::new(at))];
        // Of an access across pages, the last byte is in another page than the entry's.
        let last = at.wrapping_add(u64::from(W / 8 - 1));
        (entry.page == last & !(PAGE_SIZE - 1)).then(|| entry.host.wrapping_add((at % PAGE_SIZE) as usize))
    }

    /// Moves when something was forgotten.
    #[inline(always)]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    #[inline]
    fn entry(&self, at: Gva, access: Access) -> Option<&Entry> {
        let entry = &self.tables[table(access)][index(at)];
        (entry.page == at.page_base().get()).then_some(entry)
    }

    /// Bytes of guest RAM within a page.
    pub fn place(&self, gpa: Gpa, length: usize) -> Option<Place<'_>> {
        Page::find(&self.slots, gpa.gfn())?.at(gpa.page_offset(), length)
    }

    /// Bytes of guest RAM within a page were written, past the TLB.
    pub fn log_write(&self, gpa: Gpa, bytes: usize) {
        if let Some(slot) = self.slots.find_gpa(gpa)
            && let Some(offset) = gpa.checked_offset_from(slot.range().start().base())
        {
            slot.mark_dirty(offset, bytes as u64);
        }
    }

    /// Remembers that `access` to the page of `at` goes to `gfn`, if that is memory whose writes nobody logs.
    pub fn fill(&mut self, at: Gva, access: Access, gfn: Gfn) {
        let logged = || self.slots.find(gfn).is_some_and(|slot| slot.dirty().is_some());
        if access.kind == AccessKind::Write && logged() {
            return;
        }
        if let Some(page) = Page::find(&self.slots, gfn) {
            self.tables[table(access)][index(at)] = Entry {
                page: at.page_base().get(),
                host: page.start(),
                gfn,
            };
        }
    }
}

#[inline]
fn index(at: Gva) -> usize {
    (at.get() / PAGE_SIZE) as usize % SETS
}

/// Which table: user, supervisor, or supervisor who passes SMAP.
#[inline]
fn table(access: Access) -> usize {
    let rights = if access.user {
        0
    } else {
        1 + usize::from(access.alignment_flag && !access.implicit)
    };
    3 * rights + access.kind as usize
}
