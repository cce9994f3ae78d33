//! [`Row`]: one entry of a page table, decoded, or a run of entries that differ only in where they lead.

use crate::access_mask::AccessMask;
use crate::mmio::{Freshness, MmioFacts};

/// An entry or a run of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// The first address that is translated by it: a gva, or of direct tables a gpa.
    pub start: u64,
    /// The level of the table it is in: 1 for PTEs.
    pub level: u8,
    /// log2 of the bytes that one entry covers.
    pub shift: u8,
    /// The first entry's index in its table.
    pub index: u16,
    /// Number of entries.
    pub count: u64,
    /// The first entry as it is.
    pub raw: u64,
    /// What it is.
    pub seen: Seen,
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// It leads to a table.
    Table {
        /// Where that is.
        address: u64,
        /// What the entry itself allows.
        access: AccessMask,
        /// How many such tables were folded into one row: each is full, and together they are like one run.
        tables: u64,
        /// The table has been listed before, and isn't again.
        again: bool,
    },
    /// It maps memory.
    Page {
        /// Where that is.
        address: u64,
        /// What the entry itself allows.
        access: AccessMask,
        /// Accessed.
        accessed: Share,
        /// Dirty.
        dirty: Share,
        /// All entries of the run map this one page, instead of each the one behind the last one's.
        repeated: bool,
    },
    /// An MMIO SPTE.
    Mmio {
        /// What it holds; of a run, the first one's.
        facts: MmioFacts,
        /// Whether it is still believed.
        freshness: Freshness,
    },
    /// A guest's present entry with reserved bits: a fault.
    Reserved {
        /// Those bits.
        bits: u64,
    },
    /// It leads to a table where there is none.
    NoTable {
        /// Where that would be.
        address: u64,
    },
}

/// How many of a run have a flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// None of them.
    None,
    /// Some.
    Some,
    /// All of them.
    All,
}

impl Share {
    pub(super) const fn of(set: bool) -> Self {
        if set { Self::All } else { Self::None }
    }

    fn with(self, other: Self) -> Self {
        if self == other { self } else { Self::Some }
    }
}

impl Row {
    /// Number of bytes of the address space that it covers.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.count << self.shift
    }

    /// The last address that it covers.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.start.wrapping_add(self.bytes() - 1)
    }

    /// Whether it is a leaf: not the way to a table.
    #[must_use]
    pub const fn is_leaf(&self) -> bool {
        !matches!(self.seen, Seen::Table { .. })
    }

    /// Takes in the row that follows if the two are alike; says whether it did.
    pub(super) fn absorb(&mut self, next: &Self) -> bool {
        if self.level != next.level || self.start.wrapping_add(self.bytes()) != next.start {
            return false;
        }
        let Some(seen) = self.joined(next) else { return false };
        self.seen = seen;
        self.count += next.count;
        true
    }

    /// What a run of the two is, if they are alike.
    fn joined(&self, next: &Self) -> Option<Seen> {
        let alike = match (self.seen, next.seen) {
            (Seen::Page { .. }, Seen::Page { .. }) => return self.joined_pages(next),
            (
                Seen::Mmio { facts, freshness },
                Seen::Mmio {
                    facts: next,
                    freshness: same,
                },
            ) => {
                facts.gfn.checked_add(self.count) == Some(next.gfn)
                    && (facts.access, facts.generation, freshness) == (next.access, next.generation, same)
            }
            (mine @ Seen::Table { again: true, .. }, other) => mine == other,
            (mine @ (Seen::Reserved { .. } | Seen::NoTable { .. }), other) => mine == other && self.raw == next.raw,
            _ => false,
        };
        alike.then_some(self.seen)
    }

    fn joined_pages(&self, next: &Self) -> Option<Seen> {
        let (
            Seen::Page {
                address,
                access,
                accessed,
                dirty,
                repeated,
            },
            Seen::Page {
                address: next_address,
                access: next_access,
                accessed: next_accessed,
                dirty: next_dirty,
                ..
            },
        ) = (self.seen, next.seen)
        else {
            return None;
        };
        let continued = (self.count == 1 || !repeated) && address.wrapping_add(self.bytes()) == next_address;
        let same = (self.count == 1 || repeated) && address == next_address && next.count == 1;
        (access == next_access && (continued || same)).then_some(Seen::Page {
            address,
            access,
            accessed: accessed.with(next_accessed),
            dirty: dirty.with(next_dirty),
            repeated: same,
        })
    }

    /// The part of a leaf that lies in `first..=last`, in whole entries.
    pub(super) fn clipped(&self, first: u64, last: u64) -> Option<Self> {
        if self.last() < first || self.start > last {
            return None;
        }
        let skipped = first.saturating_sub(self.start) >> self.shift;
        let behind = self.last().saturating_sub(last) >> self.shift;
        let mut part = Self {
            start: self.start + (skipped << self.shift),
            index: u16::try_from(u64::from(self.index) + skipped).unwrap_or(self.index),
            count: self.count - skipped - behind,
            ..*self
        };
        match &mut part.seen {
            Seen::Page {
                address,
                repeated: false,
                ..
            } => *address = address.wrapping_add(skipped << self.shift),
            Seen::Mmio { facts, .. } => facts.gfn = facts.gfn.checked_add(skipped)?,
            _ => {}
        }
        Some(part)
    }
}
