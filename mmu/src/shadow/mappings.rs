//! [`Mappings`]: the leaves that map one frame. Nearly always there is one, which then needs no memory of its own (KVM's
//! `rmap_head` does the same).

use crate::tables::EntryLocation;
use alloc::vec::Vec;
use umbra_memslots::Gfn;

/// A level and the first frame of those that a leaf of that level maps, ordered by level. One word, since it is compared
/// often.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct FrameKey(u64);

impl FrameKey {
    pub(super) fn new(level: u8, first: Gfn) -> Self {
        // A gfn has 52 bits at most.
        Self(u64::from(level) << 56 | first.get())
    }
}

/// At least one leaf.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Mappings {
    One(EntryLocation),
    Many(Vec<EntryLocation>),
}

impl Mappings {
    pub(super) fn as_slice(&self) -> &[EntryLocation] {
        match self {
            Self::One(at) => core::slice::from_ref(at),
            Self::Many(all) => all,
        }
    }

    pub(super) fn push(&mut self, at: EntryLocation) {
        match self {
            Self::One(first) => *self = Self::Many(alloc::vec![*first, at]),
            Self::Many(all) => all.push(at),
        }
    }

    /// Says whether none is left; then this is to be thrown away.
    #[must_use]
    pub(super) fn remove(&mut self, at: EntryLocation) -> bool {
        match self {
            Self::One(only) => *only == at,
            Self::Many(all) => {
                all.retain(|&other| other != at);
                all.is_empty()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::TableId;

    #[test]
    fn leaves_come_and_go_until_none_is_left() {
        let leaf = |index| EntryLocation {
            table: TableId::new(0),
            index,
        };
        let mut mappings = Mappings::One(leaf(1));
        assert!(!mappings.remove(leaf(2)));
        mappings.push(leaf(2));
        mappings.push(leaf(3));
        assert!(!mappings.remove(leaf(1)) && !mappings.remove(leaf(3)));
        assert_eq!(mappings.as_slice(), [leaf(2)]);
        assert!(mappings.remove(leaf(2)));
        assert!(Mappings::One(leaf(1)).remove(leaf(1)));
    }
}
