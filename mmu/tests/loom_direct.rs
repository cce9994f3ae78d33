//! The lock-free reads of the direct side against recycled tables and wrapped generations, in every interleaving.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p umbra-mmu --release --test loom_direct`
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;
use umbra_memslots::{AddressSpaceId, Generation, Gfn, Gpa, SlotId};
use umbra_mmu::direct::{
    DirectMmu, DirectTable, DirectVcpu, Direction, FoundSlot, LastTable, Levels, MmioAnswer, SlotSet, SlotSource,
};
use umbra_mmu::shadow::{BitSpan, GenerationSpans, HostParams, SpteLayout};
use umbra_mmu::tables::HeapTables;

const SPACE: AddressSpaceId = AddressSpaceId::Normal;

fn check(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

fn gfn(raw: u64) -> Gfn {
    Gfn::new(raw).unwrap()
}

/// Two roots and three more tables: one path, so that a second path must recycle the first.
fn table(host: HostParams) -> DirectTable {
    DirectTable::new(
        SpteLayout::new(host).unwrap(),
        Levels::Four,
        HeapTables::new(0, 5).unwrap(),
    )
    .unwrap()
}

#[test]
fn reader_never_takes_the_next_life_of_a_table_for_its_own() {
    check(|| {
        let table = Arc::new(table(HostParams::x86(46)));
        table.write(|writer| writer.install(SPACE, gfn(0), 0x1001)).unwrap();
        let writer = {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                table.write(|writer| {
                    writer.zap_all(SPACE);
                    // The same tables, the other way round.
                    writer.install(SPACE, gfn(0b0100), 0x2001).unwrap();
                });
            })
        };
        let mut last = LastTable::new();
        for _ in 0..2 {
            if let Some(leaf) = table.walk_from(&mut last, SPACE, gfn(0)) {
                assert!([0, 0x1001].contains(&leaf.entry), "{leaf:x?}");
            }
        }
        writer.join().unwrap();
        assert_ne!(
            table.walk_from(&mut last, SPACE, gfn(0)).map_or(0, |leaf| leaf.entry),
            0x2001
        );
        assert_eq!(table.walk(SPACE, gfn(0)).unwrap().entry, 0);
        assert_eq!(table.walk(SPACE, gfn(0b0100)).unwrap().entry, 0x2001);
    });
}

#[test]
fn reader_sees_a_removed_range_only_as_it_was_or_empty() {
    check(|| {
        let table = Arc::new(table(HostParams::x86(46)));
        table.write(|writer| writer.install(SPACE, gfn(0), 0x1001)).unwrap();
        table.write(|writer| writer.install(SPACE, gfn(1), 0x3001)).unwrap();
        let writer = {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                table.write(|writer| writer.zap_range(SPACE, umbra_memslots::GfnRange::single(gfn(0))));
                table.write(|writer| writer.install(SPACE, gfn(0), 0x5001)).unwrap();
            })
        };
        // In the order in which they were written, each reader.
        let (first, second) = (table.walk(SPACE, gfn(0)), table.walk(SPACE, gfn(0)));
        let order = |entry| [0x1001, 0, 0x5001].iter().position(|&e| e == entry).unwrap();
        assert!(order(first.unwrap().entry) <= order(second.unwrap().entry));
        assert_eq!(table.walk(SPACE, gfn(1)).unwrap().entry, 0x3001);
        writer.join().unwrap();
    });
}

/// Slots as of one generation; frame 0 may have one.
struct Fixed {
    generation: u64,
    present: bool,
}

impl SlotSource for Fixed {
    fn current(&mut self) -> SlotSet {
        SlotSet {
            generation: Generation::from_raw(self.generation),
            address_space: SPACE,
        }
    }

    fn search(&mut self, _gfn: Gfn) -> (SlotSet, Option<FoundSlot>) {
        let slot = FoundSlot {
            id: SlotId::new(0),
            read_only: false,
            invalid: false,
        };
        (self.current(), self.present.then_some(slot))
    }
}

/// One bit of generation in each half: 4 is 0 again.
fn wrapping_mmu() -> DirectMmu {
    let tiny = GenerationSpans {
        low: BitSpan::new(3, 3).unwrap(),
        high: BitSpan::new(52, 52).unwrap(),
    };
    DirectMmu::over(table(HostParams::x86(46).with_generation(tiny)))
}

fn is_mmio(mmu: &DirectMmu, mut slots: Fixed) -> bool {
    let answer = mmu.lookup(&mut DirectVcpu::new(), &mut slots, Gpa::new(0), Direction::Read);
    matches!(answer, MmioAnswer::Mmio(_))
}

#[test]
fn entry_of_an_old_era_is_never_believed_after_the_wrap() {
    check(|| {
        let mmu = Arc::new(wrapping_mmu());
        assert!(is_mmio(
            &mmu,
            Fixed {
                generation: 0,
                present: false
            }
        ));
        // A vCPU that lags behind marks again, while another sees a slot there at the same cut.
        let behind = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                assert!(is_mmio(
                    &mmu,
                    Fixed {
                        generation: 0,
                        present: false
                    }
                ))
            })
        };
        let announced = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                mmu.generation_changes(SPACE, Generation::from_raw(4));
            })
        };
        assert!(!is_mmio(
            &mmu,
            Fixed {
                generation: 4,
                present: true
            }
        ));
        behind.join().unwrap();
        announced.join().unwrap();
        assert!(!is_mmio(
            &mmu,
            Fixed {
                generation: 4,
                present: true
            }
        ));
    });
}

#[test]
fn entry_of_a_new_era_is_never_believed_by_who_lags_behind() {
    check(|| {
        let mmu = Arc::new(wrapping_mmu());
        // Another entry, so that the wrap has something to recycle.
        assert!(is_mmio(
            &mmu,
            Fixed {
                generation: 1,
                present: false
            }
        ));
        let ahead = {
            let mmu = Arc::clone(&mmu);
            thread::spawn(move || {
                assert!(is_mmio(
                    &mmu,
                    Fixed {
                        generation: 4,
                        present: false
                    }
                ))
            })
        };
        assert!(!is_mmio(
            &mmu,
            Fixed {
                generation: 0,
                present: true
            }
        ));
        ahead.join().unwrap();
        assert!(!is_mmio(
            &mmu,
            Fixed {
                generation: 0,
                present: true
            }
        ));
    });
}
