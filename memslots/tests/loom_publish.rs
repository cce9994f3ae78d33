//! Every interleaving (within loom's bounds) of a writer and readers of a publication.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p umbra-memslots --release --test loom_publish`.
#![cfg(loom)]

use loom::thread;
use std::sync::Arc;
use umbra_memslots::{
    AddressSpaceId, Gfn, Gpa, Hva, Published, Reader, SlotFlags, SlotLimits, SlotReader, SlotRequest, SlotTable,
};

/// A state whose parts must belong together, as a map and its generation must.
#[derive(Debug)]
struct State {
    generation: u64,
    map: u64,
}

fn state(generation: u64) -> Arc<State> {
    Arc::new(State {
        generation,
        map: generation * 10,
    })
}

fn look(reader: &mut Reader<State>) -> u64 {
    let state = reader.get();
    assert_eq!(state.map, state.generation * 10, "torn");
    state.generation
}

#[test]
fn readers_never_see_a_torn_state_or_go_back() {
    loom::model(|| {
        let published = Arc::new(Published::from_arc(state(0)));
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let mut reader = Reader::new(Arc::clone(&published));
                thread::spawn(move || {
                    let first = look(&mut reader);
                    let second = look(&mut reader);
                    assert!(first <= second, "went back from {first} to {second}");
                })
            })
            .collect();
        published.store(state(1));
        published.store(state(2));
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(look(&mut Reader::new(published)), 2);
    });
}

#[test]
fn replacement_that_happened_before_is_seen() {
    use loom::sync::atomic::{AtomicBool, Ordering};
    loom::model(|| {
        let published = Arc::new(Published::from_arc(state(0)));
        let told = Arc::new(AtomicBool::new(false));
        let mut reader = Reader::new(Arc::clone(&published));
        let writer = thread::spawn({
            let told = Arc::clone(&told);
            move || {
                published.store(state(1));
                told.store(true, Ordering::Release);
            }
        });
        if told.load(Ordering::Acquire) {
            assert_eq!(look(&mut reader), 1);
        }
        writer.join().unwrap();
        assert_eq!(look(&mut reader), 1);
    });
}

const PAGE: u64 = 0x100;

/// What a reader may conclude about the page, with the generation it concludes it from.
fn conclude(reader: &mut SlotReader) -> (u64, bool, &'static str) {
    let slots = reader.snapshot();
    let found = match slots.find(Gfn::new(PAGE).unwrap()) {
        None => "mmio",
        Some(slot) if slot.is_invalid() => "retry",
        Some(_) => "ram",
    };
    (slots.generation().number(), slots.generation().is_in_progress(), found)
}

/// Create and delete under a reader: each final generation belongs to exactly one state of the page.
#[test]
fn slot_reader_never_sees_an_old_map_with_a_new_final_generation() {
    loom::model(|| {
        let mut table = SlotTable::new(SlotLimits {
            address_spaces: 1,
            ..SlotLimits::X86_64
        });
        let mut reader = table.reader(AddressSpaceId::Normal).unwrap();
        let looking = thread::spawn(move || {
            let mut last = 0;
            for _ in 0..2 {
                let seen = conclude(&mut reader);
                let allowed = [
                    (0, false, "mmio"),
                    (0, true, "ram"),
                    (1, false, "ram"),
                    (1, true, "retry"),
                    (2, false, "retry"),
                    (2, true, "retry"),
                    (3, false, "mmio"),
                ];
                assert!(allowed.contains(&seen), "{seen:?}");
                assert!(seen.0 >= last);
                last = seen.0;
            }
        });
        let create = SlotRequest::set(0, SlotFlags::empty(), Gpa::new(PAGE << 12), 0x1000, Hva::new(0x1000));
        table.apply(create).unwrap();
        table.apply(SlotRequest::delete(0)).unwrap();
        looking.join().unwrap();
    });
}
