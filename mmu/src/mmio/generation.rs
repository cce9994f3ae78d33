//! [`MmioGen`]: the part of a memslot [`Generation`] that fits into an MMIO SPTE, and what happens when it wraps.
//!
//! An SPTE has room for some 19 bits, so the same [`MmioGen`] comes back after half a million slot updates. Before it
//! can, every entry of the last round has to be gone. The rounds are counted as [`MmioEra`]s: whoever first meets a
//! generation of a new era zaps what is left of the old one, and nobody trusts an entry of an era that is not its own.

use crate::shadow::GenerationSpans;
use core::fmt;
use umbra_memslots::Generation;

/// The cut of a generation that an SPTE holds. At most [`GenerationSpans::width`] bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MmioGen(u32);

impl MmioGen {
    /// Cuts a generation. The update-in-progress mark vanishes: an entry made during an update carries the number from
    /// before it, and is stale as soon as the update is complete.
    #[inline]
    #[must_use]
    pub const fn cut(generation: Generation, spans: GenerationSpans) -> Self {
        let width = spans.width();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the spans never hold 32 bits, see SpteLayout::new"
        )]
        Self((generation.number() & ((1 << width) - 1)) as u32)
    }

    /// From the bits of an entry; others than the spans' are ignored.
    #[inline]
    #[must_use]
    pub(crate) const fn from_entry(entry: u64, spans: GenerationSpans) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the spans never hold 32 bits, see SpteLayout::new"
        )]
        Self((spans.low.take(entry) | (spans.high.take(entry) << spans.low.width())) as u32)
    }

    /// To the bits of an entry.
    #[inline]
    #[must_use]
    pub(crate) const fn to_entry(self, spans: GenerationSpans) -> u64 {
        spans.low.put(self.0 as u64) | spans.high.put(self.0 as u64 >> spans.low.width())
    }

    /// The number, as traces print it.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for MmioGen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MmioGen({:#x})", self.0)
    }
}

/// How often [`MmioGen`] has wrapped: the bits of a generation that the cut leaves out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MmioEra(u64);

impl MmioEra {
    /// The era of a generation.
    #[inline]
    #[must_use]
    pub const fn of(generation: Generation, spans: GenerationSpans) -> Self {
        Self(generation.number() >> spans.width())
    }

    /// The era of this number.
    #[inline]
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The number.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_goes_into_an_entry_and_comes_back() {
        let spans = GenerationSpans::KVM;
        for number in 0..1 << spans.width() {
            let cut = MmioGen::cut(Generation::from_raw(number), spans);
            assert_eq!(u64::from(cut.get()), number);
            assert_eq!(MmioGen::from_entry(cut.to_entry(spans), spans), cut);
            assert_eq!(cut.to_entry(spans) & !spans.mask(), 0);
        }
    }

    #[test]
    fn era_counts_the_wraps_of_the_cut() {
        let spans = GenerationSpans::KVM;
        let last = Generation::from_raw((1 << spans.width()) - 2);
        let next = last.begin_update().finish_update(2);
        assert_eq!(MmioGen::cut(next, spans).get(), 0);
        assert_eq!((MmioEra::of(last, spans).get(), MmioEra::of(next, spans).get()), (0, 1));
        assert_eq!(MmioEra::of(last.begin_update(), spans), MmioEra::of(last, spans));
    }
}
