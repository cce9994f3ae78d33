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

    /// Copies the run out; `to` has the run's length.
    pub(crate) fn copy_to(&self, to: &mut [u8]) {
        for (index, to) in to.iter_mut().take(self.bytes).enumerate() {
            // SAFETY: `start .. start + bytes` lies in a slot with a backing (checked in `new`; the slot table checked
            // that the slot lies in its backing), which keeps it mapped while `slot` is borrowed; `index` < `bytes`.
            *to = unsafe { ptr::read_volatile(self.start.wrapping_add(index)) };
        }
    }

    /// Copies into the run and logs the pages; `from` has the run's length.
    pub(crate) fn copy_from(&self, from: &[u8]) {
        for (index, &from) in from.iter().take(self.bytes).enumerate() {
            // SAFETY: as in `copy_to`; backings are writable.
            unsafe { ptr::write_volatile(self.start.wrapping_add(index), from) };
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

fn low(value: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
    let low = value as u32;
    low
}
