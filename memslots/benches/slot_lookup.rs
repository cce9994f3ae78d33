//! Which slot is this frame in? Our reader against the limit and against vm-memory.
//!
//! Benchmarks are named `slot_lookup/<pattern>/<slots>/<who>`; one iteration is 65536 lookups.
//! * Patterns: `random` frames of random slots, or `local`: 32 frames of one slot before going to another. In
//!   `…_dependent` each lookup needs the result of the one before (latency), else they can overlap (throughput).
//! * `flat`: the limit, a table with one entry per page and an array of slots: no structure can do less.
//! * `umbra`: [`SlotReader::find`], with the check for a newer snapshot. `umbra_tree`: [`Memslots::find`] on a snapshot.
//! * `vm_memory`: `find_region` of vm-memory's own collection.
//!
//! Every lookup reads a field of the slot it found. Slots are 16 pages long and 16 pages apart.
//! `slot_update/<slots>/umbra` is one creation plus one deletion with that many slots there.
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;
use umbra_memslots::{
    AddressSpaceId, Gfn, Gpa, Hva, PAGE_SHIFT, PAGE_SIZE, SlotFlags, SlotId, SlotLimits, SlotRequest, SlotTable,
};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionCollection, GuestUsize,
};

const COUNTS: [u32; 6] = [1, 8, 64, 512, 4096, 32764];
const LOOKUPS: usize = 1 << 16;
/// Pages of a slot, and of the hole behind it.
const SLOT_PAGES: u64 = 16;
const LOCAL_RUN: usize = 32;

/// Frame at which a slot starts.
fn start(slot: u32) -> u64 {
    u64::from(slot) * SLOT_PAGES * 2
}

fn host(slot: u32) -> u64 {
    0x10_0000_0000 + u64::from(slot) * SLOT_PAGES * PAGE_SIZE
}

fn request(slot: u32) -> SlotRequest {
    let at = Gpa::new(start(slot) << PAGE_SHIFT);
    SlotRequest::set(
        slot,
        SlotFlags::empty(),
        at,
        SLOT_PAGES * PAGE_SIZE,
        Hva::new(host(slot)),
    )
}

fn table(slots: u32) -> SlotTable {
    SlotTable::with_slots(SlotLimits::X86_64, (0..slots).map(|slot| (request(slot), None))).unwrap()
}

/// xorshift64*: the same frames in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let product = u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * u128::from(bound);
        u64::try_from(product >> 64).unwrap()
    }
}

/// Frames to look up: `run` random frames of one slot, then of another.
fn frames(slots: u32, run: usize) -> Vec<u64> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut slot = 0;
    (0..LOOKUPS)
        .map(|lookup| {
            if lookup % run == 0 {
                slot = u32::try_from(random.below(u64::from(slots))).unwrap();
            }
            start(slot) + random.below(SLOT_PAGES)
        })
        .collect()
}

/// All lookups; `find` returns the slot's host address.
#[inline(always)]
fn run<const DEPENDENT: bool>(frames: &[u64], mut find: impl FnMut(u64) -> u64) -> u64 {
    // Nothing, but the compiler cannot know.
    let nothing = if DEPENDENT { black_box(0) } else { 0 };
    let (mut sum, mut last) = (0u64, 0);
    for &frame in frames {
        last = find(frame ^ (last & nothing));
        sum = sum.wrapping_add(last);
    }
    sum
}

/// The limit: one table entry per page, one array of slots.
struct Flat {
    pages: Vec<u16>,
    slots: Vec<FlatSlot>,
}

#[repr(align(64))]
struct FlatSlot {
    hva: u64,
}

impl Flat {
    fn new(slots: u32) -> Self {
        let mut pages = vec![0; usize::try_from(start(slots)).unwrap()];
        for slot in 0..slots {
            let first = usize::try_from(start(slot)).unwrap();
            pages[first..first + 16].fill(u16::try_from(slot + 1).unwrap());
        }
        Self {
            pages,
            slots: (0..slots).map(|slot| FlatSlot { hva: host(slot) }).collect(),
        }
    }

    #[inline(always)]
    fn find(&self, frame: u64) -> Option<&FlatSlot> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "checked by `get`, and no table has 2^32 pages here"
        )]
        let entry = *self.pages.get(frame as usize)?;
        self.slots.get(usize::from(entry).wrapping_sub(1))
    }
}

/// A region without memory: `find_region` looks at no more than this.
struct Region {
    start: u64,
    hva: u64,
}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> GuestUsize {
        SLOT_PAGES * PAGE_SIZE
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.start)
    }

    fn bitmap(&self) {}
}

impl GuestMemoryRegionBytes for Region {}

fn regions(slots: u32) -> GuestRegionCollection<Region> {
    let region = |slot| Region {
        start: start(slot) << PAGE_SHIFT,
        hva: host(slot),
    };
    GuestRegionCollection::from_regions((0..slots).map(region).collect()).unwrap()
}

fn lookup<const DEPENDENT: bool>(criterion: &mut Criterion, pattern: &str, run_length: usize) {
    for slots in COUNTS {
        let frames = frames(slots, run_length);
        let mut group = criterion.benchmark_group(format!("slot_lookup/{pattern}/{slots}"));
        group.throughput(Throughput::Elements(LOOKUPS as u64));

        let flat = Flat::new(slots);
        group.bench_function("flat", |bencher| {
            bencher.iter(|| run::<DEPENDENT>(&frames, |frame| flat.find(frame).map_or(0, |slot| slot.hva)));
        });
        let table = table(slots);
        let mut reader = table.reader(AddressSpaceId::Normal).unwrap();
        group.bench_function("umbra", |bencher| {
            bencher.iter(|| {
                run::<DEPENDENT>(&frames, |frame| {
                    reader.find(Gfn::from_masked(frame)).map_or(0, |slot| slot.hva().get())
                })
            });
        });
        let snapshot = table.slots(AddressSpaceId::Normal);
        group.bench_function("umbra_tree", |bencher| {
            bencher.iter(|| {
                run::<DEPENDENT>(&frames, |frame| {
                    snapshot
                        .find(Gfn::from_masked(frame))
                        .map_or(0, |slot| slot.hva().get())
                })
            });
        });
        let regions = regions(slots);
        group.bench_function("vm_memory", |bencher| {
            bencher.iter(|| {
                run::<DEPENDENT>(&frames, |frame| {
                    regions
                        .find_region(GuestAddress(frame << PAGE_SHIFT))
                        .map_or(0, |region| region.hva)
                })
            });
        });
        group.finish();
    }
}

fn lookups(criterion: &mut Criterion) {
    lookup::<false>(criterion, "random", 1);
    lookup::<true>(criterion, "random_dependent", 1);
    lookup::<false>(criterion, "local", LOCAL_RUN);
    lookup::<true>(criterion, "local_dependent", LOCAL_RUN);
}

fn updates(criterion: &mut Criterion) {
    for slots in COUNTS {
        // One slot in the middle goes and comes back.
        let mut table = table(slots);
        let slot = slots / 2;
        criterion
            .benchmark_group(format!("slot_update/{slots}"))
            .bench_function("umbra", |bencher| {
                bencher.iter(|| {
                    table
                        .remove(AddressSpaceId::Normal, SlotId::new(u16::try_from(slot).unwrap()))
                        .unwrap();
                    table.apply(request(slot)).unwrap();
                });
            });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = lookups, updates
}
criterion_main!(benches);
