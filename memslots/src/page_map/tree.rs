//! [`Tree`]: the radix tree over any kind of leaf, whatever its height.

use super::node::{Inner, Node, allocation_bytes};
use crate::range::GfnRange;
use alloc::sync::Arc;
use core::mem;

type Level2<L> = Inner<L>;
type Level3<L> = Inner<Level2<L>>;
type Level4<L> = Inner<Level3<L>>;
type Level5<L> = Inner<Level4<L>>;
type Level6<L> = Inner<Level5<L>>;

/// A persistent radix tree with leaves of type `L`.
#[derive(Clone)]
pub(crate) struct Tree<L> {
    root: Root<L>,
}

/// The top of the tree, by height. Each level is its own type, so a lookup is straight-line code once the height is
/// known.
#[derive(Clone)]
enum Root<L> {
    Empty,
    L1(Arc<L>),
    L2(Arc<Level2<L>>),
    L3(Arc<Level3<L>>),
    L4(Arc<Level4<L>>),
    L5(Arc<Level5<L>>),
    L6(Arc<Level6<L>>),
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

impl<L> Tree<L> {
    /// A tree without nodes.
    pub(crate) const fn new() -> Self {
        Self { root: Root::Empty }
    }

    /// Whether no frame has a value.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self.root, Root::Empty)
    }
}

impl<L: Node<Leaf = L>> Tree<L> {
    /// The leaf of a frame; `None` for frames past the end.
    #[inline]
    pub(crate) fn leaf(&self, frame: u64) -> Option<&L> {
        // Up to 4 GiB and up to 2 TiB. The other heights are out of line so that these two are tests, not a jump table.
        match &self.root {
            Root::L2(node) => leaf_below(&**node, frame),
            Root::L3(node) => leaf_below(&**node, frame),
            _ => self.leaf_of_other_heights(frame),
        }
    }

    #[inline(never)]
    fn leaf_of_other_heights(&self, frame: u64) -> Option<&L> {
        with_root!(&self.root, node => leaf_below(&**node, frame), None)
    }

    /// Sets every frame of `range`.
    pub(crate) fn set(&mut self, range: GfnRange, value: Option<&L::Value>) {
        let start = range.start().get();
        let mut end = range.end_raw();
        if value.is_some() {
            while end > self.covered() {
                self.raise();
            }
        } else {
            end = end.min(self.covered());
            if start >= end {
                return;
            }
        }
        with_root!(&mut self.root, root => Arc::make_mut(root).set(start, end, value), {});
        if value.is_none() {
            self.lower();
        }
    }

    /// The first frame at or above `from` whose value `wanted` accepts.
    pub(crate) fn search(&self, from: u64, wanted: &impl Fn(Option<&L::Value>) -> bool) -> Option<u64> {
        if from >= self.covered() {
            return None;
        }
        with_root!(&self.root, node => node.search(from, wanted), None)
    }

    /// Bytes of all nodes. Nodes shared with other trees are counted in full.
    pub(crate) fn heap_bytes(&self) -> usize {
        with_root!(&self.root, node => allocation_bytes(&**node), 0)
    }

    /// Frames below this number are covered by the root.
    pub(crate) fn covered(&self) -> u64 {
        fn frames<N: Node>(_: &Arc<N>) -> u64 {
            1 << N::BITS
        }
        with_root!(&self.root, node => frames(node), 0)
    }

    /// Adds a level on top.
    fn raise(&mut self) {
        self.root = match mem::replace(&mut self.root, Root::Empty) {
            Root::Empty => Root::L1(Arc::new(L::uniform(None))),
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

/// The leaf of a frame below a root; `None` for frames that the root does not cover.
#[inline]
fn leaf_below<N: Node>(root: &N, frame: u64) -> Option<&N::Leaf> {
    if frame >> N::BITS != 0 {
        return None;
    }
    Some(root.leaf(frame))
}
