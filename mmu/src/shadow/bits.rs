//! [`BitSpan`]: a run of bits in a 64-bit entry, from which masks and widths are derived instead of being written down.

/// Bits `start..=end` of a 64-bit word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BitSpan {
    start: u32,
    end: u32,
    /// Follows from the other two; kept because the MMIO path needs it.
    mask: u64,
}

impl BitSpan {
    /// Bits `start..=end`, or `None` unless `start <= end <= 63`.
    #[must_use]
    pub const fn new(start: u32, end: u32) -> Option<Self> {
        if start <= end && end < u64::BITS {
            let mask = (u64::MAX >> (u64::BITS - (end - start + 1))) << start;
            Some(Self { start, end, mask })
        } else {
            None
        }
    }

    /// [`BitSpan::new`] for constants: does not compile with a span that is not one.
    pub(crate) const fn fixed(start: u32, end: u32) -> Self {
        match Self::new(start, end) {
            Some(span) => span,
            None => {
                // Only ever evaluated at compile time.
                #[expect(clippy::panic, reason = "a compile-time error for a wrong constant")]
                {
                    panic!("not a bit span")
                }
            }
        }
    }

    /// Lowest bit.
    #[must_use]
    pub const fn start(self) -> u32 {
        self.start
    }

    /// Highest bit.
    #[must_use]
    pub const fn end(self) -> u32 {
        self.end
    }

    /// Number of bits, `1..=64`.
    #[must_use]
    pub const fn width(self) -> u32 {
        self.end - self.start + 1
    }

    /// The word with exactly these bits set.
    #[inline]
    #[must_use]
    pub const fn mask(self) -> u64 {
        self.mask
    }

    /// The low [`BitSpan::width`] bits of `value`, moved to where the span is.
    #[inline]
    #[must_use]
    pub const fn put(self, value: u64) -> u64 {
        (value << self.start) & self.mask()
    }

    /// The inverse of [`BitSpan::put`].
    #[inline]
    #[must_use]
    pub const fn take(self, word: u64) -> u64 {
        (word & self.mask()) >> self.start
    }
}

/// `rsvd_bits(low, high)` of KVM: bits `low..=high`, and no bit at all if `high < low`.
#[must_use]
pub(crate) const fn bits(low: u32, high: u32) -> u64 {
    match BitSpan::new(low, high) {
        Some(span) => span.mask(),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_span_puts_and_takes_back() {
        for start in 0..64 {
            for end in start..64 {
                let span = BitSpan::new(start, end).unwrap();
                assert_eq!(span.mask().count_ones(), span.width());
                assert_eq!(span.mask().trailing_zeros(), start);
                for value in [0, 1, 0x5555_5555_5555_5555, u64::MAX] {
                    let kept = value & (u64::MAX >> (64 - span.width()));
                    assert_eq!(span.take(span.put(value)), kept);
                    assert_eq!(span.put(value) & !span.mask(), 0);
                }
            }
        }
    }

    #[test]
    fn span_outside_the_word_or_backwards_is_refused() {
        assert_eq!(BitSpan::new(3, 64), None);
        assert_eq!(BitSpan::new(4, 3), None);
        assert_eq!(bits(52, 51), 0);
        assert_eq!(bits(51, 51), 1 << 51);
    }
}
