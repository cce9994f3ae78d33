//! [`BusRange`]: a run of bus addresses, half-open, never empty, within the address space.
//!
//! Ranges are deliberately not ordered: "less" by start alone would make different ranges equal.

use super::address::BusAddress;
use crate::access::IoSize;
use std::fmt;

/// `len` bytes (or ports) from `start` on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BusRange<A> {
    start: A,
    len: u64,
}

impl<A: BusAddress> BusRange<A> {
    /// `len` bytes or ports from `start` on; `None` if `len` is 0 or the last one would lie past the address space.
    pub fn new(start: A, len: u64) -> Option<Self> {
        let last = start.raw().checked_add(len.checked_sub(1)?)?;
        A::from_raw(last)?;
        Some(Self { start, len })
    }

    /// First address.
    #[inline]
    pub const fn start(&self) -> A {
        self.start
    }

    /// Number of bytes or ports, at least 1.
    #[inline]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Never: a range holds at least one address. (Here because `len` is.)
    #[inline]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Last address as a number (inclusive; one past it may not exist).
    #[inline]
    pub fn last_raw(&self) -> u64 {
        self.start.raw() + (self.len - 1)
    }

    /// Whether the ranges share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start.raw() <= other.last_raw() && other.start.raw() <= self.last_raw()
    }

    /// Whether every address of `other` lies in this range.
    pub fn contains_range(&self, other: &Self) -> bool {
        self.start.raw() <= other.start.raw() && other.last_raw() <= self.last_raw()
    }

    /// The offset of an access of `size` at `addr`, if *all* its bytes lie in the range.
    #[inline]
    pub fn offset_of(&self, addr: A, size: IoSize) -> Option<u64> {
        let offset = addr.raw().wrapping_sub(self.start.raw());
        contains(self.len, offset, size).then_some(offset)
    }

    /// Whether an access of `size` at `raw` lies wholly in the range.
    pub(super) fn holds(&self, raw: u64, size: IoSize) -> bool {
        contains(self.len, raw.wrapping_sub(self.start.raw()), size)
    }
}

/// Whether an access of `size` at `offset` lies wholly within `len` bytes. `offset` may be any number, also one that
/// wrapped because the address was below the start.
#[inline]
pub(super) const fn contains(len: u64, offset: u64, size: IoSize) -> bool {
    offset < len.saturating_sub(size.bytes() - 1)
}

impl<A: BusAddress> fmt::Display for BusRange<A> {
    /// `0x3f8..0x400`, half-open.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.raw(), u128::from(self.last_raw()) + 1)
    }
}

impl<A: BusAddress> fmt::Debug for BusRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BusRange({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Port;
    use umbra_memslots::Gpa;

    #[test]
    fn empty_or_overflowing_range_is_refused() {
        assert_eq!(BusRange::new(Port::new(4), 0), None);
        assert_eq!(BusRange::new(Port::new(0xffff), 2), None);
        assert_eq!(BusRange::new(Gpa::new(u64::MAX), 2), None);
        assert!(BusRange::new(Port::new(0xffff), 1).is_some());
        assert!(BusRange::new(Port::new(0), 0x1_0000).is_some());
        assert!(BusRange::new(Gpa::new(1), u64::MAX).is_some());
    }

    #[test]
    fn access_must_lie_wholly_within() {
        let range = BusRange::new(Gpa::new(0x1000), 6).unwrap();
        assert_eq!(range.offset_of(Gpa::new(0x1000), IoSize::B4), Some(0));
        assert_eq!(range.offset_of(Gpa::new(0x1002), IoSize::B4), Some(2));
        assert_eq!(range.offset_of(Gpa::new(0x1003), IoSize::B4), None);
        assert_eq!(range.offset_of(Gpa::new(0xfff), IoSize::B1), None);
        assert_eq!(range.offset_of(Gpa::new(0x1000), IoSize::B8), None);
        let top = BusRange::new(Gpa::new(u64::MAX - 3), 4).unwrap();
        assert_eq!(top.offset_of(Gpa::new(u64::MAX - 3), IoSize::B4), Some(0));
        assert_eq!(top.offset_of(Gpa::new(u64::MAX - 2), IoSize::B4), None);
    }

    #[test]
    fn display_is_half_open_even_at_the_top() {
        assert_eq!(
            BusRange::new(Gpa::new(u64::MAX), 1).unwrap().to_string(),
            "0xffffffffffffffff..0x10000000000000000"
        );
    }
}
