//! What faults on shadow tables cost, for a guest with four levels: `shadow_fault/…` for memory and MMIO touched first,
//! `shadow_mmio/<slots>/…` for MMIO touched again, `shadow_threads/<n>` for that on several vCPUs, `shadow_flush/…` for
//! INVLPG and CR3 loads by turns among so many roots.
#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};
use umbra_memslots::{AddressSpaceId, Gfn, Gva, Hva, SlotFlags, SlotLimits, SlotReader, SlotRequest, SlotTable};
use umbra_mmu::NoObserver;
use umbra_mmu::direct::{SlotSet, SlotSource};
use umbra_mmu::shadow::{
    FaultOutcome, FoundFrame, FrameSource, HostParams, ShadowFault, ShadowMmu, ShadowVcpu, SpteLayout, TlbControl,
};
use umbra_mmu::tables::HeapTables;
use umbra_mmu::testing::WalkMemory;
use umbra_mmu::x86::{GuestCpu, PageFaultCode, PagingRegs, PagingState};

const SLOT_COUNTS: [u64; 6] = [1, 8, 64, 512, 4096, 32764];
const USED: u64 = 0x67;
/// The first slot has the guest's tables and its memory; the others are two pages each, four pages apart.
const FIRST_SLOT: u64 = 0x1000;
const STRIDE: u64 = 4;
/// The first page of the last tables maps memory, the second MMIO.
const MEMORY: u64 = 0;
const MMIO: u64 = 1 << 21;
const ROOTS: u64 = 64;
const PAGES: u64 = 512;
/// A write that found nothing, and one that found an MMIO SPTE.
const WRITE: u32 = 2;
const RESERVED: u32 = 0xb;

struct NoTlb;

impl TlbControl for NoTlb {
    fn flush_all(&mut self) {}
    fn flush_vcpu(&mut self) {}
    fn flush_gva(&mut self, _gva: Gva) {}
}

/// The address of memory is its gpa.
struct Frames(SlotReader);

impl FrameSource for Frames {
    fn current(&mut self) -> SlotSet {
        SlotSource::current(&mut self.0)
    }

    fn frame(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundFrame>) {
        let (set, found) = self.0.search(gfn);
        (set, found.map(|slot| FoundFrame::page(slot, gfn.base().get())))
    }
}

struct Machine {
    mmu: ShadowMmu,
    memory: WalkMemory,
    slots: SlotTable,
}

impl Machine {
    /// MMIO lies between two slots in the middle.
    fn new(slots: u64, caching: bool) -> Self {
        let layout = SpteLayout::new(HostParams::x86(46).with_mmio_caching(caching)).unwrap();
        let mmu = ShadowMmu::new(layout, HeapTables::new(1 << 40, 1024).unwrap()).unwrap();
        let memory = WalkMemory::new(128);
        let mmio = FIRST_SLOT + STRIDE * (slots / 2) + 2;
        for root in 1..=ROOTS {
            memory.set(root << 12, 100 << 12 | USED);
        }
        memory.set(100 << 12, 101 << 12 | USED);
        memory.set(101 << 12, 102 << 12 | USED);
        memory.set((101 << 12) + 8, 103 << 12 | USED);
        for page in 0..PAGES {
            memory.set((102 << 12) + 8 * page, (0x200 + page) << 12 | USED);
            // All lead to the same page: it is the entries that count.
            memory.set((103 << 12) + 8 * page, mmio << 12 | USED);
        }
        let mut table = SlotTable::new(SlotLimits::default());
        let mut add = |id: u64, gfn: u64, pages: u64| {
            let (at, id) = (Gfn::new(gfn).unwrap().base(), u32::try_from(id).unwrap());
            let request = SlotRequest::set(id, SlotFlags::empty(), at, pages << 12, hva_of(gfn));
            table.apply(request).unwrap();
        };
        add(0, 0, FIRST_SLOT);
        for id in 1..slots {
            add(id, FIRST_SLOT + STRIDE * id, 2);
        }
        Self {
            mmu,
            memory,
            slots: table,
        }
    }

    fn frames(&self) -> Frames {
        Frames(self.slots.reader(AddressSpaceId::Normal).unwrap())
    }

    fn vcpu(&self) -> ShadowVcpu {
        let mut vcpu = ShadowVcpu::new(state(1));
        self.root(&mut vcpu);
        vcpu
    }

    fn root(&self, vcpu: &mut ShadowVcpu) {
        black_box(self.mmu.root(vcpu, &self.memory, AddressSpaceId::Normal, &mut NoTlb));
    }

    fn fault(&self, vcpu: &mut ShadowVcpu, frames: &mut Frames, gva: u64, code: u32) -> FaultOutcome {
        fault(&self.mmu, &self.memory, vcpu, frames, gva, code)
    }

    /// The time that this many faults take on pages from `first` on, none of which has been touched, with the pages above
    /// them there already.
    fn first_touches(&self, count: u64, first: u64, expected: fn(FaultOutcome) -> bool) -> Duration {
        let (mut vcpu, mut frames) = (self.vcpu(), self.frames());
        let (mut done, mut time) = (0, Duration::ZERO);
        while done < count {
            self.mmu.zap_all(&mut NoObserver, &mut NoTlb);
            self.root(&mut vcpu);
            self.fault(&mut vcpu, &mut frames, first, WRITE);
            let batch = (count - done).min(PAGES - 1);
            let start = Instant::now();
            for page in 1..=batch {
                let outcome = self.fault(&mut vcpu, &mut frames, first + (page << 12), WRITE);
                assert!(expected(outcome), "{outcome:?}");
            }
            time += start.elapsed();
            done += batch;
        }
        time
    }

    /// The time that this many faults take on MMIO SPTEs that a change of the slots has made stale.
    fn stale(&mut self, count: u64) -> Duration {
        let (mut vcpu, mut frames) = (self.vcpu(), self.frames());
        let at = Gfn::new(FIRST_SLOT + STRIDE).unwrap().base();
        let (mut done, mut time, mut flags) = (0, Duration::ZERO, SlotFlags::empty());
        for page in 0..PAGES {
            self.fault(&mut vcpu, &mut frames, MMIO + (page << 12), WRITE);
        }
        while done < count {
            flags ^= SlotFlags::LOG_DIRTY;
            self.slots
                .apply(SlotRequest::set(1, flags, at, 2 << 12, hva_of(FIRST_SLOT + STRIDE)))
                .unwrap();
            let batch = (count - done).min(PAGES);
            let start = Instant::now();
            for page in 0..batch {
                let outcome = self.fault(&mut vcpu, &mut frames, MMIO + (page << 12), RESERVED);
                assert!(matches!(outcome, FaultOutcome::Emulate(_)), "{outcome:?}");
            }
            time += start.elapsed();
            done += batch;
        }
        time
    }
}

/// Where the memory of a frame would be, if anybody looked.
fn hva_of(gfn: u64) -> Hva {
    Hva::new(0x7000_0000_0000 + (gfn << 12))
}

fn fault(
    mmu: &ShadowMmu,
    memory: &WalkMemory,
    vcpu: &mut ShadowVcpu,
    frames: &mut Frames,
    gva: u64,
    code: u32,
) -> FaultOutcome {
    let fault = ShadowFault::from_code(Gva::new(black_box(gva)), PageFaultCode::new(code));
    mmu.page_fault(vcpu, memory, frames, &mut NoTlb, fault)
}

fn state(root: u64) -> PagingState {
    const PG_WP: u64 = 1 << 31 | 1 << 16;
    PagingState::new(&PagingRegs {
        cr0: PG_WP,
        cr3: root << 12,
        cr4: 1 << 5,
        efer: 1 << 10,
        rflags: 0,
        pkru: 0,
        pdptes: [0; 4],
        cpu: GuestCpu::intel(46),
    })
}

fn first_touch(c: &mut Criterion) {
    let machine = Machine::new(8, true);
    let mut group = c.benchmark_group("shadow_fault");
    group.bench_function("map", |b| {
        b.iter_custom(|count| machine.first_touches(count, MEMORY, |outcome| outcome == FaultOutcome::Fixed));
    });
    let is_mmio = |outcome| matches!(outcome, FaultOutcome::Emulate(_));
    group.bench_function("mmio", |b| {
        b.iter_custom(|count| machine.first_touches(count, MMIO, is_mmio));
    });
    let mut machine = machine;
    group.bench_function("stale", |b| b.iter_custom(|count| machine.stale(count)));
    group.finish();
}

fn repeated_mmio(c: &mut Criterion) {
    for count in SLOT_COUNTS {
        let mut group = c.benchmark_group(format!("shadow_mmio/{count}"));
        let machine = Machine::new(count, true);
        let (mut vcpu, mut frames) = (machine.vcpu(), machine.frames());
        for page in 0..2u64 {
            machine.fault(&mut vcpu, &mut frames, MMIO + (page << 12), WRITE);
        }
        group.bench_function("cache_hit", |b| {
            b.iter(|| machine.fault(&mut vcpu, &mut frames, MMIO + 0x1000, RESERVED));
        });
        // Two pages by turns: the cache knows the other one.
        let mut page = 0;
        group.bench_function("spte_hit", |b| {
            b.iter(|| {
                page ^= 0x1000;
                machine.fault(&mut vcpu, &mut frames, MMIO + page, RESERVED)
            });
        });
        let machine = Machine::new(count, false);
        let (mut vcpu, mut frames) = (machine.vcpu(), machine.frames());
        group.bench_function("caching_off", |b| {
            b.iter(|| machine.fault(&mut vcpu, &mut frames, MMIO, WRITE));
        });
        group.finish();
    }
}

fn threads(c: &mut Criterion) {
    let machine = Machine::new(8, true);
    for page in 0..2u64 {
        machine.fault(&mut machine.vcpu(), &mut machine.frames(), MMIO + (page << 12), WRITE);
    }
    let mut group = c.benchmark_group("shadow_threads");
    for count in [1, 2, 4] {
        group.bench_function(format!("{count}"), |b| {
            b.iter_custom(|faults| {
                let vcpus: Vec<_> = (0..count).map(|_| (machine.vcpu(), machine.frames())).collect();
                let start = Instant::now();
                thread::scope(|scope| {
                    for (mut vcpu, mut frames) in vcpus {
                        let (mmu, memory) = (&machine.mmu, &machine.memory);
                        scope.spawn(move || {
                            for turn in 0..faults {
                                let gva = MMIO + (turn % 2 * 4096);
                                black_box(fault(mmu, memory, &mut vcpu, &mut frames, gva, RESERVED));
                            }
                        });
                    }
                });
                start.elapsed()
            });
        });
    }
    group.finish();
}

fn flushes(c: &mut Criterion) {
    let machine = Machine::new(8, true);
    let (mut vcpu, mut frames) = (machine.vcpu(), machine.frames());
    machine.fault(&mut vcpu, &mut frames, MEMORY, WRITE);
    let mut group = c.benchmark_group("shadow_flush");
    group.bench_function("invlpg", |b| {
        b.iter(|| {
            let gva = Gva::new(black_box(MEMORY));
            machine
                .mmu
                .invlpg(&mut vcpu, &machine.memory, &mut frames, &mut NoTlb, gva);
        });
    });
    for roots in [1, 2, 4, 16, ROOTS] {
        let mut root = 0;
        group.bench_function(format!("cr3_of_{roots}"), |b| {
            b.iter(|| {
                root = (root + 1) % roots;
                vcpu.set_state(state(1 + root));
                machine.root(&mut vcpu);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, first_touch, repeated_mmio, threads, flushes);
criterion_main!(benches);
