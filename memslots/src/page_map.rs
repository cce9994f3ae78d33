//! [`PageMap`]: a persistent map from guest frames to small values, nearly as fast as a flat table and far smaller.
//!
//! It is a radix tree like a page table. A lookup is one load per level and nothing else: no entry has a kind that would
//! have to be looked at, because every child pointer is valid. Where a real page table would have a large page or
//! nothing, all entries point to one *shared* node with the same value everywhere; so a range costs a few nodes however
//! long it is. The height follows the highest frame that is mapped: all of 4 GiB is two levels, all of 2 TiB three.
//!
//! "Persistent" means that a clone is one reference count increment and that changing one of two clones copies only the
//! nodes on the changed paths. Nodes that nobody else holds are changed in place, so building a map from nothing copies
//! nothing. That is what makes the immutable snapshots of slots and buses cheap to replace.
//!
//! Node sizes: a leaf covers 2048 frames (8 MiB), an inner node has 512 children.

pub(crate) mod node;
pub(crate) mod tree;

use crate::addr::Gfn;
use crate::range::GfnRange;
use core::fmt;
use node::ValueLeaf;
use tree::Tree;

/// A map from [`Gfn`] to `V`.
///
/// `V` should be small, and `Option<V>` no larger than `V` (a `NonZeroU16`, a `NonZeroU32`): a leaf is 2048 of them.
/// It is typically the index of a record that is kept elsewhere.
#[derive(Clone)]
pub struct PageMap<V> {
    tree: Tree<ValueLeaf<V>>,
}

impl<V: Copy + Eq> PageMap<V> {
    /// A map with nothing in it. Allocates nothing.
    pub const fn new() -> Self {
        Self { tree: Tree::new() }
    }

    /// The value of a frame. Takes one dependent load per level, whatever the number of ranges.
    #[inline]
    pub fn get(&self, gfn: Gfn) -> Option<V> {
        self.tree.leaf(gfn.get())?.get(gfn.get())
    }

    /// Gives every frame of `range` the value `value`, whatever they had before.
    pub fn insert(&mut self, range: GfnRange, value: V) {
        self.tree.set(range, Some(&value));
    }

    /// Takes the values of every frame of `range` away; frames that have none are left alone.
    pub fn remove(&mut self, range: GfnRange) {
        self.tree.set(range, None);
    }

    /// Whether no frame has a value.
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// The first frame at or above `gfn` that has a value, and the value.
    pub fn next_at_or_after(&self, gfn: Gfn) -> Option<(Gfn, V)> {
        let found = Gfn::from_masked(self.tree.search(gfn.get(), &|value| value.is_some())?);
        Some((found, self.get(found)?))
    }

    /// The first frame of `range` that has a value, and the value: the answer to "is this range free?".
    pub fn first_in(&self, range: GfnRange) -> Option<(Gfn, V)> {
        self.next_at_or_after(range.start())
            .filter(|&(gfn, _)| range.contains(gfn))
    }

    /// The maximal runs of frames with equal values, in ascending order. Neighbouring inserted ranges with equal values
    /// are one run.
    pub fn runs(&self) -> Runs<'_, V> {
        Runs { map: self, next: 0 }
    }

    /// Bytes of heap that the nodes take. Nodes shared with other clones are counted in full.
    pub fn heap_bytes(&self) -> usize {
        self.tree.heap_bytes()
    }
}

impl<V: Copy + Eq> Default for PageMap<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: Copy + Eq + fmt::Debug> fmt::Debug for PageMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.runs()).finish()
    }
}

/// Iterator over the runs of a [`PageMap`]; see [`PageMap::runs`].
pub struct Runs<'a, V> {
    map: &'a PageMap<V>,
    next: u64,
}

impl<V: Copy + Eq> Iterator for Runs<'_, V> {
    type Item = (GfnRange, V);

    fn next(&mut self) -> Option<Self::Item> {
        let tree = &self.map.tree;
        let start = tree.search(self.next, &|value| value.is_some())?;
        let value = self.map.get(Gfn::from_masked(start))?;
        let end = tree
            .search(start, &|other| other != Some(&value))
            .unwrap_or(tree.covered());
        // The root may cover more than the 2^52 frames that exist.
        let end = end.min(Gfn::MAX.get() + 1);
        self.next = end;
        Some((GfnRange::new(Gfn::from_masked(start), end - start)?, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    fn gfn(raw: u64) -> Gfn {
        Gfn::new(raw).unwrap()
    }

    fn range(start: u64, pages: u64) -> GfnRange {
        GfnRange::new(gfn(start), pages).unwrap()
    }

    #[test]
    fn frames_inside_and_outside_a_range_are_told_apart() {
        let mut map = PageMap::new();
        map.insert(range(0xfff, 2), 7u32);
        assert_eq!(map.get(gfn(0xffe)), None);
        assert_eq!(map.get(gfn(0xfff)), Some(7));
        assert_eq!(map.get(gfn(0x1000)), Some(7));
        assert_eq!(map.get(gfn(0x1001)), None);
        assert_eq!(map.get(Gfn::MAX), None);
    }

    #[test]
    fn whole_address_space_is_a_few_nodes() {
        let mut map = PageMap::new();
        map.insert(range(0, 1 << 52), 1u8);
        assert_eq!(map.get(Gfn::MAX), Some(1));
        assert_eq!(map.runs().collect::<Vec<_>>(), vec![(range(0, 1 << 52), 1)]);
        assert!(map.heap_bytes() < 64 << 10);
    }

    #[test]
    fn clone_is_not_changed_by_the_original() {
        let mut map = PageMap::new();
        map.insert(range(0, 5000), 1u16);
        let old = map.clone();
        map.insert(range(100, 1), 2);
        map.remove(range(4000, 1000));
        assert_eq!(old.runs().collect::<Vec<_>>(), vec![(range(0, 5000), 1)]);
        assert_eq!(
            map.runs().collect::<Vec<_>>(),
            vec![(range(0, 100), 1), (range(100, 1), 2), (range(101, 3899), 1)]
        );
    }

    #[test]
    fn removing_everything_frees_every_node() {
        let mut map = PageMap::new();
        map.insert(range(3, 1), 1u32);
        map.insert(GfnRange::single(Gfn::MAX), 2);
        map.remove(GfnRange::single(Gfn::MAX));
        assert_eq!(map.get(gfn(3)), Some(1));
        map.remove(range(0, 1 << 52));
        assert!(map.is_empty());
        assert_eq!(map.heap_bytes(), 0);
    }

    #[test]
    fn next_skips_holes_and_first_in_stays_inside() {
        let mut map = PageMap::new();
        map.insert(range(0x10_0000, 4), 5u32);
        assert_eq!(map.next_at_or_after(gfn(0)), Some((gfn(0x10_0000), 5)));
        assert_eq!(map.next_at_or_after(gfn(0x10_0003)), Some((gfn(0x10_0003), 5)));
        assert_eq!(map.next_at_or_after(gfn(0x10_0004)), None);
        assert_eq!(map.first_in(range(0, 0x10_0000)), None);
        assert_eq!(map.first_in(range(0, 0x10_0001)), Some((gfn(0x10_0000), 5)));
    }
}
