//! Access to host memory by address: the few operations, each on a place that a [`Backing`](crate::Backing) vouches for.
//!
//! Guests (and other threads) change the memory at any time. So all accesses here are volatile or atomic, values are
//! copied, and no reference into the memory is ever made.

use crate::addr::{Gpa, Hva};
use crate::guest_memory::{EntrySize, Exchange};
use crate::slot::MemSlot;
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A run of bytes of one slot that has a mapping: proof that the addresses may be accessed while the slot is borrowed.
pub(crate) struct HostRun<'a> {
    slot: &'a MemSlot,
    start: *mut u8,
    offset: u64,
    bytes: usize,
}

impl<'a> HostRun<'a> {
    /// The run of at most `bytes` bytes that starts at `gpa` and ends with the slot at the latest; `None` if `gpa` is
    /// not in the slot or the slot has no mapping.
    #[inline]
    pub(crate) fn new(slot: &'a MemSlot, gpa: Gpa, bytes: usize) -> Option<Self> {
        slot.backing()?;
        let offset = gpa.checked_offset_from(slot.range().start().base())?;
        let room = slot.bytes().checked_sub(offset).filter(|&room| room > 0)?;
        let bytes = usize::try_from(room).map_or(bytes, |room| room.min(bytes));
        let start = pointer(slot.hva().wrapping_add(offset));
        Some(Self {
            slot,
            start,
            offset,
            bytes,
        })
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// The first byte.
    #[cfg(feature = "std")]
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start
    }

    /// The run for vm-memory's volatile accesses, which log writes to `log`.
    #[cfg(feature = "std")]
    pub(crate) fn volatile_slice<B: vm_memory::bitmap::BitmapSlice>(&self, log: B) -> vm_memory::VolatileSlice<'a, B> {
        // SAFETY: `start .. start + bytes` is mapped and writable while the slot is borrowed for 'a (see `copy_to`), and
        // all accesses in this crate are volatile or atomic.
        unsafe { vm_memory::VolatileSlice::with_bitmap(self.start, self.bytes, log, None) }
    }

    /// Copies the run out; `to` has the run's length. What is aligned to 2, 4 or 8 bytes is read in pieces of that many, so
    /// that a value of such a width is never seen half written.
    pub(crate) fn copy_to(&self, to: &mut [u8]) {
        let bytes = to.len().min(self.bytes);
        let mut done = 0;
        while let Some(piece) = Piece::next(self.start, done, bytes) {
            // `start .. start + bytes` lies in a slot with a backing (checked in `new`; the slot table checked that the slot
            // lies in its backing), which keeps it mapped while `slot` is borrowed.
            let from = self.start.wrapping_add(done);
            let value = match piece {
                // SAFETY: mapped, see above: the piece ends within `bytes`.
                Piece::B1 => u64::from(unsafe { ptr::read_volatile(from) }),
                // SAFETY: mapped, see above, and aligned, as `Piece::next` checked.
                Piece::B2 => u64::from(unsafe { ptr::read_volatile(from.cast::<u16>()) }),
                // SAFETY: as for two bytes.
                Piece::B4 => u64::from(unsafe { ptr::read_volatile(from.cast::<u32>()) }),
                // SAFETY: as for two bytes.
                Piece::B8 => unsafe { ptr::read_volatile(from.cast::<u64>()) },
            };
            let end = done + piece.bytes();
            to[done..end].copy_from_slice(&value.to_ne_bytes()[..piece.bytes()]);
            done = end;
        }
    }

    /// Copies into the run and logs the pages; `from` has the run's length. In pieces as [`HostRun::copy_to`].
    pub(crate) fn copy_from(&self, from: &[u8]) {
        let bytes = from.len().min(self.bytes);
        let mut done = 0;
        while let Some(piece) = Piece::next(self.start, done, bytes) {
            let to = self.start.wrapping_add(done);
            let end = done + piece.bytes();
            let mut value = [0; 8];
            value[..piece.bytes()].copy_from_slice(&from[done..end]);
            let [first, second, third, fourth, ..] = value;
            match piece {
                // SAFETY: mapped as in `copy_to`; backings are writable.
                Piece::B1 => unsafe { ptr::write_volatile(to, first) },
                // SAFETY: likewise, and aligned, as `Piece::next` checked.
                Piece::B2 => unsafe { ptr::write_volatile(to.cast(), u16::from_ne_bytes([first, second])) },
                // SAFETY: as for two bytes.
                Piece::B4 => unsafe {
                    ptr::write_volatile(to.cast(), u32::from_ne_bytes([first, second, third, fourth]));
                },
                // SAFETY: as for two bytes.
                Piece::B8 => unsafe { ptr::write_volatile(to.cast(), u64::from_ne_bytes(value)) },
            }
            done = end;
        }
        self.slot.mark_dirty(self.offset, self.bytes as u64);
    }

    /// Reads one entry; `None` unless the run is at least that long and the place is aligned to it.
    #[inline]
    pub(crate) fn load_entry(&self, size: EntrySize) -> Option<u64> {
        Some(match size {
            EntrySize::B4 => u64::from(self.atomic32()?.load(Ordering::Acquire)),
            EntrySize::B8 => self.atomic64()?.load(Ordering::Acquire),
        })
    }

    /// Exchanges one entry and logs its page; `None` as in [`HostRun::load_entry`].
    pub(crate) fn exchange_entry(&self, size: EntrySize, current: u64, new: u64) -> Option<Exchange> {
        let order = Ordering::SeqCst;
        let outcome = match size {
            EntrySize::B4 => self
                .atomic32()?
                .compare_exchange(low(current), low(new), order, order)
                .map_err(u64::from)
                .err(),
            EntrySize::B8 => self.atomic64()?.compare_exchange(current, new, order, order).err(),
        };
        Some(match outcome {
            Some(found) => Exchange::Differs(found),
            None => {
                self.slot.mark_dirty(self.offset, size.bytes());
                Exchange::Done
            }
        })
    }

    fn atomic32(&self) -> Option<&AtomicU32> {
        if self.bytes < 4 || !self.start.cast::<u32>().is_aligned() {
            return None;
        }
        // SAFETY: mapped, writable and not referenced by Rust code (see `copy_to`); long enough and aligned (checked).
        // That the guest may write to it with other widths at the same time is what a CPU does to page tables, too.
        Some(unsafe { AtomicU32::from_ptr(self.start.cast()) })
    }

    fn atomic64(&self) -> Option<&AtomicU64> {
        if self.bytes < 8 || !self.start.cast::<u64>().is_aligned() {
            return None;
        }
        // SAFETY: as in `atomic32`.
        Some(unsafe { AtomicU64::from_ptr(self.start.cast()) })
    }
}

/// The pointer of a host address that was a pointer before ([`Backing::start`](crate::Backing::start)).
#[inline]
fn pointer(hva: Hva) -> *mut u8 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "addresses of mappings in this process fit a pointer"
    )]
    let address = hva.get() as usize;
    ptr::with_exposed_provenance_mut(address)
}

/// What is copied at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Piece {
    B1,
    B2,
    B4,
    B8,
}

impl Piece {
    /// The widest piece that is aligned at `start + done` and ends within `bytes`; `None` when all is done.
    #[inline]
    fn next(start: *mut u8, done: usize, bytes: usize) -> Option<Self> {
        let at = start.addr().wrapping_add(done);
        let left = bytes.checked_sub(done).filter(|left| *left > 0)?;
        let fits = |piece: &Self| left >= piece.bytes() && at.is_multiple_of(piece.bytes());
        [Self::B8, Self::B4, Self::B2].into_iter().find(fits).or(Some(Self::B1))
    }

    const fn bytes(self) -> usize {
        match self {
            Self::B1 => 1,
            Self::B2 => 2,
            Self::B4 => 4,
            Self::B8 => 8,
        }
    }
}

fn low(value: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
    let low = value as u32;
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(start: usize, bytes: usize) -> Vec<usize> {
        let mut done = 0;
        let next = || {
            let piece = Piece::next(ptr::without_provenance_mut(start), done, bytes)?.bytes();
            done += piece;
            Some(piece)
        };
        core::iter::from_fn(next).collect()
    }

    #[test]
    fn pieces_are_as_wide_as_their_place_allows() {
        for width in [1, 2, 4, 8] {
            assert_eq!(
                pieces(0x1000 + 8 * width, width),
                [width],
                "an aligned value is one piece"
            );
        }
        assert_eq!(pieces(0x1003, 8), [1, 4, 2, 1]);
        assert_eq!(pieces(0x1001, 20), [1, 2, 4, 8, 4, 1]);
        assert!(pieces(0x1000, 0).is_empty());
    }
}
