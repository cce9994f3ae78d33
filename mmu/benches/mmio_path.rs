//! What a repeated MMIO access costs before any device is asked: recognised by the vCPU's cache, by the MMIO SPTE, or,
//! with caching off, by a search of the memslots. `mmio_path/<slots>/<how>`.
//!
//! `caching_off` searches Umbra's own slots, whose tree has a fixed depth; `caching_off_tree` does the same in a balanced
//! tree, as the kernel's slots are.
#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]

use criterion::{Criterion, criterion_group, criterion_main};
use std::collections::BTreeMap;
use std::hint::black_box;
use umbra_memslots::{
    AddressSpaceId, Generation, Gfn, Gpa, Hva, SlotFlags, SlotId, SlotLimits, SlotReader, SlotRequest, SlotTable,
};
use umbra_mmu::direct::{
    DirectMmu, DirectOptions, DirectVcpu, Direction, FoundSlot, MmioAnswer, MmioSource, SlotSet, SlotSource,
};
use umbra_mmu::shadow::{HostParams, SpteLayout};

const SLOT_COUNTS: [u64; 6] = [1, 8, 64, 512, 4096, 32764];
/// Slots are four pages apart, two pages each: MMIO lies between them.
const STRIDE: u64 = 4;
/// The MMIO page, between two slots in the middle of the used range (or above the only one).
fn mmio(slots: u64) -> Gpa {
    Gfn::new((slots / 2) * STRIDE + 2).unwrap().base()
}

fn slot_table(count: u64) -> SlotTable {
    let mut table = SlotTable::new(SlotLimits::default());
    for index in 0..count {
        let at = Gfn::new(index * STRIDE).unwrap().base();
        let hva = Hva::new(0x7000_0000_0000 + index * 0x2000);
        let slot = u32::try_from(index).unwrap();
        table
            .apply(SlotRequest::set(slot, SlotFlags::empty(), at, 0x2000, hva))
            .unwrap();
    }
    table
}

fn mmu(caching: bool) -> DirectMmu {
    let layout = SpteLayout::new(HostParams::x86(46).with_mmio_caching(caching)).unwrap();
    DirectMmu::new(DirectOptions::new(layout)).unwrap()
}

/// The same slots in a balanced tree.
struct Tree {
    set: SlotSet,
    slots: BTreeMap<u64, (u64, SlotId)>,
}

impl Tree {
    fn new(count: u64) -> Self {
        let set = SlotSet {
            generation: Generation::from_raw(2 * count),
            address_space: AddressSpaceId::Normal,
        };
        let slot = |index| (index * STRIDE, (2, SlotId::new(u16::try_from(index).unwrap())));
        Self {
            set,
            slots: (0..count).map(slot).collect(),
        }
    }
}

impl SlotSource for Tree {
    fn current(&mut self) -> SlotSet {
        black_box(self.set)
    }

    fn search(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundSlot>) {
        let below = self.slots.range(..=gfn.get()).next_back();
        let found = below.filter(|&(start, (pages, _))| gfn.get() - start < *pages);
        (
            self.set,
            found.map(|(_, &(_, id))| FoundSlot {
                id,
                read_only: false,
                invalid: false,
            }),
        )
    }
}

fn mmio_path(c: &mut Criterion) {
    for count in SLOT_COUNTS {
        let table = slot_table(count);
        let reader = || -> SlotReader { table.reader(AddressSpaceId::Normal).unwrap() };
        let page = mmio(count);
        let mut group = c.benchmark_group(format!("mmio_path/{count}"));

        let (cached, mut vcpu, mut slots) = (mmu(true), DirectVcpu::new(), reader());
        cached.lookup(&mut vcpu, &mut slots, page, Direction::Read);
        group.bench_function("cache_hit", |b| {
            b.iter(|| cached.lookup(&mut vcpu, &mut slots, black_box(page), Direction::Read));
        });
        assert_eq!(vcpu.stats().searches, 1);

        let mut vcpu = DirectVcpu::new();
        group.bench_function("spte_hit", |b| {
            b.iter(|| {
                vcpu.forget();
                cached.lookup(&mut vcpu, &mut slots, black_box(page), Direction::Read)
            });
        });
        assert_eq!(vcpu.stats().searches, 0);

        // The same for two pages far apart by turns: each time from the root of the tables.
        let (mut vcpu, mut turn) = (DirectVcpu::new(), page);
        group.bench_function("spte_hit_far", |b| {
            b.iter(|| {
                turn = Gpa::new(turn.get() ^ 1 << 30);
                cached.lookup(&mut vcpu, &mut slots, black_box(turn), Direction::Read)
            });
        });

        let (uncached, mut vcpu) = (mmu(false), DirectVcpu::new());
        assert_eq!(
            uncached.lookup(&mut vcpu, &mut slots, page, Direction::Read),
            MmioAnswer::Mmio(MmioSource::Search)
        );
        group.bench_function("caching_off", |b| {
            b.iter(|| uncached.lookup(&mut vcpu, &mut slots, black_box(page), Direction::Read));
        });

        let mut tree = Tree::new(count);
        group.bench_function("caching_off_tree", |b| {
            b.iter(|| uncached.lookup(&mut vcpu, &mut tree, black_box(page), Direction::Read));
        });
        group.finish();
    }
}

criterion_group!(benches, mmio_path);
criterion_main!(benches);
