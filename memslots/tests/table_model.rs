//! The slot table against the naive one, on any sequence of requests; and the order of events of each change.

use proptest::prelude::*;
use std::sync::{Arc, Mutex};
use umbra_memslots::testing::{Event, Recorder, check_request_bytes};
use umbra_memslots::{
    AddressSpaceId, Generation, Gpa, Hva, MemSlot, ObserverError, SlotChange, SlotError, SlotFlags, SlotId, SlotLimits,
    SlotObserver, SlotReader, SlotRequest, SlotTable,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_sequence_of_requests_agrees_with_the_naive_table(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        check_request_bytes(&bytes);
    }
}

const SPACE: AddressSpaceId = AddressSpaceId::Normal;

fn create() -> SlotRequest {
    SlotRequest::set(3, SlotFlags::empty(), Gpa::new(0x10_0000), 0x2000, Hva::new(0x1_0000))
}

fn number(raw: u64) -> Generation {
    Generation::from_raw(raw)
}

/// What a reader sees: the raw generation, and where slot 3 is and whether it is invalid.
type Sight = (u64, Option<(u64, bool)>);

/// An observer that looks at the table as another thread would, at each call.
struct Watcher {
    reader: SlotReader,
    seen: Arc<Mutex<Vec<(&'static str, Sight)>>>,
}

impl Watcher {
    fn look(&mut self, when: &'static str) {
        let slots = self.reader.snapshot();
        let slot = slots
            .by_id(SlotId::new(3))
            .map(|slot| (slot.range().start().get(), slot.is_invalid()));
        // The same is found by frame as by number.
        for slot in slots.iter() {
            assert_eq!(slots.find(slot.range().start()), Some(slot));
        }
        let sight = (slots.generation().get(), slot);
        if let Ok(mut seen) = self.seen.lock() {
            seen.push((when, sight));
        }
    }
}

impl SlotObserver for Watcher {
    fn before_remove(&mut self, _: &MemSlot) {
        self.look("before_remove");
    }

    fn after_commit(&mut self, _: &SlotChange) -> Result<(), ObserverError> {
        self.look("after_commit");
        Ok(())
    }

    fn roll_back(&mut self, _: &SlotChange) -> Result<(), ObserverError> {
        self.look("roll_back");
        Ok(())
    }

    fn generation_changes(&mut self, _: AddressSpaceId, _: Generation) {
        self.look("generation_changes");
    }
}

/// A table with a watcher, then a recorder that can refuse.
struct Watched {
    table: SlotTable,
    recorder: Recorder,
    reader: SlotReader,
    seen: Arc<Mutex<Vec<(&'static str, Sight)>>>,
}

impl Watched {
    fn new() -> Self {
        let mut table = SlotTable::new(SlotLimits::X86_64);
        let (recorder, seen) = (Recorder::new(), Arc::default());
        let reader = table.reader(SPACE).expect("every table has the normal space");
        table.add_observer(Box::new(Watcher {
            reader: reader.clone(),
            seen: Arc::clone(&seen),
        }));
        table.add_observer(Box::new(recorder.clone()));
        Self {
            table,
            recorder,
            reader,
            seen,
        }
    }

    /// Applies and returns what the watcher saw at each event, and what a reader sees after.
    fn apply(&mut self, request: SlotRequest) -> (Result<(), SlotError>, Vec<(&'static str, Sight)>) {
        let result = self.table.apply(request).map(|_| ());
        let mut seen = std::mem::take(&mut *self.seen.lock().expect("no watcher panicked"));
        let slots = self.reader.snapshot();
        let slot = slots
            .by_id(SlotId::new(3))
            .map(|slot| (slot.range().start().get(), slot.is_invalid()));
        seen.push(("after", (slots.generation().get(), slot)));
        (result, seen)
    }
}

/// A raw generation with the in-progress mark.
const fn during(number: u64) -> u64 {
    number | Generation::IN_PROGRESS
}

#[test]
fn create_and_flags_only_are_one_replacement() {
    let mut watched = Watched::new();
    let here = Some((0x100, false));
    let (result, seen) = watched.apply(create());
    assert!(result.is_ok());
    let expected = [
        ("after_commit", (during(0), here)),
        ("generation_changes", (during(0), here)),
        ("after", (2, here)),
    ];
    assert_eq!(seen, expected);
    let (result, seen) = watched.apply(SlotRequest { flags: 1, ..create() });
    assert!(result.is_ok());
    let expected = [
        ("after_commit", (during(2), here)),
        ("generation_changes", (during(2), here)),
        ("after", (4, here)),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn delete_and_move_go_through_an_invalid_copy() {
    let mut watched = Watched::new();
    assert!(watched.apply(create()).0.is_ok());
    let invalid = Some((0x100, true));
    let (result, seen) = watched.apply(SlotRequest {
        guest_phys_addr: Gpa::new(0x20_0000),
        ..create()
    });
    assert!(result.is_ok());
    let expected = [
        ("generation_changes", (during(2), invalid)),
        ("before_remove", (4, invalid)),
        ("after_commit", (during(4), invalid)),
        ("generation_changes", (during(4), invalid)),
        ("after", (6, Some((0x200, false)))),
    ];
    assert_eq!(seen, expected);
    let invalid = Some((0x200, true));
    let (result, seen) = watched.apply(SlotRequest::delete(3));
    assert!(result.is_ok());
    let expected = [
        ("generation_changes", (during(6), invalid)),
        ("before_remove", (8, invalid)),
        ("after_commit", (during(8), invalid)),
        ("generation_changes", (during(8), invalid)),
        ("after", (10, None)),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn refused_creation_is_rolled_back_and_leaves_nothing() {
    let mut watched = Watched::new();
    watched.recorder.refuse_next(12);
    let (result, seen) = watched.apply(create());
    let error = result.expect_err("the recorder refused");
    assert!(matches!(&error, SlotError::Refused { id, .. } if id.get() == 3));
    assert_eq!(error.errno().raw(), 12);
    let here = Some((0x100, false));
    let expected = [
        ("after_commit", (during(0), here)),
        ("roll_back", (during(0), here)),
        ("generation_changes", (during(0), here)),
        ("after", (2, None)),
    ];
    assert_eq!(seen, expected);
    assert_eq!(watched.table.free_id(SPACE).ok(), Some(SlotId::new(0)));
    // The same request is welcome later.
    assert!(watched.apply(create()).0.is_ok());
}

#[test]
fn refused_deletion_and_move_bring_the_slot_back() {
    for request in [
        SlotRequest::delete(3),
        SlotRequest {
            guest_phys_addr: Gpa::new(0),
            ..create()
        },
    ] {
        let mut watched = Watched::new();
        assert!(watched.apply(create()).0.is_ok());
        watched.recorder.take();
        watched.recorder.refuse_next(22);
        let (result, seen) = watched.apply(request);
        assert!(matches!(result, Err(SlotError::Refused { .. })));
        assert!(
            seen.iter()
                .all(|(_, (_, slot))| slot.is_some_and(|(start, _)| start == 0x100)),
            "never missing"
        );
        assert_eq!(seen.last(), Some(&("after", (6, Some((0x100, false))))));
        let events = watched.recorder.take();
        assert!(matches!(
            &events[..],
            [
                Event::GenerationChanges(SPACE, first),
                Event::BeforeRemove(_),
                Event::AfterCommit(_, false),
                Event::GenerationChanges(SPACE, second),
            ] if (*first, *second) == (number(4), number(6))
        ));
    }
}

#[test]
fn only_observers_that_accepted_roll_back_and_failure_to_is_reported() {
    let mut table = SlotTable::new(SlotLimits::X86_64);
    let recorders = [Recorder::new(), Recorder::new(), Recorder::new()];
    for recorder in &recorders {
        table.add_observer(Box::new(recorder.clone()));
    }
    recorders[1].refuse_next(16);
    recorders[0].fail_roll_backs();
    let error = table.apply(create()).expect_err("the second recorder refused");
    assert!(matches!(error, SlotError::RollbackFailed { .. }));
    let undone = recorders.map(|recorder| recorder.take().iter().any(|event| matches!(event, Event::RollBack(_))));
    assert_eq!(undone, [true, false, false]);
    assert!(table.slots(SPACE).is_empty());
}

#[test]
fn spaces_change_independently_and_never_share_a_generation() {
    let mut table = SlotTable::new(SlotLimits::X86_64);
    assert!(
        table
            .apply(SlotRequest {
                slot: 0x1_0003,
                ..create()
            })
            .is_ok()
    );
    let (normal, smm) = (table.slots(SPACE), table.slots(AddressSpaceId::Smm));
    assert_eq!((normal.generation().get(), smm.generation().get()), (0, 3));
    assert!(normal.is_empty());
    assert_eq!(smm.len(), 1);
}

#[test]
fn inverse_of_a_change_undoes_its_request() {
    let mut table = SlotTable::new(SlotLimits::X86_64);
    for request in [
        create(),
        SlotRequest { flags: 1, ..create() },
        SlotRequest {
            guest_phys_addr: Gpa::new(0),
            ..create()
        },
    ] {
        let before: Vec<_> = table.slots(SPACE).iter().cloned().collect();
        let change = table
            .apply(request)
            .ok()
            .and_then(|applied| applied.change)
            .expect("a change");
        assert_eq!(change.request(), request);
        assert!(table.apply(change.inverse().request()).is_ok());
        assert_eq!(table.slots(SPACE).iter().cloned().collect::<Vec<_>>(), before);
        assert!(table.apply(request).is_ok());
    }
}

#[test]
fn table_built_at_once_equals_one_built_step_by_step() {
    let requests = [
        create(),
        SlotRequest {
            slot: 7,
            guest_phys_addr: Gpa::new(0x70_0000),
            ..create()
        },
        SlotRequest {
            slot: 0x1_0002,
            ..create()
        },
        SlotRequest { flags: 1, ..create() },
        SlotRequest {
            slot: 7,
            guest_phys_addr: Gpa::new(0),
            ..create()
        },
        SlotRequest::delete(3),
    ];
    let mut steps = SlotTable::new(SlotLimits::X86_64);
    for request in requests {
        assert!(steps.apply(request).is_ok());
    }
    let at_once = SlotTable::with_slots(SlotLimits::X86_64, requests.map(|request| (request, None)))
        .expect("what one table accepts, the other does");
    for space in AddressSpaceId::ALL {
        let (expected, found) = (steps.slots(space), at_once.slots(space));
        assert!(expected.iter().eq(found.iter()));
        assert_eq!(expected.generation(), found.generation());
        assert_eq!(
            at_once.reader(space).map(|mut reader| reader.snapshot().len()),
            Some(expected.len())
        );
        assert_eq!(steps.free_id(space).ok(), at_once.free_id(space).ok());
    }
    let refused = SlotTable::with_slots(SlotLimits::X86_64, [(SlotRequest::delete(1), None)]);
    assert!(matches!(refused, Err(SlotError::NothingToDelete { slot: 1 })));
}
