//! [`PageMap`]: a persistent map from guest frames to small values, as fast as a flat table and far smaller.
//!
//! It is a radix tree like a page table, and like a page table it has "large pages": an entry of an upper level may say
//! *all the frames below have this value*. So one range costs a few entries however long it is. The height follows the
//! highest frame that is mapped: all of 4 GiB is two levels (an inner node and a leaf), all of 2 TiB three.
//!
//! "Persistent" means that a clone is one reference count increment and that changing one of two clones copies only the
//! nodes on the changed paths. Nodes that nobody else holds are changed in place, so building a map from nothing copies
//! nothing. That is what makes the immutable snapshots of slots and buses cheap to replace.
//!
//! Node sizes: a leaf covers 2048 frames (8 MiB), an inner node has 512 entries.

use crate::addr::Gfn;
use crate::range::GfnRange;
use alloc::sync::Arc;
use core::array;
use core::fmt;
use core::mem::size_of;

/// log2 of the frames in a leaf.
const LEAF_BITS: u32 = 11;
/// log2 of the entries in an inner node.
const INNER_BITS: u32 = 9;
const LEAF_LEN: usize = 1 << LEAF_BITS;
const INNER_LEN: usize = 1 << INNER_BITS;

/// A map from [`Gfn`] to `V`.
///
/// `V` should be small, and `Option<V>` no larger than `V` (a `NonZeroU16`, a `NonZeroU32`): a leaf is 2048 of them.
/// It is typically the index of a record that is kept elsewhere.
#[derive(Clone)]
pub struct PageMap<V> {
    root: Entry<V>,
    /// The root covers frames `0 .. 1 << bits`; always `LEAF_BITS` plus a multiple of `INNER_BITS`.
    bits: u32,
}

#[derive(Clone)]
enum Entry<V> {
    /// Every frame below has the same value (or none).
    Same(Option<V>),
    Inner(Arc<Inner<V>>),
    Leaf(Arc<Leaf<V>>),
}

#[derive(Clone)]
struct Inner<V>([Entry<V>; INNER_LEN]);

#[derive(Clone)]
struct Leaf<V>([Option<V>; LEAF_LEN]);

impl<V: Copy + Eq> PageMap<V> {
    /// A map with nothing in it. Allocates nothing.
    pub const fn new() -> Self {
        Self {
            root: Entry::Same(None),
            bits: LEAF_BITS,
        }
    }

    /// The value of a frame. Takes one dependent load per level, whatever the number of ranges.
    #[inline]
    pub fn get(&self, gfn: Gfn) -> Option<V> {
        let raw = gfn.get();
        if raw >> self.bits != 0 {
            return None;
        }
        let mut shift = self.bits;
        let mut entry = &self.root;
        loop {
            match entry {
                Entry::Leaf(leaf) => return leaf.0[index(raw, 0, LEAF_BITS)],
                Entry::Inner(inner) => {
                    shift -= INNER_BITS;
                    entry = &inner.0[index(raw, shift, INNER_BITS)];
                }
                Entry::Same(value) => return *value,
            }
        }
    }

    /// Gives every frame of `range` the value `value`, whatever they had before.
    pub fn insert(&mut self, range: GfnRange, value: V) {
        while range.end_raw() > 1 << self.bits {
            if !matches!(self.root, Entry::Same(None)) {
                let mut inner = Inner(array::from_fn(|_| Entry::Same(None)));
                core::mem::swap(&mut inner.0[0], &mut self.root);
                self.root = Entry::Inner(Arc::new(inner));
            }
            self.bits += INNER_BITS;
        }
        set(
            &mut self.root,
            self.bits,
            range.start().get(),
            range.end_raw(),
            Some(value),
        );
    }

    /// Takes the values of every frame of `range` away; frames that have none are left alone.
    pub fn remove(&mut self, range: GfnRange) {
        let end = range.end_raw().min(1 << self.bits);
        if range.start().get() >= end {
            return;
        }
        set(&mut self.root, self.bits, range.start().get(), end, None);
        self.lower_root();
    }

    /// Whether no frame has a value.
    pub fn is_empty(&self) -> bool {
        matches!(self.root, Entry::Same(None))
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
        heap_bytes(&self.root)
    }

    /// The first raw frame number at or above `from` whose value `wanted` accepts.
    fn search(&self, from: u64, wanted: &impl Fn(Option<V>) -> bool) -> Option<(u64, Option<V>)> {
        if from >> self.bits != 0 {
            return None;
        }
        search(&self.root, self.bits, from, wanted)
    }

    /// Removes root levels of which only the first entry is used.
    fn lower_root(&mut self) {
        while let Entry::Inner(inner) = &self.root {
            if !inner.0[1..].iter().all(|entry| matches!(entry, Entry::Same(None))) {
                return;
            }
            self.root = inner.0[0].clone();
            self.bits -= INNER_BITS;
        }
        if self.is_empty() {
            self.bits = LEAF_BITS;
        }
    }
}

/// The entry number of `raw` in a node of `2^bits` entries that cover `2^shift` frames each.
#[inline]
fn index(raw: u64, shift: u32, bits: u32) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "masked to at most 11 bits")]
    let index = ((raw >> shift) & ((1 << bits) - 1)) as usize;
    index
}

/// Sets frames `start..end`, counted from the first frame of `entry`, which covers `2^bits` frames.
fn set<V: Copy + Eq>(entry: &mut Entry<V>, bits: u32, start: u64, end: u64, value: Option<V>) {
    if start == 0 && end == 1 << bits {
        *entry = Entry::Same(value);
        return;
    }
    if let Entry::Same(old) = *entry {
        if old == value {
            return;
        }
        *entry = if bits == LEAF_BITS {
            Entry::Leaf(Arc::new(Leaf([old; LEAF_LEN])))
        } else {
            Entry::Inner(Arc::new(Inner(array::from_fn(|_| Entry::Same(old)))))
        };
    }
    let uniform = match entry {
        Entry::Same(_) => true,
        Entry::Leaf(leaf) => {
            let frames = &mut Arc::make_mut(leaf).0;
            let first = index(start, 0, LEAF_BITS);
            frames[first..=index(end - 1, 0, LEAF_BITS)].fill(value);
            frames.iter().all(|&frame| frame == value)
        }
        Entry::Inner(inner) => {
            let entries = &mut Arc::make_mut(inner).0;
            let child_bits = bits - INNER_BITS;
            for number in start >> child_bits..=(end - 1) >> child_bits {
                let base = number << child_bits;
                let child_end = (end - base).min(1 << child_bits);
                let child = &mut entries[index(number, 0, INNER_BITS)];
                set(child, child_bits, start.saturating_sub(base), child_end, value);
            }
            entries
                .iter()
                .all(|entry| matches!(entry, Entry::Same(frame) if *frame == value))
        }
    };
    if uniform {
        *entry = Entry::Same(value);
    }
}

/// The first frame at or after `from`, counted from the first frame of `entry`, whose value `wanted` accepts.
fn search<V: Copy>(
    entry: &Entry<V>,
    bits: u32,
    from: u64,
    wanted: &impl Fn(Option<V>) -> bool,
) -> Option<(u64, Option<V>)> {
    match entry {
        Entry::Same(value) => wanted(*value).then_some((from, *value)),
        Entry::Leaf(leaf) => (from..1 << LEAF_BITS)
            .map(|frame| (frame, leaf.0[index(frame, 0, LEAF_BITS)]))
            .find(|&(_, v)| wanted(v)),
        Entry::Inner(inner) => {
            let child_bits = bits - INNER_BITS;
            (from >> child_bits..1 << INNER_BITS).find_map(|number| {
                let base = number << child_bits;
                let child = &inner.0[index(number, 0, INNER_BITS)];
                let (frame, value) = search(child, child_bits, from.saturating_sub(base), wanted)?;
                Some((base + frame, value))
            })
        }
    }
}

fn heap_bytes<V>(entry: &Entry<V>) -> usize {
    // An Arc's allocation starts with its two counters.
    let counters = 2 * size_of::<usize>();
    match entry {
        Entry::Same(_) => 0,
        Entry::Leaf(_) => counters + size_of::<Leaf<V>>(),
        Entry::Inner(inner) => counters + size_of::<Inner<V>>() + inner.0.iter().map(heap_bytes).sum::<usize>(),
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
            .map_or(1 << self.map.bits, |(end, _)| end);
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
    fn whole_address_space_is_one_entry_per_level() {
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
        assert_eq!(map.bits, LEAF_BITS);
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
