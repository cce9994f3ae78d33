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
//! Node sizes: a leaf covers 2048 frames (8 MiB), an inner node has 512 children ([`node`]).

mod node;

use crate::addr::Gfn;
use crate::range::GfnRange;
use alloc::sync::Arc;
use core::fmt;
use core::mem;
use node::{Inner, Leaf, Node};

type Level2<V> = Inner<Leaf<V>>;
type Level3<V> = Inner<Level2<V>>;
type Level4<V> = Inner<Level3<V>>;
type Level5<V> = Inner<Level4<V>>;
type Level6<V> = Inner<Level5<V>>;

/// A map from [`Gfn`] to `V`.
///
/// `V` should be small, and `Option<V>` no larger than `V` (a `NonZeroU16`, a `NonZeroU32`): a leaf is 2048 of them.
/// It is typically the index of a record that is kept elsewhere.
#[derive(Clone)]
pub struct PageMap<V> {
    root: Root<V>,
}

/// The top of the tree, by height. Each level is its own type, so a lookup is straight-line code once the height is
/// known.
#[derive(Clone)]
enum Root<V> {
    Empty,
    L1(Arc<Leaf<V>>),
    L2(Arc<Level2<V>>),
    L3(Arc<Level3<V>>),
    L4(Arc<Level4<V>>),
    L5(Arc<Level5<V>>),
    L6(Arc<Level6<V>>),
}

/// Evaluates `$body` with the root node, whatever its type, or `$empty`.
macro_rules! with_root {
    ($root:expr, $node:ident => $body:expr, $empty:expr) => {
        match $root {
            Root::Empty => $empty,
            Root::L1($node) => $body,
            Root::L2($node) => $body,
            Root::L3($node) => $body,
            Root::L4($node) => $body,
            Root::L5($node) => $body,
            Root::L6($node) => $body,
        }
    };
}

impl<V: Copy + Eq> PageMap<V> {
    /// A map with nothing in it. Allocates nothing.
    pub const fn new() -> Self {
        Self { root: Root::Empty }
    }

    /// The value of a frame. Takes one dependent load per level, whatever the number of ranges.
    #[inline]
    pub fn get(&self, gfn: Gfn) -> Option<V> {
        let raw = gfn.get();
        // The common heights first; the others are for machines with terabytes.
        match &self.root {
            Root::L2(node) => node::get(&**node, raw),
            Root::L3(node) => node::get(&**node, raw),
            Root::L1(node) => node::get(&**node, raw),
            other => with_root!(other, node => node::get(&**node, raw), None),
        }
    }

    /// Gives every frame of `range` the value `value`, whatever they had before.
    pub fn insert(&mut self, range: GfnRange, value: V) {
        while range.end_raw() > self.covered() {
            self.raise();
        }
        with_root!(&mut self.root, root => {
            Arc::make_mut(root).set(range.start().get(), range.end_raw(), Some(value));
        }, {});
    }

    /// Takes the values of every frame of `range` away; frames that have none are left alone.
    pub fn remove(&mut self, range: GfnRange) {
        let end = range.end_raw().min(self.covered());
        if range.start().get() >= end {
            return;
        }
        with_root!(&mut self.root, root => Arc::make_mut(root).set(range.start().get(), end, None), {});
        self.lower();
    }

    /// Whether no frame has a value.
    pub fn is_empty(&self) -> bool {
        matches!(self.root, Root::Empty)
    }

    /// The first frame at or above `gfn` that has a value, and the value.
    pub fn next_at_or_after(&self, gfn: Gfn) -> Option<(Gfn, V)> {
        let (raw, value) = self.search(gfn.get(), &|value| value.is_some())?;
        Some((Gfn::from_masked(raw), value?))
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
        with_root!(&self.root, node => node::allocation_bytes(&**node), 0)
    }

    /// Frames below this number are covered by the root.
    fn covered(&self) -> u64 {
        fn frames<N: Node>(_: &Arc<N>) -> u64 {
            1 << N::BITS
        }
        with_root!(&self.root, node => frames(node), 0)
    }

    /// The first raw frame number at or above `from` whose value `wanted` accepts.
    fn search(&self, from: u64, wanted: &impl Fn(Option<V>) -> bool) -> Option<(u64, Option<V>)> {
        if from >= self.covered() {
            return None;
        }
        with_root!(&self.root, node => node.search(from, wanted), None)
    }

    /// Adds a level on top.
    fn raise(&mut self) {
        self.root = match mem::replace(&mut self.root, Root::Empty) {
            Root::Empty => Root::L1(Arc::new(Leaf::uniform(None))),
            Root::L1(node) => Root::L2(Arc::new(Inner::above(node))),
            Root::L2(node) => Root::L3(Arc::new(Inner::above(node))),
            Root::L3(node) => Root::L4(Arc::new(Inner::above(node))),
            Root::L4(node) => Root::L5(Arc::new(Inner::above(node))),
            Root::L5(node) => Root::L6(Arc::new(Inner::above(node))),
            // Covers 2^56 frames, more than there are: never asked for.
            Root::L6(node) => Root::L6(node),
        };
    }

    /// Removes levels on top of which only the first child is used.
    fn lower(&mut self) {
        loop {
            let lower = match &self.root {
                Root::Empty => None,
                Root::L1(leaf) => leaf.is_none().then_some(Root::Empty),
                Root::L2(node) => node.only_first().map(Root::L1),
                Root::L3(node) => node.only_first().map(Root::L2),
                Root::L4(node) => node.only_first().map(Root::L3),
                Root::L5(node) => node.only_first().map(Root::L4),
                Root::L6(node) => node.only_first().map(Root::L5),
            };
            let Some(lower) = lower else { return };
            self.root = lower;
        }
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
        let (start, value) = self.map.search(self.next, &|value| value.is_some())?;
        let value = value?;
        let end = self
            .map
            .search(start, &|other| other != Some(value))
            .map_or(self.map.covered(), |(end, _)| end);
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
