//! [`DirtyBitmap`]: which pages of one slot were written.
//!
//! One bit per page, in the layout of `KVM_GET_DIRTY_LOG`: bit `n % 64` of word `n / 64`. Marking is one atomic
//! operation from any thread. The rules of collecting are `kvm_get_dirty_log_protect` and
//! `kvm_clear_dirty_log_protect` (virt/kvm/kvm_main.c).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// Pages per word of a bitmap.
pub const PAGES_PER_WORD: u64 = 64;

/// The log of written pages of one slot.
pub struct DirtyBitmap {
    words: Box<[AtomicU64]>,
    pages: u64,
}

/// The host had no memory for a bitmap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no memory for a dirty bitmap of {bytes} bytes")]
pub struct NoMemory {
    /// What was asked for.
    pub bytes: u64,
}

/// A range that [`DirtyBitmap::clear`] does not take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "pages {first_page}..+{num_pages} cannot be cleared in a slot of {pages} pages: the first must be a multiple of 64 \
     inside the slot, and the number a multiple of 64 or reach exactly the slot's end"
)]
pub struct BadClearRange {
    /// First page asked for.
    pub first_page: u64,
    /// Number of pages asked for.
    pub num_pages: u64,
    /// Pages of the slot.
    pub pages: u64,
}

impl DirtyBitmap {
    /// A bitmap for `pages` pages, all clean or all dirty (`KVM_DIRTY_LOG_INITIALLY_SET`).
    ///
    /// # Errors
    /// [`NoMemory`] if the host has none for it.
    pub fn new(pages: u64, all_dirty: bool) -> Result<Self, NoMemory> {
        let wanted = pages.div_ceil(PAGES_PER_WORD);
        let no_memory = NoMemory {
            bytes: wanted.saturating_mul(8),
        };
        let count = usize::try_from(wanted).map_err(|_| no_memory)?;
        let mut words = Vec::new();
        words.try_reserve_exact(count).map_err(|_| no_memory)?;
        words.resize_with(count, || AtomicU64::new(0));
        let bitmap = Self {
            words: words.into_boxed_slice(),
            pages,
        };
        if all_dirty && pages > 0 {
            bitmap.mark(0, pages - 1);
        }
        Ok(bitmap)
    }

    /// Number of pages.
    #[inline]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Marks pages `first..=last`; those past the end are ignored.
    ///
    /// Call it *after* the write that it reports: a collector in between then sees the page in its next round. The
    /// operation is unconditional on purpose. Skipping it when the bit is already set would let the read of the bit
    /// pass before the write, and a collector in that moment would lose the write.
    #[inline]
    pub fn mark(&self, first: u64, last: u64) {
        if self.pages == 0 || first >= self.pages {
            return;
        }
        let last = last.min(self.pages - 1);
        let mut page = first;
        while page <= last {
            let end = (page | (PAGES_PER_WORD - 1)).min(last);
            if let Some(word) = self.word(page) {
                word.fetch_or(mask(page, end), Ordering::AcqRel);
            }
            page = end + 1;
        }
    }

    /// Whether a page is marked; `false` past the end.
    pub fn is_dirty(&self, page: u64) -> bool {
        page < self.pages
            && self
                .word(page)
                .is_some_and(|word| word.load(Ordering::Acquire) & mask(page, page) != 0)
    }

    /// Number of marked pages. Not a consistent instant if others mark meanwhile.
    pub fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.load(Ordering::Acquire).count_ones()))
            .sum()
    }

    /// The bits as they are, without clearing them (`KVM_GET_DIRTY_LOG` under manual protect).
    pub fn snapshot(&self) -> Vec<u64> {
        self.words.iter().map(|word| word.load(Ordering::Acquire)).collect()
    }

    /// The bits, cleared as they are read: every mark is returned by exactly one call.
    pub fn get_and_clear(&self) -> Vec<u64> {
        self.words.iter().map(|word| word.swap(0, Ordering::AcqRel)).collect()
    }

    /// Clears the pages whose bits are set in `bits` (bit 0 is page `first_page`), among the `num_pages` pages from
    /// `first_page` on, as `KVM_CLEAR_DIRTY_LOG` does. Returns how many pages were dirty and are now clean. Words of
    /// `bits` beyond `num_pages` are not looked at; missing ones count as 0.
    ///
    /// # Errors
    /// [`BadClearRange`] if `first_page` is not a multiple of 64, the range does not fit the slot, or `num_pages` is
    /// neither a multiple of 64 nor reaches the end. The kernel's errno for it is EINVAL.
    pub fn clear(&self, first_page: u64, num_pages: u64, bits: &[u64]) -> Result<u64, BadClearRange> {
        let bad = BadClearRange {
            first_page,
            num_pages,
            pages: self.pages,
        };
        let room = self.pages.checked_sub(first_page).ok_or(bad)?;
        if !first_page.is_multiple_of(PAGES_PER_WORD)
            || num_pages > room
            || (num_pages < room && !num_pages.is_multiple_of(PAGES_PER_WORD))
        {
            return Err(bad);
        }
        let mut cleared = 0;
        for (number, &bits) in (0..num_pages.div_ceil(PAGES_PER_WORD)).zip(bits) {
            if bits != 0
                && let Some(word) = self.word(first_page + number * PAGES_PER_WORD)
            {
                cleared += u64::from((word.fetch_and(!bits, Ordering::AcqRel) & bits).count_ones());
            }
        }
        Ok(cleared)
    }

    /// Marks every page whose bit is set in `bits` (bit 0 is page 0): merges in another log of the same slot, such as
    /// KVM's. Bits past the end are ignored.
    pub fn merge(&self, bits: &[u64]) {
        for (index, (word, &bits)) in self.words.iter().zip(bits).enumerate() {
            let first = index as u64 * PAGES_PER_WORD;
            let bits = bits & mask(first, (first + PAGES_PER_WORD - 1).min(self.pages - 1));
            if bits != 0 {
                word.fetch_or(bits, Ordering::AcqRel);
            }
        }
    }

    #[inline]
    fn word(&self, page: u64) -> Option<&AtomicU64> {
        self.words.get(usize::try_from(page / PAGES_PER_WORD).ok()?)
    }
}

/// The bits of pages `first..=last`, which lie in one word.
#[inline]
const fn mask(first: u64, last: u64) -> u64 {
    let low = first % PAGES_PER_WORD;
    let high = last % PAGES_PER_WORD;
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

impl fmt::Debug for DirtyBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirtyBitmap({} of {} pages)", self.count(), self.pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn marks_across_words_are_returned_once() {
        let bitmap = DirtyBitmap::new(200, false).unwrap();
        bitmap.mark(60, 130);
        bitmap.mark(199, u64::MAX);
        bitmap.mark(200, 300);
        assert_eq!(bitmap.count(), 72);
        let bits = bitmap.get_and_clear();
        assert_eq!(bits, vec![0xf << 60, u64::MAX, 0b111, 1 << 7]);
        assert_eq!(bitmap.count(), 0);
    }

    #[test]
    fn initially_set_marks_exactly_the_pages() {
        assert_eq!(DirtyBitmap::new(70, true).unwrap().snapshot(), vec![u64::MAX, 0x3f]);
    }

    #[test]
    fn clear_follows_the_alignment_rules() {
        let bitmap = DirtyBitmap::new(130, true).unwrap();
        assert!(bitmap.clear(1, 64, &[1]).is_err());
        assert!(bitmap.clear(0, 65, &[1]).is_err());
        assert!(bitmap.clear(128, 3, &[1]).is_err());
        assert!(bitmap.clear(192, 0, &[]).is_err());
        assert_eq!(bitmap.clear(128, 2, &[u64::MAX]), Ok(2));
        assert_eq!(bitmap.clear(0, 64, &[0b101]), Ok(2));
        assert_eq!(bitmap.clear(0, 64, &[0b101]), Ok(0));
        assert_eq!(bitmap.count(), 126);
    }

    #[test]
    fn merge_keeps_own_marks_and_drops_bits_past_the_end() {
        let bitmap = DirtyBitmap::new(66, false).unwrap();
        bitmap.mark(0, 0);
        bitmap.merge(&[0b10, u64::MAX, u64::MAX]);
        assert_eq!(bitmap.snapshot(), vec![0b11, 0b11]);
    }

    #[test]
    fn empty_bitmap_ignores_everything() {
        let bitmap = DirtyBitmap::new(0, true).unwrap();
        bitmap.mark(0, u64::MAX);
        bitmap.merge(&[1]);
        assert_eq!(bitmap.count(), 0);
    }
}
