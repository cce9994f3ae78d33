//! [`GfnRange`]: the only range convention for guest frames: half-open, never empty, cannot overflow.

use crate::addr::{Gfn, Gpa, PAGE_SHIFT};
use core::fmt;

/// A non-empty run of guest frames, `start .. start + pages`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GfnRange {
    start: Gfn,
    pages: u64,
}

impl GfnRange {
    /// `pages` frames from `start` on; `None` if `pages` is 0 or the last frame would lie past [`Gfn::MAX`].
    #[inline]
    pub const fn new(start: Gfn, pages: u64) -> Option<Self> {
        if pages == 0 || start.checked_add(pages - 1).is_none() {
            return None;
        }
        Some(Self { start, pages })
    }

    /// One frame.
    #[inline]
    pub const fn single(gfn: Gfn) -> Self {
        Self { start: gfn, pages: 1 }
    }

    /// The frames touched by `bytes` bytes from `gpa` on; `None` if `bytes` is 0 or the run wraps.
    #[inline]
    pub const fn covering(gpa: Gpa, bytes: u64) -> Option<Self> {
        if bytes == 0 {
            return None;
        }
        match gpa.checked_add(bytes - 1) {
            Some(last) => Self::new(gpa.gfn(), last.gfn().get() - gpa.gfn().get() + 1),
            None => None,
        }
    }

    /// First frame.
    #[inline]
    pub const fn start(self) -> Gfn {
        self.start
    }

    /// Last frame (inclusive; always exists).
    #[inline]
    pub const fn last(self) -> Gfn {
        Gfn::from_masked(self.start.get() + (self.pages - 1))
    }

    /// One past the last frame, as a plain number because it may be 2^52.
    #[inline]
    pub const fn end_raw(self) -> u64 {
        self.start.get() + self.pages
    }

    /// Number of frames, at least 1.
    #[inline]
    pub const fn pages(self) -> u64 {
        self.pages
    }

    /// Size in bytes, or `None` for the whole 2^64 byte space.
    #[inline]
    pub const fn bytes(self) -> Option<u64> {
        if self.pages > u64::MAX >> PAGE_SHIFT {
            None
        } else {
            Some(self.pages << PAGE_SHIFT)
        }
    }

    /// Whether `gfn` lies in the range.
    #[inline]
    pub const fn contains(self, gfn: Gfn) -> bool {
        gfn.get().wrapping_sub(self.start.get()) < self.pages
    }

    /// Whether the ranges share a frame.
    #[inline]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.get() < other.end_raw() && other.start.get() < self.end_raw()
    }

    /// The shared frames, if any.
    pub fn intersection(self, other: Self) -> Option<Self> {
        if !self.overlaps(other) {
            return None;
        }
        let start = self.start.max(other.start);
        Self::new(start, self.end_raw().min(other.end_raw()) - start.get())
    }

    /// Every frame in order.
    pub fn iter(self) -> impl Iterator<Item = Gfn> {
        (self.start.get()..self.end_raw()).map(Gfn::from_masked)
    }
}

impl fmt::Debug for GfnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GfnRange({self})")
    }
}

impl fmt::Display for GfnRange {
    /// `0x100..0x200`, half-open.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end_raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, pages: u64) -> GfnRange {
        GfnRange::new(Gfn::new(start).unwrap(), pages).unwrap()
    }

    #[test]
    fn empty_or_overflowing_is_refused() {
        assert_eq!(GfnRange::new(Gfn::new(0).unwrap(), 0), None);
        assert_eq!(GfnRange::new(Gfn::MAX, 2), None);
        assert_eq!(GfnRange::new(Gfn::MAX, 1).unwrap().last(), Gfn::MAX);
        assert_eq!(GfnRange::new(Gfn::new(0).unwrap(), 1 << 52).unwrap().bytes(), None);
    }

    #[test]
    fn neighbours_do_not_overlap() {
        assert!(!range(0, 4).overlaps(range(4, 4)));
        assert!(range(0, 5).overlaps(range(4, 4)));
        assert_eq!(range(0, 5).intersection(range(4, 4)), Some(range(4, 1)));
    }

    #[test]
    fn covering_counts_the_pages_a_byte_run_touches() {
        assert_eq!(GfnRange::covering(Gpa::new(0xfff), 2), Some(range(0, 2)));
        assert_eq!(GfnRange::covering(Gpa::new(0x1000), 0x1000), Some(range(1, 1)));
        assert_eq!(GfnRange::covering(Gpa::new(u64::MAX), 2), None);
    }
}
