//! Every interleaving of accesses with changes of the bus:
//! `RUSTFLAGS="--cfg loom" cargo test -p umbra-devices --release --test loom_bus`.
#![cfg(loom)]

use loom::thread;
use std::sync::Arc;
use umbra_devices::bus::{AnsweredBy, RegionId};
use umbra_devices::testing::Constant;
use umbra_devices::{Bus, BusCursor, IoSize};
use umbra_memslots::Gpa;

const OLD: Gpa = Gpa::new(0x1000);
const NEW: Gpa = Gpa::new(0x2000);

fn bus_with_device() -> (Arc<Bus<Gpa>>, RegionId) {
    let bus = Arc::new(Bus::new());
    let id = bus.claim("device", OLD, 8, Arc::new(Constant(7))).unwrap();
    (bus, id)
}

fn answers(cursor: &mut BusCursor<Gpa>, addr: Gpa) -> bool {
    let answer = cursor.read(addr, IoSize::B4);
    match answer.by {
        AnsweredBy::Region(_) => assert_eq!(answer.value, 7),
        _ => assert_eq!(answer.value, 0xffff_ffff),
    }
    matches!(answer.by, AnsweredBy::Region(_))
}

#[test]
fn moved_region_answers_at_one_place_at_every_moment() {
    loom::model(|| {
        let (bus, id) = bus_with_device();
        let mut cursor = bus.cursor();
        let reader = thread::spawn(move || {
            // In this order, "not at the old place" means that the move was seen, so the new place must answer.
            let at_old = answers(&mut cursor, OLD);
            let at_new = answers(&mut cursor, NEW);
            assert!(at_old || at_new, "answers nowhere");
            // In this order, "at the new place" means that the old one must have gone.
            let at_new = answers(&mut cursor, NEW);
            let at_old = answers(&mut cursor, OLD);
            assert!(!(at_new && at_old), "answers twice");
            cursor
        });
        bus.move_region(id, NEW).unwrap();
        let mut cursor = reader.join().unwrap();
        assert!(
            answers(&mut cursor, NEW) && !answers(&mut cursor, OLD),
            "a finished move is seen"
        );
    });
}

#[test]
fn concurrent_changes_are_both_kept() {
    loom::model(|| {
        let (bus, id) = bus_with_device();
        let other = Arc::clone(&bus);
        let claimer = thread::spawn(move || {
            other
                .claim("second", Gpa::new(0x8000), 8, Arc::new(Constant(7)))
                .unwrap();
        });
        bus.move_region(id, NEW).unwrap();
        claimer.join().unwrap();
        let mut cursor = bus.cursor();
        assert!(answers(&mut cursor, NEW) && answers(&mut cursor, Gpa::new(0x8000)));
        assert_eq!(bus.generation().get(), 3);
    });
}

#[test]
fn released_region_is_gone_for_whoever_learnt_of_the_release() {
    loom::model(|| {
        let (bus, id) = bus_with_device();
        let mut cursor = bus.cursor();
        assert!(answers(&mut cursor, OLD));
        let releaser = thread::spawn(move || bus.release(id).unwrap());
        answers(&mut cursor, OLD);
        releaser.join().unwrap();
        assert!(!answers(&mut cursor, OLD));
    });
}
