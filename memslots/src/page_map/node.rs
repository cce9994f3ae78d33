//! The nodes of a [`PageMap`](super::PageMap): leaves with values, inner nodes with children.

use alloc::sync::Arc;
use core::array;
use core::mem::size_of;

/// log2 of the frames in a leaf.
const LEAF_BITS: u32 = 11;
/// log2 of the children of an inner node.
const INNER_BITS: u32 = 9;

/// A subtree that covers `2^BITS` frames. Frame numbers are counted from its first frame; bits above are ignored.
pub(super) trait Node: Clone {
    type Value: Copy + Eq;
    const BITS: u32;

    /// A subtree in which every frame has the same value.
    fn uniform(value: Option<Self::Value>) -> Self;

    fn value(&self, frame: u64) -> Option<Self::Value>;

    /// Sets frames `start..end`, of which there is at least one.
    fn set(&mut self, start: u64, end: u64, value: Option<Self::Value>);

    /// The first frame at or after `from` whose value `wanted` accepts.
    fn search(&self, from: u64, wanted: &impl Fn(Option<Self::Value>) -> bool) -> Option<(u64, Option<Self::Value>)>;

    /// Whether no frame has a value. May be `false` for an inner node that [`Node::set`] left without values only in
    /// the middle of an update.
    fn is_none(&self) -> bool;

    /// Bytes of the nodes below.
    fn heap_bytes(&self) -> usize;
}

/// [`Node::value`] of a root: frames that it does not cover have no value.
#[inline]
pub(super) fn get<N: Node>(root: &N, frame: u64) -> Option<N::Value> {
    if frame >> N::BITS != 0 {
        return None;
    }
    root.value(frame)
}

/// Bytes of a node in its `Arc`, and of everything below.
pub(super) fn allocation_bytes<N: Node>(node: &N) -> usize {
    // An Arc's allocation starts with its two counters.
    2 * size_of::<usize>() + size_of::<N>() + node.heap_bytes()
}

/// The lowest `bits` bits of `number`, as an index.
#[inline]
fn index(number: u64, bits: u32) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "masked to at most 11 bits")]
    let index = (number & ((1 << bits) - 1)) as usize;
    index
}

/// The values of 2048 frames.
#[derive(Clone)]
pub(super) struct Leaf<V>([Option<V>; 1 << LEAF_BITS]);

impl<V: Copy + Eq> Node for Leaf<V> {
    type Value = V;
    const BITS: u32 = LEAF_BITS;

    fn uniform(value: Option<V>) -> Self {
        Self([value; 1 << LEAF_BITS])
    }

    #[inline]
    fn value(&self, frame: u64) -> Option<V> {
        self.0[index(frame, LEAF_BITS)]
    }

    fn set(&mut self, start: u64, end: u64, value: Option<V>) {
        self.0[index(start, LEAF_BITS)..=index(end - 1, LEAF_BITS)].fill(value);
    }

    fn search(&self, from: u64, wanted: &impl Fn(Option<V>) -> bool) -> Option<(u64, Option<V>)> {
        (from..1 << LEAF_BITS)
            .map(|frame| (frame, self.value(frame)))
            .find(|&(_, value)| wanted(value))
    }

    fn is_none(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}

/// 512 children. Neighbouring children with one value everywhere are one shared node.
#[derive(Clone)]
pub(super) struct Inner<N> {
    children: [Arc<N>; 1 << INNER_BITS],
    /// What stands for a child without values, so that one node serves for all of them and is known when seen. Made
    /// when it is first needed.
    none: Option<Arc<N>>,
}

impl<N: Node> Inner<N> {
    /// A node with this first child and no other values.
    pub(super) fn above(first: Arc<N>) -> Self {
        let mut node = Self::uniform(None);
        node.children[0] = first;
        node
    }

    /// The first child, if none of the others has values.
    pub(super) fn only_first(&self) -> Option<Arc<N>> {
        self.children[1..]
            .iter()
            .all(|child| is_same(&self.none, child))
            .then(|| Arc::clone(&self.children[0]))
    }
}

impl<N: Node> Node for Inner<N> {
    type Value = N::Value;
    const BITS: u32 = N::BITS + INNER_BITS;

    fn uniform(value: Option<N::Value>) -> Self {
        let child = Arc::new(N::uniform(value));
        let none = value.is_none().then(|| Arc::clone(&child));
        Self {
            children: array::from_fn(|_| Arc::clone(&child)),
            none,
        }
    }

    #[inline]
    fn value(&self, frame: u64) -> Option<N::Value> {
        self.children[index(frame >> N::BITS, INNER_BITS)].value(frame)
    }

    fn set(&mut self, start: u64, end: u64, value: Option<N::Value>) {
        // What all children inside the range become. Made when it is first needed.
        let mut whole = value
            .is_none()
            .then(|| Arc::clone(self.none.get_or_insert_with(|| Arc::new(N::uniform(None)))));
        for number in start >> N::BITS..=(end - 1) >> N::BITS {
            let base = number << N::BITS;
            let (child_start, child_end) = (start.saturating_sub(base), (end - base).min(1 << N::BITS));
            let child = &mut self.children[index(number, INNER_BITS)];
            if child_start == 0 && child_end == 1 << N::BITS {
                *child = Arc::clone(whole.get_or_insert_with(|| Arc::new(N::uniform(value))));
                continue;
            }
            if value.is_none() && is_same(&whole, child) {
                continue;
            }
            Arc::make_mut(child).set(child_start, child_end, value);
            if value.is_none()
                && child.is_none()
                && let Some(none) = &whole
            {
                *child = Arc::clone(none);
            }
        }
    }

    fn search(&self, from: u64, wanted: &impl Fn(Option<N::Value>) -> bool) -> Option<(u64, Option<N::Value>)> {
        // A child in which nothing was found need not be searched again under its next number.
        let mut searched: Option<&Arc<N>> = None;
        for number in from >> N::BITS..1 << INNER_BITS {
            let base = number << N::BITS;
            let child = &self.children[index(number, INNER_BITS)];
            if searched.is_some_and(|searched| Arc::ptr_eq(searched, child)) {
                continue;
            }
            if let Some((frame, value)) = child.search(from.saturating_sub(base), wanted) {
                return Some((base + frame, value));
            }
            searched = (from <= base).then_some(child);
        }
        None
    }

    fn is_none(&self) -> bool {
        self.children.iter().all(|child| is_same(&self.none, child))
    }

    fn heap_bytes(&self) -> usize {
        let mut bytes = self.none.as_ref().map_or(0, |none| allocation_bytes(&**none));
        let mut last = None;
        for child in &self.children {
            if !is_same(&self.none, child) && !last.is_some_and(|last| Arc::ptr_eq(last, child)) {
                bytes += allocation_bytes(&**child);
            }
            last = Some(child);
        }
        bytes
    }
}

/// Whether `child` is the node `known`.
fn is_same<N>(known: &Option<Arc<N>>, child: &Arc<N>) -> bool {
    known.as_ref().is_some_and(|known| Arc::ptr_eq(known, child))
}
