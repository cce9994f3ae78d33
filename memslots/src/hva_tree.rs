//! [`HvaTree`]: which slots touch these host addresses? Ranges may overlap: two slots may show the same host memory.
//!
//! A persistent interval tree: a treap ordered by start address, each node knowing the highest end below it. Inserting
//! and removing copies the nodes on one path, about 2 log2(n) of them; everything else is shared with older snapshots.
//! Its job in KVM is done by an interval tree over `hva_node` (`kvm_for_each_memslot_in_hva_range`).

use crate::addr::Hva;
use crate::slot::{MemSlot, SlotId};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// The slots of one address space by host address.
#[derive(Clone, Default)]
pub(crate) struct HvaTree {
    root: Link,
}

type Link = Option<Arc<Node>>;

#[derive(Clone)]
struct Node {
    key: Key,
    end: Hva,
    /// The highest `end` in this subtree.
    max_end: Hva,
    left: Link,
    right: Link,
}

/// Start address, then id: unique, since an id is in the tree once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    start: Hva,
    id: SlotId,
}

impl Key {
    fn of(slot: &MemSlot) -> Self {
        Self {
            start: slot.hva(),
            id: slot.id(),
        }
    }

    /// The treap's heap order: a fixed scramble of the id (the finaliser of splitmix64), so that the shape depends only
    /// on what is in the tree, and no order of insertion makes it deep.
    fn priority(self) -> u64 {
        let mut x = u64::from(self.id.get()).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

impl HvaTree {
    pub(crate) fn insert(&mut self, slot: &MemSlot) {
        let key = Key::of(slot);
        let (left, right) = split(self.root.take(), key);
        let node = link(Node {
            key,
            end: slot.hva_end(),
            max_end: slot.hva_end(),
            left: None,
            right: None,
        });
        self.root = merge(merge(left, node), right);
    }

    pub(crate) fn remove(&mut self, slot: &MemSlot) {
        self.root = remove(self.root.take(), Key::of(slot));
    }

    /// The ids of the slots that share a byte with `start .. end`, by ascending start address.
    pub(crate) fn overlapping(&self, start: Hva, end: Hva) -> Vec<SlotId> {
        let mut found = Vec::new();
        collect(&self.root, start, end, &mut found);
        found
    }
}

/// Wraps a node whose children changed.
fn link(mut node: Node) -> Link {
    node.max_end = [&node.left, &node.right]
        .into_iter()
        .flatten()
        .map(|c| c.max_end)
        .fold(node.end, Hva::max);
    Some(Arc::new(node))
}

/// Takes a node for changing: in place if nobody else holds it, as a copy otherwise.
fn own(node: Arc<Node>) -> Node {
    Arc::try_unwrap(node).unwrap_or_else(|shared| (*shared).clone())
}

/// Splits into keys below `key` and keys above it.
fn split(tree: Link, key: Key) -> (Link, Link) {
    let Some(node) = tree else { return (None, None) };
    let mut node = own(node);
    if node.key < key {
        let (middle, right) = split(node.right.take(), key);
        node.right = middle;
        (link(node), right)
    } else {
        let (left, middle) = split(node.left.take(), key);
        node.left = middle;
        (left, link(node))
    }
}

/// Joins two trees, every key of `left` being below every key of `right`.
fn merge(left: Link, right: Link) -> Link {
    match (left, right) {
        (None, tree) | (tree, None) => tree,
        (Some(left), Some(right)) if left.key.priority() >= right.key.priority() => {
            let mut node = own(left);
            node.right = merge(node.right.take(), Some(right));
            link(node)
        }
        (Some(left), Some(right)) => {
            let mut node = own(right);
            node.left = merge(Some(left), node.left.take());
            link(node)
        }
    }
}

fn remove(tree: Link, key: Key) -> Link {
    let mut node = own(tree?);
    match key.cmp(&node.key) {
        core::cmp::Ordering::Equal => return merge(node.left, node.right),
        core::cmp::Ordering::Less => node.left = remove(node.left.take(), key),
        core::cmp::Ordering::Greater => node.right = remove(node.right.take(), key),
    }
    link(node)
}

fn collect(tree: &Link, start: Hva, end: Hva, found: &mut Vec<SlotId>) {
    let Some(node) = tree else { return };
    if node.max_end <= start {
        return;
    }
    collect(&node.left, start, end, found);
    if node.key.start < end {
        if node.end > start {
            found.push(node.key.id);
        }
        collect(&node.right, start, end, found);
    }
}
