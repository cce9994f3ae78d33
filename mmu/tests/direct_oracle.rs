//! Random slot changes seen late by some vCPUs, lookups, zaps and wraps: MMIO is never reported for a frame that has a
//! slot in the set that the vCPU sees, nor a slot for one that hasn't.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use std::sync::Arc;
use umbra_memslots::{AddressSpaceId, Generation, Gfn, GfnRange, SlotId};
use umbra_mmu::direct::{DirectMmu, DirectOptions, DirectVcpu, Direction, FoundSlot, MmioAnswer, SlotSet, SlotSource};
use umbra_mmu::shadow::{BitSpan, GenerationSpans, HostParams, SpteLayout};

/// Frames the guest uses: eight, in three tables.
const FRAMES: [u64; 8] = [0, 1, 2, 511, 512, 513, 1 << 20, (1 << 20) + 1];
const VCPUS: usize = 3;

/// One published set of slots: which of [`FRAMES`] have one.
#[derive(Clone, Copy)]
struct Set {
    generation: Generation,
    present: u8,
}

/// A vCPU's view, which moves forward only when the test says so.
struct View {
    history: Arc<Vec<Set>>,
    at: usize,
    address_space: AddressSpaceId,
}

impl SlotSource for View {
    fn current(&mut self) -> SlotSet {
        SlotSet {
            generation: self.history[self.at].generation,
            address_space: self.address_space,
        }
    }

    fn search(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundSlot>) {
        let index = FRAMES.iter().position(|&frame| frame == gfn.get()).unwrap();
        let present = self.history[self.at].present & 1 << index != 0;
        let slot = present.then_some(FoundSlot {
            id: SlotId::new(0),
            read_only: false,
            invalid: false,
        });
        (self.current(), slot)
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A vCPU's next access sees the slots as they are that many sets later (or the newest).
    Advance { vcpu: usize, sets: usize },
    /// It makes an access.
    Look { vcpu: usize, frame: usize, write: bool },
    /// Somebody zaps.
    Zap { frame: usize, pages: u64 },
    /// The writer of the slots announces the generation that a vCPU will see next, as the follower does.
    Announce { vcpu: usize },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..VCPUS, 1usize..6).prop_map(|(vcpu, sets)| Step::Advance { vcpu, sets }),
        12 => (0..VCPUS, 0..FRAMES.len(), any::<bool>()).prop_map(|(vcpu, frame, write)| Step::Look { vcpu, frame, write }),
        1 => (0..FRAMES.len(), prop_oneof![Just(1u64), Just(2), Just(600), Just(1 << 30)])
            .prop_map(|(frame, pages)| Step::Zap { frame, pages }),
        1 => (0..VCPUS).prop_map(|vcpu| Step::Announce { vcpu }),
    ]
}

/// Sets as a slot table publishes them: a changed set first under the old number with the mark and with everything that
/// is in either, then under the next.
fn history(changes: &[u8], first: u64) -> Vec<Set> {
    let mut sets = vec![Set {
        generation: Generation::from_raw(first),
        present: changes[0],
    }];
    for &present in &changes[1..] {
        let last = sets[sets.len() - 1];
        sets.push(Set {
            generation: last.generation.begin_update(),
            present: last.present | present,
        });
        sets.push(Set {
            generation: last.generation.begin_update().finish_update(2),
            present,
        });
    }
    sets
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn answer_equals_the_slots_that_the_vcpu_sees(
        changes in proptest::collection::vec(any::<u8>(), 2..40),
        steps in proptest::collection::vec(any_step(), 1..300),
        wide: bool,
        table_limit in prop_oneof![Just(5u32), Just(8), Just(64)],
        smm: bool,
    ) {
        let mut host = HostParams::x86(48);
        if !wide {
            // Two bits: every second change wraps.
            let tiny = GenerationSpans { low: BitSpan::new(3, 3).unwrap(), high: BitSpan::new(52, 52).unwrap() };
            host = host.with_generation(tiny);
        }
        let options = DirectOptions { table_limit, ..DirectOptions::new(SpteLayout::new(host).unwrap()) };
        let mmu = DirectMmu::new(options).unwrap();
        let address_space = if smm { AddressSpaceId::Smm } else { AddressSpaceId::Normal };
        let history = Arc::new(history(&changes, Generation::initial(address_space).get()));
        let mut cpus: Vec<(DirectVcpu, View)> = (0..VCPUS)
            .map(|_| (DirectVcpu::new(), View { history: Arc::clone(&history), at: 0, address_space }))
            .collect();
        for step in steps {
            match step {
                Step::Advance { vcpu, sets } => cpus[vcpu].1.at = (cpus[vcpu].1.at + sets).min(history.len() - 1),
                Step::Look { vcpu, frame, write } => {
                    let (own, view) = &mut cpus[vcpu];
                    let gpa = Gfn::new(FRAMES[frame]).unwrap().base().wrapping_add(4);
                    let direction = if write { Direction::Write } else { Direction::Read };
                    let answer = mmu.lookup(own, view, gpa, direction);
                    let present = history[view.at].present & 1 << frame != 0;
                    prop_assert_eq!(matches!(answer, MmioAnswer::Mmio(_)), !present, "{:?}", answer);
                    prop_assert!(mmu.table().tables_in_use() <= table_limit);
                }
                Step::Zap { frame, pages } => {
                    mmu.zap_range(address_space, GfnRange::new(Gfn::new(FRAMES[frame]).unwrap(), pages).unwrap());
                }
                Step::Announce { vcpu } => {
                    let next = history[(cpus[vcpu].1.at + 1).min(history.len() - 1)].generation;
                    mmu.generation_changes(address_space, next);
                }
            }
        }
        let known: u64 = cpus.iter().map(|(own, _)| own.stats().cache_hits + own.stats().spte_hits).sum();
        let searched: u64 = cpus.iter().map(|(own, _)| own.stats().searches).sum();
        let looked = known + searched;
        prop_assert!(looked <= 300);
    }
}
