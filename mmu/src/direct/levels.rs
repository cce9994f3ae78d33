//! [`Levels`]: how a gfn is cut into table indices.

use crate::tables::{ENTRIES, INDEX_BITS};
use umbra_memslots::{Gfn, GfnRange};

/// The depth of a tree of page tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Levels {
    /// 48 address bits.
    #[default]
    Four,
    /// 57 address bits: more than the 52 of any physical address.
    Five,
}

impl Levels {
    /// The level of the root's entries: 4 or 5.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u8 {
        match self {
            Self::Four => 4,
            Self::Five => 5,
        }
    }

    /// The frames that such a tree can map.
    #[must_use]
    pub const fn gfns(self) -> GfnRange {
        match GfnRange::new(Gfn::from_masked(0), 1 << (INDEX_BITS * self.get() as u32)) {
            Some(range) => range,
            // Not reached: 2^45 at most.
            None => GfnRange::single(Gfn::from_masked(0)),
        }
    }

    /// Whether such a tree can map the frame.
    #[inline]
    #[must_use]
    pub const fn holds(self, gfn: Gfn) -> bool {
        gfn.get() >> (INDEX_BITS * self.get() as u32) == 0
    }

    /// Which entry of a table of `level` (`1..=5`) leads to `gfn`.
    #[inline]
    #[must_use]
    pub(crate) const fn index(self, gfn: Gfn, level: u8) -> u16 {
        #[expect(clippy::cast_possible_truncation, reason = "masked to nine bits")]
        let index = ((gfn.get() >> shift(level)) & (ENTRIES as u64 - 1)) as u16;
        index
    }

    /// Number of frames under one entry of a table of `level`.
    #[inline]
    #[must_use]
    pub(crate) const fn pages_per_entry(self, level: u8) -> u64 {
        1 << shift(level)
    }

    /// The frames under entry `index` of the table of `level` in which `neighbour` is.
    pub(crate) const fn covered(self, neighbour: Gfn, level: u8, index: u16) -> GfnRange {
        let table = neighbour.get() >> (shift(level) + INDEX_BITS) << (shift(level) + INDEX_BITS);
        let start = Gfn::from_masked(table | (index as u64) << shift(level));
        match GfnRange::new(start, self.pages_per_entry(level)) {
            Some(range) => range,
            // Not reached: within the 52 bits of a gfn.
            None => GfnRange::single(start),
        }
    }
}

/// How far the bits that index a table of `level` are shifted.
const fn shift(level: u8) -> u32 {
    INDEX_BITS * (level as u32 - 1)
}
