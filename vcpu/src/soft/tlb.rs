//! The TLB: from a linear page to host memory with one comparison.
//!
//! There is a table for each way of accessing (who, and what for), so that an entry needs no permissions: it is there if
//! the access is allowed. Entries point into the memory of one snapshot of the slots, which the TLB holds on to.

use super::host::{Page, Place};
use super::raw;
use crate::emulate::{Access, AccessKind};
use std::sync::Arc;
use umbra_memslots::{Gfn, Gpa, Gva, Memslots, PAGE_SIZE};

/// Entries of a table.
const SETS: usize = 1024;
/// Tables: four rights (of which one is not used) times four kinds (likewise), so that numbers need no check.
const TABLES: usize = 16;
/// Stamps are below this: they lie where an entry's page has no bits.
const STAMPS: u64 = PAGE_SIZE;
/// A tag that no lookup asks for: stamps begin at 1.
const EMPTY: u64 = 0;

#[derive(Clone, Copy)]
struct Entry {
    /// Linear address of the page, and the stamp of the time since which the entry counts.
    tag: u64,
    /// What a linear address in the page is to be added to, to give the host's address.
    origin: *mut u8,
}

/// One vCPU's translations.
pub(super) struct Tlb {
    slots: Arc<Memslots>,
    epoch: u64,
    /// Entries with another stamp are of before the last flush.
    stamp: u64,
    /// Where the tables of [`Tlb::set_rights`] begin.
    view: usize,
    entries: Box<[Entry; TABLES * SETS]>,
    /// The frame of each entry.
    frames: Box<[Gfn; TABLES * SETS]>,
}

// SAFETY: the pointers in entries lead to memory of guest RAM, which any thread may access (see `host`), and which the
// snapshot that moves along keeps mapped.
unsafe impl Send for Tlb {}

impl Tlb {
    /// Knows nothing, and is to find memory in `slots`.
    pub fn new(slots: Arc<Memslots>) -> Self {
        let empty = Entry {
            tag: EMPTY,
            origin: std::ptr::null_mut(),
        };
        Self {
            slots,
            epoch: 0,
            stamp: 1,
            view: 0,
            entries: Box::new([empty; TABLES * SETS]),
            frames: Box::new([Gpa::new(0).gfn(); TABLES * SETS]),
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
        self.stamp += 1;
        if self.stamp == STAMPS {
            self.stamp = 1;
            for entry in self.entries.iter_mut() {
                entry.tag = EMPTY;
            }
        }
    }

    /// Forgets one page.
    pub fn flush_page(&mut self, at: Gva) {
        self.epoch += 1;
        let tag = self.tag(at);
        for entry in self.entries.iter_mut().skip(index(at)).step_by(SETS) {
            if entry.tag == tag {
                entry.tag = EMPTY;
            }
        }
    }

    /// Forgets every right to write to a frame.
    pub fn flush_writes(&mut self, gfn: Gfn) {
        for rights in 0..3 {
            let first = first_of(rights, AccessKind::Write);
            for place in first..first + SETS {
                if self.frames[place] == gfn {
                    self.entries[place].tag = EMPTY;
                }
            }
        }
    }

    /// Says with which rights fast operations access memory from now on ([`crate::soft::fast::mode::Mode`] numbers them).
    pub fn set_rights(&mut self, rights: u8) {
        self.view = first_of(usize::from(rights & 3), AccessKind::Read);
    }

    /// The memory of an access within a page, if it is known.
    #[inline]
    pub fn find(&self, at: Gva, length: usize, access: Access) -> Option<Place<'_>> {
        let entry = &self.entries[self.place_of(at, access)?];
        let page = entry.origin.wrapping_add(at.page_base().get() as usize);
        // SAFETY: the page was found in `self.slots`, or the entry would have been emptied in `renew`; and that snapshot
        // is alive as long as `self` is borrowed.
        let page = unsafe { Page::again(page) };
        page.at(at.page_offset(), length)
    }

    /// The guest-physical address, if it is known.
    #[inline]
    pub fn find_gpa(&self, at: Gva, access: Access) -> Option<Gpa> {
        let frame = self.frames[self.place_of(at, access)?];
        Some(frame.base().wrapping_add(at.page_offset()))
    }

    /// The `W` bits at `at`, if the right to read them is known.
    #[inline(always)]
    pub fn load<const W: u32>(&self, at: u64) -> Option<u64> {
        let host = self.host::<W>(AccessKind::Read, at)?;
        // SAFETY: `host` gives the address of `W` bits in a page that the snapshot keeps mapped.
        Some(unsafe { raw::load::<W>(host) })
    }

    /// The same if the right to write is known.
    #[inline(always)]
    pub fn load_to_write<const W: u32>(&self, at: u64) -> Option<u64> {
        let host = self.host::<W>(AccessKind::Write, at)?;
        // SAFETY: as in `load`.
        Some(unsafe { raw::load::<W>(host) })
    }

    /// Writes the low `W` bits of `value`, if the right to write is known. Says whether it is.
    #[inline(always)]
    pub fn store<const W: u32>(&self, at: u64, value: u64) -> bool {
        let Some(host) = self.host::<W>(AccessKind::Write, at) else {
            return false;
        };
        // SAFETY: as in `load`.
        unsafe { raw::store::<W>(host, value) };
        true
    }

    /// The 16 bytes at `at`, if the right to read them is known.
    #[inline(always)]
    pub fn load_wide(&self, at: u64) -> Option<u128> {
        let host = self.host::<128>(AccessKind::Read, at)?;
        // SAFETY: as in `load`, for 128 bits.
        Some(unsafe { raw::load_wide(host) })
    }

    /// Writes 16 bytes, if the right to write is known. Says whether it is.
    #[inline(always)]
    pub fn store_wide(&self, at: u64, value: u128) -> bool {
        let Some(host) = self.host::<128>(AccessKind::Write, at) else {
            return false;
        };
        // SAFETY: as in `load_wide`.
        unsafe { raw::store_wide(host, value) };
        true
    }

    /// Writes `value`, `W` bits wide, into all of `bytes` bytes from `at` on, if the right to write to all of them is known.
    /// Says whether it is.
    pub fn fill_range<const W: u32>(&self, at: u64, value: u64, bytes: u64) -> bool {
        let known = self.knows_range(AccessKind::Write, at, bytes);
        let mut done = 0;
        while known && done < bytes {
            let at = at + done;
            let part = (bytes - done).min(PAGE_SIZE - at % PAGE_SIZE);
            let Some(host) = self.host::<8>(AccessKind::Write, at) else {
                return false;
            };
            // SAFETY: as in `load`, and the part ends in the page.
            unsafe { raw::fill::<W>(host, value, part as usize) };
            done += part;
        }
        known
    }

    /// Copies `bytes` bytes upwards in elements of `W` bits, if the rights for all of them are known, and if no element is
    /// read after a part of it was written where elements are not aligned. Says whether it did.
    pub fn copy_range<const W: u32>(&self, from: u64, to: u64, bytes: u64) -> bool {
        if (from | to) & u64::from(W / 8 - 1) == 0 {
            return self.copy_parts(from, to, bytes, |source, destination, part| {
                // SAFETY: as in `load`, and the part ends in both pages.
                unsafe { raw::copy::<W>(source, destination, part) };
                true
            });
        }
        // Elements lie across pages, so it goes byte by byte. What is in the way is close behind in the host's memory: two
        // linear pages may be one frame. If it is across a page, the part in front or behind is as far apart.
        let apart = |source: *mut u8, destination: *mut u8, _| {
            let distance = destination.addr().wrapping_sub(source.addr());
            !(1..W as usize / 8).contains(&distance)
        };
        self.copy_parts(from, to, bytes, apart)
            && self.copy_parts(from, to, bytes, |source, destination, part| {
                // SAFETY: as above.
                unsafe { raw::copy::<8>(source, destination, part) };
                true
            })
    }

    /// Does something with each part of two ranges that lies in one page of both, as long as it says `true`, if the rights
    /// to copy one to the other are known. Says whether all is done.
    #[inline(always)]
    fn copy_parts(&self, from: u64, to: u64, bytes: u64, work: impl Fn(*mut u8, *mut u8, usize) -> bool) -> bool {
        let known = self.knows_range(AccessKind::Read, from, bytes) && self.knows_range(AccessKind::Write, to, bytes);
        let mut done = 0;
        while known && done < bytes {
            let (from, to) = (from + done, to + done);
            let left = |at: u64| PAGE_SIZE - at % PAGE_SIZE;
            let part = (bytes - done).min(left(from)).min(left(to));
            let (Some(source), Some(destination)) = (
                self.host::<8>(AccessKind::Read, from),
                self.host::<8>(AccessKind::Write, to),
            ) else {
                return false;
            };
            if !work(source, destination, part as usize) {
                return false;
            }
            done += part;
        }
        known
    }

    /// Whether the right to access all of `bytes` bytes from `at` on is known.
    fn knows_range(&self, kind: AccessKind, at: u64, bytes: u64) -> bool {
        let pages = at / PAGE_SIZE..=(at + bytes - 1) / PAGE_SIZE;
        pages
            .into_iter()
            .all(|page| self.host::<8>(kind, page * PAGE_SIZE).is_some())
    }

    /// The host address of `W` bits that lie within one page.
    #[inline(always)]
    fn host<const W: u32>(&self, kind: AccessKind, at: u64) -> Option<*mut u8> {
        let place = self.view + kind as usize * SETS + (at / PAGE_SIZE) as usize % SETS;
        let entry = &self.entries[place % (TABLES * SETS)];
        // Of an access across pages, the last byte is in another page than the entry's.
        let last = at.wrapping_add(u64::from(W / 8 - 1));
        let tag = last & !(PAGE_SIZE - 1) | self.stamp;
        (entry.tag == tag).then(|| entry.origin.wrapping_add(at as usize))
    }

    /// What was found by offset in the code segment does not count any more, as that segment lies elsewhere now.
    pub fn begin_epoch(&mut self) {
        self.epoch += 1;
    }

    /// Moves when something was forgotten.
    #[inline(always)]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What the entry for the page of `at` says if it counts.
    #[inline]
    fn tag(&self, at: Gva) -> u64 {
        at.page_base().get() | self.stamp
    }

    /// Which entry knows the page of `at`, if one does.
    #[inline]
    fn place_of(&self, at: Gva, access: Access) -> Option<usize> {
        let place = table(access) + index(at);
        (self.entries[place % (TABLES * SETS)].tag == self.tag(at)).then_some(place % (TABLES * SETS))
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
            let place = table(access) + index(at);
            self.entries[place] = Entry {
                tag: self.tag(at),
                origin: page.start().wrapping_sub(at.page_base().get() as usize),
            };
            self.frames[place] = gfn;
        }
    }
}

#[inline]
fn index(at: Gva) -> usize {
    (at.get() / PAGE_SIZE) as usize % SETS
}

/// Where a table begins: its rights are 0 for users, 1 for the supervisor, 2 for a supervisor who passes SMAP.
#[inline]
const fn first_of(rights: usize, kind: AccessKind) -> usize {
    (4 * rights + kind as usize) * SETS
}

/// Where the table of an access begins.
#[inline]
fn table(access: Access) -> usize {
    let rights = if access.user {
        0
    } else {
        1 + usize::from(access.alignment_flag && !access.implicit)
    };
    first_of(rights, access.kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_memslots::SlotLimits;
    use umbra_memslots::ram::{GuestRam, HostMapping};

    /// Knows the supervisor's reads and writes of these linear pages, which are these frames.
    fn tlb(pages: &[(u64, u64)]) -> Tlb {
        let ram = GuestRam::new(SlotLimits::X86_64);
        ram.map(Gpa::new(0), Arc::new(HostMapping::anonymous(4 * PAGE_SIZE).unwrap()))
            .unwrap();
        let mut tlb = Tlb::new(ram.snapshot());
        tlb.set_rights(1);
        for (page, frame) in pages {
            for kind in [AccessKind::Read, AccessKind::Write] {
                let access = Access {
                    kind,
                    user: false,
                    implicit: false,
                    alignment_flag: false,
                };
                tlb.fill(Gva::new(page * PAGE_SIZE), access, Gpa::new(frame * PAGE_SIZE).gfn());
            }
        }
        tlb
    }

    #[test]
    fn unaligned_copy_is_refused_where_two_pages_are_one_frame_and_elements_overlap() {
        let tlb = tlb(&[(1, 0), (2, 1), (5, 0), (6, 1), (7, 2)]);
        let done = |from: u64, to: u64, bytes| tlb.copy_range::<32>(from, to, bytes);
        // Linear 5 and 6 are what 1 and 2 are.
        for distance in 1..=3 {
            assert!(!done(0x1101, 0x5101 + distance, 64), "{distance} bytes apart");
            assert!(!done(0x1101, 0x1101 + distance, 64), "in one page");
            assert!(!done(0x1ff1, 0x5ff1 + distance, 64), "across a page");
            assert!(!done(0x1ff1 - distance, 0x5ff1, 64));
        }
        for (from, to) in [(0x1101, 0x5101), (0x1101, 0x5105), (0x1105, 0x5101), (0x1101, 0x7102)] {
            assert!(done(from, to, 64), "{from:#x} to {to:#x}");
        }
        assert!(tlb.copy_range::<8>(0x1101, 0x5102, 64), "bytes are whole elements");
    }

    #[test]
    fn unaligned_copy_is_what_elements_in_order_make() {
        let tlb = tlb(&[(1, 0), (2, 1), (5, 0)]);
        for index in 0..64 {
            assert!(tlb.store::<8>(0x1fd0 + index, index));
        }
        // Four bytes ahead: each element is the one before.
        assert!(tlb.copy_range::<32>(0x1ff1, 0x1ff5, 16));
        let bytes: Vec<Option<u64>> = (0..16).map(|index| tlb.load::<8>(0x1ff5 + index)).collect();
        let expected: Vec<Option<u64>> = (0..16).map(|index| Some(0x21 + index % 4)).collect();
        assert_eq!(bytes, expected);
    }
}
