//! The nodes of a [`Tree`](super::tree::Tree): what every node can do, leaves with plain values, inner nodes.

use alloc::sync::Arc;
use core::array;
use core::mem::size_of;

/// log2 of the frames in a leaf.
pub(crate) const LEAF_BITS: u32 = 11;
/// log2 of the children of an inner node.
const INNER_BITS: u32 = 9;

/// A subtree that covers `2^BITS` frames. Frame numbers are counted from its first frame; bits above are ignored.
pub(crate) trait Node: Clone {
    /// What a frame can have.
    type Value;
    /// What is at the bottom.
    type Leaf;
    const BITS: u32;

    /// A subtree in which every frame has the same value.
    fn uniform(value: Option<&Self::Value>) -> Self;

    /// The leaf of a frame.
    fn leaf(&self, frame: u64) -> &Self::Leaf;

    /// Sets frames `start..end`, of which there is at least one.
    fn set(&mut self, start: u64, end: u64, value: Option<&Self::Value>);

    /// The first frame at or above `from` whose value `wanted` accepts.
    fn search(&self, from: u64, wanted: &impl Fn(Option<&Self::Value>) -> bool) -> Option<u64>;

    /// Whether no frame has a value.
    fn is_none(&self) -> bool;

    /// Bytes of the nodes below.
    fn heap_bytes(&self) -> usize;
}

/// Bytes of a node in its `Arc`, and of everything below.
pub(crate) fn allocation_bytes<N: Node>(node: &N) -> usize {
    // An Arc's allocation starts with its two counters.
    2 * size_of::<usize>() + size_of::<N>() + node.heap_bytes()
}

/// The lowest `bits` bits of `number`, as an index.
#[inline]
pub(crate) fn index(number: u64, bits: u32) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "masked to at most 11 bits")]
    let index = (number & ((1 << bits) - 1)) as usize;
    index
}

/// The values of 2048 frames, in place.
#[derive(Clone)]
pub(crate) struct ValueLeaf<V>([Option<V>; 1 << LEAF_BITS]);

impl<V: Copy> ValueLeaf<V> {
    #[inline]
    pub(crate) fn get(&self, frame: u64) -> Option<V> {
        self.0[index(frame, LEAF_BITS)]
    }
}

impl<V: Copy> Node for ValueLeaf<V> {
    type Value = V;
    type Leaf = Self;
    const BITS: u32 = LEAF_BITS;

    fn uniform(value: Option<&V>) -> Self {
        Self([value.copied(); 1 << LEAF_BITS])
    }

    #[inline]
    fn leaf(&self, _frame: u64) -> &Self {
        self
    }

    fn set(&mut self, start: u64, end: u64, value: Option<&V>) {
        self.0[index(start, LEAF_BITS)..=index(end - 1, LEAF_BITS)].fill(value.copied());
    }

    fn search(&self, from: u64, wanted: &impl Fn(Option<&V>) -> bool) -> Option<u64> {
        (from..1 << LEAF_BITS).find(|&frame| wanted(self.0[index(frame, LEAF_BITS)].as_ref()))
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
pub(crate) struct Inner<N> {
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
    type Leaf = N::Leaf;
    const BITS: u32 = N::BITS + INNER_BITS;

    fn uniform(value: Option<&N::Value>) -> Self {
        let child = Arc::new(N::uniform(value));
        let none = value.is_none().then(|| Arc::clone(&child));
        Self {
            children: array::from_fn(|_| Arc::clone(&child)),
            none,
        }
    }

    #[inline]
    fn leaf(&self, frame: u64) -> &N::Leaf {
        self.children[index(frame >> N::BITS, INNER_BITS)].leaf(frame)
    }

    fn set(&mut self, start: u64, end: u64, value: Option<&N::Value>) {
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

    fn search(&self, from: u64, wanted: &impl Fn(Option<&N::Value>) -> bool) -> Option<u64> {
        // A child in which nothing was found need not be searched again under its next number.
        let mut searched: Option<&Arc<N>> = None;
        for number in from >> N::BITS..1 << INNER_BITS {
            let base = number << N::BITS;
            let child = &self.children[index(number, INNER_BITS)];
            if searched.is_some_and(|searched| Arc::ptr_eq(searched, child)) {
                continue;
            }
            if let Some(frame) = child.search(from.saturating_sub(base), wanted) {
                return Some(base + frame);
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
