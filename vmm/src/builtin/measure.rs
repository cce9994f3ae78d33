//! What recognising an access costs, measured after the run on the tables and slots that the run left behind.

use super::plan;
use super::summary::NsEach;
use std::hint::black_box;
use std::time::Instant;
use umbra_memslots::{Gpa, PAGE_SIZE, SlotReader};
use umbra_mmu::direct::{DirectMmu, DirectVcpu, Direction, MmioAnswer, MmioSource};

/// Lookups of a kind: enough that the clock's own cost is lost, few enough to take a moment only.
const LOOKUPS: u64 = 16_384;
/// How often they are repeated; the fastest time counts, as the others were disturbed.
const REPEATS: u64 = 5;
/// First of the pages that nobody has accessed yet: above the devices, without slots.
const FRESH: Gpa = Gpa::new(0xe000_0000);
/// Fresh pages that are looked up.
const FRESH_PAGES: u64 = 2048;

/// Times lookups of each kind. A kind that the tables don't answer with (`--no-mmio-cache`) has no time.
pub fn ns_each(mmu: &DirectMmu, mut slots: SlotReader) -> NsEach {
    let mut vcpu = DirectVcpu::new();
    let mut time = |source: MmioSource, lookups: u64, page: &dyn Fn(u64) -> u64, from: Gpa| {
        let mut best = None;
        for repeat in 0..REPEATS {
            let began = Instant::now();
            let mut as_meant = 0;
            for index in repeat * lookups..(repeat + 1) * lookups {
                let gpa = from.wrapping_add(page(index) * PAGE_SIZE);
                let answer = black_box(mmu.lookup(&mut vcpu, &mut slots, black_box(gpa), Direction::Read));
                as_meant += u64::from(answer == MmioAnswer::Mmio(source));
            }
            let elapsed = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            // In the first round a few have to learn what the rest know.
            if as_meant + lookups / 100 >= lookups {
                best = best.into_iter().chain([elapsed / lookups]).min();
            }
        }
        best
    };
    let pages = u64::from(plan::SCRATCH_PAGES);
    NsEach {
        cache: time(MmioSource::Cache, LOOKUPS, &|_| 0, plan::SCRATCH),
        spte: time(MmioSource::Spte, LOOKUPS, &|index| index % pages, plan::SCRATCH),
        search: time(MmioSource::Search, FRESH_PAGES, &|index| index, FRESH),
    }
}
