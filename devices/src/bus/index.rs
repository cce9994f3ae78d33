//! From an address to the region that owns it.
//!
//! A region is cut into naturally aligned blocks of a few sizes (a page, 16 pages, 256 pages, …; for ports 1, 16, 256,
//! …), much as an MMU with several page sizes would map it. The blocks of one size are a [`Class`]: an open-addressed
//! hash table of region numbers, as small as the number of blocks, whatever the distance between them.
//!
//! The index is immutable, so the hash function is chosen to fit its keys: the plain low bits if these tell the blocks
//! apart (devices side by side, the usual layout), else the multiplier with the fewest collisions. A block that is in its
//! home bucket and belongs to one region only can be resolved without a search: that is what a cursor remembers. Blocks
//! that several small regions share go to a sorted list. [`Index::search`] finds everything.

use super::address::BusAddress;
use super::range::BusRange;
use super::region::Region;
use crate::access::IoSize;

/// log2 of the ratio of one class's block size to the next smaller one's. Smaller means fewer blocks for an odd-sized
/// region, larger means fewer tables to look into.
const CLASS_STEP: u32 = 4;
/// log2 of the largest block.
const MAX_BLOCK_SHIFT: u32 = 60;
/// `owners` entry of an unused bucket.
const UNUSED: u32 = u32::MAX;
/// `owners` bit that says the rest is the number of a crowd, not of a region.
const CROWD: u32 = 1 << 31;

/// The blocks of one size.
pub(super) struct Class {
    block_shift: u32,
    hash: Hash,
    /// How far a block may be from its home bucket.
    reach: usize,
    /// For each bucket the number of its region, or `CROWD` and the number of a crowd, or `UNUSED`.
    owners: Box<[u32]>,
}

impl Class {
    /// The function that says in which bucket a block is at home.
    pub(super) const fn hash(&self) -> Hash {
        self.hash
    }

    /// For each bucket the number of the region in it, if it is a single one.
    pub(super) fn owners(&self) -> impl Iterator<Item = Option<u32>> {
        self.owners.iter().map(|&owner| (owner & CROWD == 0).then_some(owner))
    }
}

/// A multiplicative hash: `key * multiplier` and of that the top bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hash {
    multiplier: u64,
    /// 64 - log2(number of buckets), in `1..=63`.
    down: u32,
}

impl Hash {
    /// The home bucket of block `key`.
    #[inline]
    pub(super) fn home(self, key: u64) -> usize {
        // At most 63 bits are left, and a table has far fewer.
        #[expect(clippy::cast_possible_truncation, reason = "fits the table size, which fits usize")]
        let home = (key.wrapping_mul(self.multiplier) >> self.down) as usize;
        home
    }

    const fn buckets(self) -> usize {
        1 << (64 - self.down)
    }
}

/// The whole index of one bus snapshot.
pub(super) struct Index {
    /// Ascending block size; the first is that of the smallest blocks, even if it has none.
    classes: Box<[Class]>,
    /// Region numbers, ascending by address, of each block that several regions share.
    crowds: Box<[Box<[u32]>]>,
}

impl Index {
    /// Builds the index of `regions`, which are ascending by address and don't overlap.
    pub(super) fn build<A: BusAddress>(regions: &[Region<A>]) -> Self {
        let mut blocks: Vec<Vec<(u64, u32)>> = vec![Vec::new()];
        for (number, region) in (0u32..CROWD - 1).zip(regions) {
            cut(region.range, |shift, block| {
                let class = ((shift - A::BLOCK_SHIFT) / CLASS_STEP) as usize;
                if blocks.len() <= class {
                    blocks.resize_with(class + 1, Vec::new);
                }
                blocks[class].push((block, number));
            });
        }
        let mut crowds = Vec::new();
        let mut classes = Vec::new();
        for (shift, blocks) in (A::BLOCK_SHIFT..).step_by(CLASS_STEP as usize).zip(blocks) {
            if shift == A::BLOCK_SHIFT || !blocks.is_empty() {
                classes.push(build_class(shift, &blocks, &mut crowds));
            }
        }
        Self {
            classes: classes.into(),
            crowds: crowds.into(),
        }
    }

    /// The class of the smallest blocks.
    pub(super) fn first(&self) -> &Class {
        &self.classes[0]
    }

    /// The number of the region that an access of `size` at `raw` lies in, looking everywhere it can be.
    pub(super) fn search<A: BusAddress>(&self, regions: &[Region<A>], raw: u64, size: IoSize) -> Option<u32> {
        for class in &self.classes {
            let mask = class.owners.len() - 1;
            let home = class.hash.home(raw >> class.block_shift);
            for step in 0..=class.reach {
                let at = (home + step) & mask;
                let owner = class.owners[at];
                if owner == UNUSED {
                    break;
                }
                if owner & CROWD != 0 {
                    let crowd = &self.crowds[(owner & !CROWD) as usize];
                    let after = crowd.partition_point(|&number| regions[number as usize].range.start().raw() <= raw);
                    let candidate = after.checked_sub(1).map(|last| crowd[last]);
                    if let Some(number) = candidate
                        && regions[number as usize].range.holds(raw, size)
                    {
                        return Some(number);
                    }
                } else if regions[owner as usize].range.holds(raw, size) {
                    return Some(owner);
                }
            }
        }
        None
    }

    /// Bytes of heap memory in use, for tests that hold the index to its size.
    #[cfg(test)]
    fn heap_bytes(&self) -> usize {
        self.classes.iter().map(|class| class.owners.len() * 4).sum::<usize>()
            + self.crowds.iter().map(|crowd| crowd.len() * 4).sum::<usize>()
    }
}

/// Cuts a range into the largest aligned blocks of the permitted sizes; the ends may fill a smallest block partly.
fn cut<A: BusAddress>(range: BusRange<A>, mut block: impl FnMut(u32, u64)) {
    let last = range.last_raw();
    let mut at = range.start().raw();
    loop {
        let mut shift = A::BLOCK_SHIFT;
        while shift + CLASS_STEP <= MAX_BLOCK_SHIFT {
            let span = (1u64 << (shift + CLASS_STEP)) - 1;
            if at & span != 0 || last - at < span {
                break;
            }
            shift += CLASS_STEP;
        }
        block(shift, at >> shift);
        match (at | ((1 << shift) - 1)).checked_add(1) {
            Some(next) if next <= last => at = next,
            _ => return,
        }
    }
}

/// Builds one class from (block, region number) pairs, ascending.
fn build_class(block_shift: u32, blocks: &[(u64, u32)], crowds: &mut Vec<Box<[u32]>>) -> Class {
    let groups: Vec<&[(u64, u32)]> = blocks.chunk_by(|a, b| a.0 == b.0).collect();
    let keys: Vec<u64> = groups.iter().map(|group| group[0].0).collect();
    let hash = choose_hash(&keys);
    let mut class = Class {
        block_shift,
        hash,
        reach: 0,
        owners: vec![UNUSED; hash.buckets()].into(),
    };
    // Blocks whose home is free first: nobody who could be found directly is pushed away by somebody who can't.
    let mut displaced = Vec::new();
    for (&key, group) in keys.iter().zip(groups) {
        let home = hash.home(key);
        if class.owners[home] == UNUSED {
            class.put(home, group, crowds);
        } else {
            displaced.push((home, group));
        }
    }
    for (home, group) in displaced {
        let mut step = 1;
        let mask = class.owners.len() - 1;
        while class.owners[(home + step) & mask] != UNUSED {
            step += 1;
        }
        class.reach = class.reach.max(step);
        class.put((home + step) & mask, group, crowds);
    }
    class
}

impl Class {
    fn put(&mut self, at: usize, group: &[(u64, u32)], crowds: &mut Vec<Box<[u32]>>) {
        self.owners[at] = if let [(_, number)] = group {
            *number
        } else {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "no more crowds than regions, whose numbers are u32"
            )]
            let crowd = crowds.len() as u32;
            crowds.push(group.iter().map(|&(_, number)| number).collect());
            CROWD | crowd
        };
    }
}

/// The hash function with the fewest collisions of `keys` (distinct) among a fixed set of candidates.
fn choose_hash(keys: &[u64]) -> Hash {
    /// 2^64 divided by the golden ratio; its odd multiples are multipliers with well-mixed bits.
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    /// Up to this many blocks a larger table and more attempts cost next to nothing, and find a perfect hash nearly
    /// always.
    const FEW: usize = 64;

    let least_bits = keys.len().next_power_of_two().trailing_zeros().max(1);
    let (spare_bits, attempts) = if keys.len() <= FEW { (3, 64) } else { (1, 4) };
    let first = keys.first().copied().unwrap_or(0);
    let differing = keys.iter().fold(0, |bits, key| bits | (key ^ first));
    let common_low_bits = differing.trailing_zeros() % 64;

    let mut best: Option<(usize, Hash)> = None;
    for bits in least_bits..=least_bits + spare_bits {
        let down = 64 - bits;
        let low_bits = down.checked_sub(common_low_bits).map(|shift| 1 << shift);
        for multiplier in low_bits
            .into_iter()
            .chain((0..attempts).map(|i| GOLDEN.wrapping_mul(2 * i + 1)))
        {
            let hash = Hash { multiplier, down };
            let collisions = count_collisions(keys, hash);
            if best.is_none_or(|(fewest, _)| collisions < fewest) {
                best = Some((collisions, hash));
            }
            if collisions == 0 {
                return hash;
            }
        }
    }
    best.map_or(
        Hash {
            multiplier: GOLDEN,
            down: 63,
        },
        |(_, hash)| hash,
    )
}

fn count_collisions(keys: &[u64], hash: Hash) -> usize {
    let mut taken = vec![false; hash.buckets()];
    keys.iter()
        .filter(|&&key| std::mem::replace(&mut taken[hash.home(key)], true))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{Port, RegionId};
    use crate::device::Device;
    use crate::testing::Constant;
    use std::sync::Arc;
    use umbra_memslots::Gpa;

    fn regions<A: BusAddress>(ranges: &[(u64, u64)]) -> Vec<Region<A>> {
        (0..)
            .zip(ranges)
            .map(|(id, &(start, len))| {
                let device: Arc<dyn Device> = Arc::new(Constant(id.into()));
                Region {
                    id: RegionId(id),
                    name: "test".into(),
                    range: BusRange::new(A::from_raw(start).unwrap(), len).unwrap(),
                    target: Arc::clone(&device),
                    device,
                }
            })
            .collect()
    }

    fn blocks_of<A: BusAddress>(start: u64, len: u64) -> Vec<(u32, u64)> {
        let mut blocks = Vec::new();
        cut(
            BusRange::new(A::from_raw(start).unwrap(), len).unwrap(),
            |shift, block| blocks.push((shift, block)),
        );
        blocks
    }

    #[test]
    fn cut_uses_the_largest_aligned_blocks() {
        assert_eq!(blocks_of::<Gpa>(0xfec0_0000, 0x1000), [(12, 0xfec00)]);
        assert_eq!(
            blocks_of::<Gpa>(0xe000_0000, 0x1000_0000),
            [(28, 0xe)],
            "256 MiB of ECAM are one block"
        );
        assert_eq!(blocks_of::<Gpa>(0xf000, 0x1_2000), [(12, 0xf), (16, 1), (12, 0x20)]);
        assert_eq!(blocks_of::<Port>(0x3f8, 8).len(), 8);
        assert_eq!(blocks_of::<Port>(0xc000, 0x40).len(), 4);
        assert_eq!(blocks_of::<Gpa>(u64::MAX - 1, 2), [(12, u64::MAX >> 12)]);
        assert_eq!(
            blocks_of::<Gpa>(0, u64::MAX).len(),
            15 + 15 * 12 + 1,
            "the last byte is missing at every size"
        );
    }

    /// The region that is at home in the bucket of `raw`.
    fn at_home<A: BusAddress>(index: &Index, raw: u64) -> Option<u32> {
        let first = index.first();
        first.owners().nth(first.hash().home(raw >> A::BLOCK_SHIFT)).unwrap()
    }

    #[test]
    fn devices_side_by_side_are_all_at_home_in_a_full_table() {
        let ranges: Vec<_> = (0..4096).map(|i| (0xd000_0000 + i * 0x1000, 0x1000)).collect();
        let regions = regions::<Gpa>(&ranges);
        let index = Index::build(&regions);
        assert_eq!(index.first().owners().count(), 4096);
        for (number, &(start, _)) in (0..).zip(&ranges) {
            assert_eq!(at_home::<Gpa>(&index, start + 8), Some(number));
        }
    }

    #[test]
    fn wide_strides_and_odd_places_of_few_devices_are_all_at_home() {
        for mut ranges in [
            (0..64).map(|i| (i << 30, 0x1000)).collect::<Vec<_>>(),
            (0..64).map(|i| (i * 0x12_3000, 0x1000)).collect(),
            (1..40u64).map(|i| ((i * i * i * 0x7_1000) & !0xfff, 0x800)).collect(),
        ] {
            ranges.sort_unstable();
            let regions = regions::<Gpa>(&ranges);
            let index = Index::build(&regions);
            for (number, &(start, _)) in (0..).zip(&ranges) {
                assert_eq!(at_home::<Gpa>(&index, start), Some(number), "{start:#x}");
            }
        }
    }

    #[test]
    fn search_finds_crowds_collisions_and_other_classes() {
        let mut ranges = vec![
            (0x1000, 0x10),
            (0x1010, 0x30),
            (0x1ff0, 0x20),
            (0x3000, 0x11_d000),
            (1 << 40, 1 << 40),
        ];
        ranges.extend((1..3000u64).map(|i| ((1 << 50) + ((i * i * 0x9e37) << 12), 0x1000)));
        let regions = regions::<Gpa>(&ranges);
        let index = Index::build(&regions);
        for (number, &(start, len)) in (0u32..).zip(&ranges) {
            for raw in [start, start + len / 2, start + len - 1] {
                assert_eq!(index.search(&regions, raw, IoSize::B1), Some(number), "{raw:#x}");
            }
            assert_eq!(
                index.search(&regions, start + len - 1, IoSize::B2),
                None,
                "past the end of {start:#x}"
            );
        }
        assert_eq!(index.search(&regions, 0x1040, IoSize::B1), None);
        assert_eq!(index.search(&regions, 0x2800, IoSize::B1), None);
    }

    #[test]
    fn small_machine_needs_little_memory() {
        let ports = regions::<Port>(&[
            (0x60, 1),
            (0x64, 1),
            (0x70, 2),
            (0xf4, 4),
            (0x3f8, 8),
            (0x600, 8),
            (0xcf9, 1),
        ]);
        assert!(
            Index::build(&ports).heap_bytes() < 10 << 10,
            "{}",
            Index::build(&ports).heap_bytes()
        );
        let mmio = regions::<Gpa>(&[(0xd000_0000, 0x1000), (0xd000_1000, 0x1000), (0xe000_0000, 0x1000_0000)]);
        assert!(Index::build(&mmio).heap_bytes() < 512);
    }
}
