//! Tests of the bus as its users see it. The comparison with a naive model is in `tests/bus_model.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

use super::*;
use crate::access::{IoOp, IoSize};
use crate::device::{Device, Effect, IoOutcome, Refusal};
use crate::testing::Constant;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use umbra_memslots::Gpa;

fn gpa(raw: u64) -> Gpa {
    Gpa::new(raw)
}

fn constant(value: u64) -> Arc<dyn Device> {
    Arc::new(Constant(value))
}

#[test]
fn access_reaches_the_claiming_device_with_the_offset() {
    struct Echo;
    impl Device for Echo {
        fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
            match op {
                IoOp::Read => IoOutcome::Value(offset << 8 | size.bytes()),
                IoOp::Write(_) => IoOutcome::Done,
            }
        }
        fn reset(&self) {}
    }
    let bus = Bus::new();
    let id = bus.claim("echo", gpa(0x1000), 0x20, Arc::new(Echo)).unwrap();
    let mut cursor = bus.cursor();
    let answer = cursor.read(gpa(0x1008), IoSize::B4);
    assert_eq!((answer.value, answer.by), (0x804, AnsweredBy::Region(id)));
    assert_eq!(cursor.read(gpa(0x1008), IoSize::B1).value, 0x01, "cut to the size");
    assert_eq!(cursor.write(gpa(0x1008), IoSize::B4, 1).value, 0);
}

#[test]
fn access_that_only_starts_in_a_region_is_unclaimed() {
    let bus = Bus::new();
    bus.claim("a", gpa(0x1000), 0x1000, constant(1)).unwrap();
    bus.claim("b", gpa(0x2000), 0x1000, constant(2)).unwrap();
    let mut cursor = bus.cursor();
    let answer = cursor.read(gpa(0x1ffe), IoSize::B4);
    assert_eq!((answer.value, answer.by), (0xffff_ffff, AnsweredBy::Nobody));
    assert_eq!(cursor.read(gpa(0x1ffc), IoSize::B4).value, 1);
    assert_eq!(cursor.read(gpa(u64::MAX), IoSize::B8).by, AnsweredBy::Nobody);
}

#[test]
fn unclaimed_and_refused_accesses_are_all_ones_and_counted() {
    struct Refuses;
    impl Device for Refuses {
        fn access(&self, _: u64, _: IoSize, _: IoOp) -> IoOutcome {
            IoOutcome::Refused(Refusal::NoRegister)
        }
        fn reset(&self) {}
    }
    let bus = Bus::new();
    let id = bus.claim("refuses", Port::new(0x10), 4, Arc::new(Refuses)).unwrap();
    let mut cursor = bus.cursor();
    for size in [IoSize::B1, IoSize::B2, IoSize::B4] {
        assert_eq!(cursor.read(Port::new(0x80), size).value, size.all_ones());
        assert_eq!(cursor.write(Port::new(0x80), size, 0).value, 0);
        let answer = cursor.read(Port::new(0x10), size);
        assert_eq!(answer.value, size.all_ones());
        assert_eq!(answer.by, AnsweredBy::Refused(id, Refusal::NoRegister));
    }
    let stats = cursor.stats();
    assert_eq!(
        (
            stats.unclaimed_reads,
            stats.unclaimed_writes,
            stats.refused,
            stats.direct
        ),
        (3, 3, 3, 3)
    );
}

#[test]
fn overlapping_claim_is_refused_naming_both_ranges() {
    let bus = Bus::new();
    bus.claim("serial", Port::new(0x3f8), 8, constant(0)).unwrap();
    let error = bus.claim("modem", Port::new(0x3ff), 2, constant(0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"PIO range 0x3ff..0x401 for "modem" overlaps 0x3f8..0x400, claimed by "serial""#
    );
    assert_eq!(error.errno(), libc::EEXIST);
    let error = bus.claim("too long", Port::new(0xffff), 2, constant(0)).unwrap_err();
    assert!(matches!(error, BusError::BadRange { .. }), "{error}");
    assert!(bus.claim("empty", Port::new(0), 0, constant(0)).is_err());
    assert_eq!(bus.generation().get(), 1, "refused changes publish nothing");
    bus.claim("neighbour", Port::new(0x400), 2, constant(0)).unwrap();
}

#[test]
fn released_region_no_longer_answers_and_its_id_is_never_used_again() {
    let bus = Bus::new();
    let id = bus.claim("a", gpa(0x1000), 0x1000, constant(1)).unwrap();
    let mut cursor = bus.cursor();
    assert_eq!(cursor.read(gpa(0x1000), IoSize::B1).value, 1);
    bus.release(id).unwrap();
    assert_eq!(cursor.read(gpa(0x1000), IoSize::B1).by, AnsweredBy::Nobody);
    assert!(matches!(bus.release(id), Err(BusError::NoSuchRegion { .. })));
    assert_ne!(bus.claim("a", gpa(0x1000), 0x1000, constant(1)).unwrap(), id);
}

#[test]
fn move_keeps_the_id_and_a_refused_move_changes_nothing() {
    let bus = Bus::new();
    let a = bus.claim("a", gpa(0x1000), 0x1000, constant(1)).unwrap();
    bus.claim("b", gpa(0x8000), 0x1000, constant(2)).unwrap();
    let mut cursor = bus.cursor();
    assert!(matches!(bus.move_region(a, gpa(0x7800)), Err(BusError::Overlap { .. })));
    assert!(matches!(
        bus.move_region(a, gpa(u64::MAX)),
        Err(BusError::BadRange { .. })
    ));
    assert_eq!(cursor.read(gpa(0x1000), IoSize::B1).by, AnsweredBy::Region(a));
    bus.move_region(a, gpa(0x1800)).unwrap(); // over a part of its own old place
    assert_eq!(cursor.read(gpa(0x1000), IoSize::B1).by, AnsweredBy::Nobody);
    assert_eq!(cursor.read(gpa(0x27ff), IoSize::B1).by, AnsweredBy::Region(a));
    bus.apply(BusChange::Move {
        from: gpa(0x1800),
        to: gpa(0x9000),
    })
    .unwrap();
    assert_eq!(cursor.read(gpa(0x9000), IoSize::B1).by, AnsweredBy::Region(a));
    let nothing = bus.apply(BusChange::Move {
        from: gpa(0x1800),
        to: gpa(0x9000),
    });
    assert!(matches!(nothing, Err(BusError::NothingStartsAt { .. })));
}

#[test]
fn edit_is_all_or_nothing() {
    let bus = Bus::new();
    let a = bus.claim("a", gpa(0x1000), 0x1000, constant(1)).unwrap();
    let b = bus.claim("b", gpa(0x2000), 0x1000, constant(2)).unwrap();
    bus.edit(|draft| {
        draft.move_region(a, gpa(0x9000))?;
        draft.move_region(b, gpa(0x1000))?;
        draft.move_region(a, gpa(0x2000))
    })
    .unwrap();
    let mut cursor = bus.cursor();
    assert_eq!(cursor.read(gpa(0x1000), IoSize::B1).value, 2);
    let generation = bus.generation();
    let failed: Result<(), BusError<Gpa>> = bus.edit(|draft| {
        draft.release(a)?;
        draft.release(a)
    });
    assert!(failed.is_err());
    assert_eq!(bus.generation(), generation);
    assert_eq!(cursor.read(gpa(0x2000), IoSize::B1).value, 1);
}

/// A device that moves itself from inside its handler, and uses the bus once more when it is dropped.
struct Mover {
    bus: Weak<Bus<Gpa>>,
    id: Mutex<Option<RegionId>>,
}

impl Device for Mover {
    fn access(&self, _: u64, _: IoSize, op: IoOp) -> IoOutcome {
        let (IoOp::Write(to), Some(bus), Some(id)) = (op, self.bus.upgrade(), *self.id.lock().unwrap()) else {
            return IoOutcome::Value(7);
        };
        if to == 0 {
            bus.release(id).unwrap();
        } else {
            bus.move_region(id, Gpa::new(to)).unwrap();
        }
        IoOutcome::Done
    }
    fn reset(&self) {}
}

impl Drop for Mover {
    fn drop(&mut self) {
        if let Some(bus) = self.bus.upgrade() {
            bus.claim("left behind", Gpa::new(0xdead_0000), 1, Arc::new(Constant(0)))
                .unwrap();
        }
    }
}

#[test]
fn handler_may_move_and_release_its_own_region_and_drop_may_claim() {
    let bus = Arc::new(Bus::new());
    let mover = Arc::new(Mover {
        bus: Arc::downgrade(&bus),
        id: Mutex::new(None),
    });
    let id = bus.claim("mover", gpa(0x1000), 8, mover.clone()).unwrap();
    *mover.id.lock().unwrap() = Some(id);
    drop(mover);
    let mut cursor = bus.cursor();
    cursor.write(gpa(0x1000), IoSize::B8, 0x5000);
    assert_eq!(cursor.read(gpa(0x1000), IoSize::B8).by, AnsweredBy::Nobody);
    assert_eq!(cursor.read(gpa(0x5000), IoSize::B8).value, 7);
    cursor.write(gpa(0x5000), IoSize::B8, 0);
    assert_eq!(cursor.read(gpa(0x5000), IoSize::B8).by, AnsweredBy::Nobody);
    assert_eq!(bus.regions().len(), 1, "the drop claimed a region");
}

#[test]
fn dropping_a_device_with_its_last_claim_refused_may_use_the_bus() {
    let bus = Arc::new(Bus::new());
    bus.claim("a", gpa(0x1000), 8, constant(0)).unwrap();
    let mover = Mover {
        bus: Arc::downgrade(&bus),
        id: Mutex::new(None),
    };
    assert!(bus.claim("mover", gpa(0x1000), 8, Arc::new(mover)).is_err());
    assert_eq!(bus.regions().len(), 2);
}

#[test]
fn repeated_access_to_a_crowded_page_is_searched_once() {
    let bus = Bus::new();
    for slot in 0..8 {
        bus.claim("virtio", gpa(0xd000_0000 + slot * 0x200), 0x200, constant(slot))
            .unwrap();
    }
    let mut cursor = bus.cursor();
    for _ in 0..100 {
        assert_eq!(cursor.read(gpa(0xd000_0650), IoSize::B4).value, 3);
    }
    let stats = cursor.stats();
    assert_eq!((stats.searched, stats.remembered, stats.direct), (1, 99, 0));
    bus.claim("other", gpa(0), 1, constant(9)).unwrap();
    assert_eq!(cursor.read(gpa(0xd000_0650), IoSize::B4).value, 3);
    assert_eq!(cursor.stats().searched, 2, "a change of the bus makes it forget");
}

#[test]
fn region_counts_survive_changes_of_the_bus() {
    let bus = Bus::new();
    let a = bus.claim("a", gpa(0x1000), 8, constant(1)).unwrap();
    let mut cursor = bus.cursor();
    cursor.read(gpa(0x1000), IoSize::B1);
    bus.claim("b", gpa(0), 8, constant(1)).unwrap();
    cursor.write(gpa(0x1000), IoSize::B1, 0);
    cursor.read(gpa(0x1000), IoSize::B1);
    bus.release(a).unwrap();
    cursor.read(gpa(0x1000), IoSize::B1);
    let stats = cursor.region_stats();
    assert_eq!(
        stats,
        [RegionStats {
            id: a,
            name: "a".into(),
            reads: 2,
            writes: 1
        }]
    );
    assert_eq!(cursor.stats().generations_seen, 2);
}

#[test]
fn effect_is_passed_on_with_the_value() {
    struct Off;
    impl Device for Off {
        fn access(&self, _: u64, _: IoSize, _: IoOp) -> IoOutcome {
            IoOutcome::Effect {
                value: 0x1234,
                effect: Box::new(Effect::PowerOff),
            }
        }
        fn reset(&self) {}
    }
    let bus = Bus::new();
    bus.claim("off", Port::new(4), 4, Arc::new(Off)).unwrap();
    let answer = bus.cursor().read(Port::new(4), IoSize::B1);
    assert_eq!(
        (answer.value, answer.effect.as_deref()),
        (0x34, Some(&Effect::PowerOff))
    );
}

#[test]
fn each_device_is_listed_once_for_reset() {
    let bus = Bus::new();
    let shared = constant(0);
    bus.claim("a", Port::new(0x60), 1, shared.clone()).unwrap();
    bus.claim("a", Port::new(0x64), 1, shared).unwrap();
    bus.claim("b", Port::new(0x70), 2, constant(1)).unwrap();
    assert_eq!(bus.devices().len(), 2);
}

/// Counts writes that reach it.
#[derive(Default)]
struct Writes(AtomicU64);

impl Device for Writes {
    fn access(&self, _: u64, _: IoSize, op: IoOp) -> IoOutcome {
        match op {
            IoOp::Read => IoOutcome::Value(self.0.load(Ordering::Relaxed)),
            IoOp::Write(_) => {
                self.0.fetch_add(1, Ordering::Relaxed);
                IoOutcome::Done
            }
        }
    }
    fn reset(&self) {}
}

fn event(addr: u64, matching: EventMatch) -> IoEvent<Gpa> {
    IoEvent {
        addr: gpa(addr),
        matching,
        event: EventHandle::new().unwrap(),
    }
}

/// The count of the eventfd, taken.
fn signals(event: &IoEvent<Gpa>) -> u64 {
    event.event.eventfd().read().unwrap_or(0)
}

#[test]
fn matching_write_signals_and_does_not_reach_the_device() {
    let bus = Bus::new();
    let device = Arc::new(Writes::default());
    bus.claim("queue", gpa(0x1000), 0x100, device.clone()).unwrap();
    let exact = event(0x1050, EventMatch::Value(IoSize::B2, 3));
    let sized = event(0x1060, EventMatch::Size(IoSize::B4));
    let any = event(0x1070, EventMatch::Anything);
    for event in [&exact, &sized, &any] {
        bus.assign_event(event.clone()).unwrap();
    }
    let mut cursor = bus.cursor();
    for (addr, size, value, taken_by) in [
        (0x1050, IoSize::B2, 3, Some(&exact)),
        (0x1050, IoSize::B2, 4, None),
        (0x1050, IoSize::B4, 3, None),
        (0x1051, IoSize::B2, 3, None),
        (0x1060, IoSize::B4, 77, Some(&sized)),
        (0x1060, IoSize::B8, 77, None),
        (0x1070, IoSize::B1, 0, Some(&any)),
        (0x1070, IoSize::B8, 0, Some(&any)),
        (0x1071, IoSize::B1, 0, None),
    ] {
        let before = device.0.load(Ordering::Relaxed);
        cursor.write(gpa(addr), size, value);
        let reached = device.0.load(Ordering::Relaxed) - before;
        assert_eq!(reached, u64::from(taken_by.is_none()), "{addr:#x} {size:?} {value}");
        for event in [&exact, &sized, &any] {
            assert_eq!(
                signals(event),
                u64::from(taken_by == Some(event)),
                "{addr:#x} {size:?} {value}"
            );
        }
    }
    assert_eq!(cursor.read(gpa(0x1070), IoSize::B1).value, 5, "reads go to the device");
    bus.deassign_event(&any).unwrap();
    cursor.write(gpa(0x1070), IoSize::B1, 0);
    assert_eq!((signals(&any), device.0.load(Ordering::Relaxed)), (0, 6));
}

#[test]
fn event_outside_any_region_takes_its_writes() {
    let bus = Bus::new();
    let any = event(0x9000, EventMatch::Anything);
    bus.assign_event(any.clone()).unwrap();
    let mut cursor = bus.cursor();
    assert_eq!(cursor.write(gpa(0x9000), IoSize::B8, 5).by, AnsweredBy::Event);
    assert_eq!(cursor.read(gpa(0x9000), IoSize::B8).by, AnsweredBy::Nobody);
    assert_eq!(signals(&any), 1);
    assert_eq!((cursor.stats().events, cursor.stats().direct), (1, 0));
}

#[test]
fn event_refusals_are_the_kernels() {
    let bus = Bus::new();
    let any = event(0x9000, EventMatch::Anything);
    bus.assign_event(any.clone()).unwrap();
    let error = bus
        .assign_event(event(0x9000, EventMatch::Value(IoSize::B4, 7)))
        .unwrap_err();
    assert_eq!(error.errno(), libc::EEXIST);
    assert_eq!(
        error.to_string(),
        "MMIO ioeventfd for 4-byte writes of 0x7 at 0x9000 would take what another one takes: any write at 0x9000"
    );
    let other_fd = IoEvent {
        event: EventHandle::new().unwrap(),
        ..any.clone()
    };
    assert_eq!(bus.deassign_event(&other_fd).unwrap_err().errno(), libc::ENOENT);
    let past_end = event(u64::MAX - 2, EventMatch::Size(IoSize::B4));
    assert_eq!(bus.assign_event(past_end).unwrap_err().errno(), libc::EINVAL);
    bus.deassign_event(&any).unwrap();
    assert!(bus.events().is_empty());
}

/// Records what it is told, and refuses on request.
#[derive(Default)]
struct Recorder {
    log: Mutex<Vec<String>>,
    refuse: bool,
}

impl Recorder {
    fn take(&self, what: String) -> io::Result<()> {
        if self.refuse {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.log.lock().unwrap().push(what);
        Ok(())
    }
}

impl BusMirror<Gpa> for Recorder {
    fn assign_event(&self, event: &IoEvent<Gpa>) -> io::Result<()> {
        self.take(format!("+{event}"))
    }
    fn deassign_event(&self, event: &IoEvent<Gpa>) -> io::Result<()> {
        self.take(format!("-{event}"))
    }
    fn coalesce(&self, zone: BusRange<Gpa>) -> io::Result<()> {
        self.take(format!("+{zone}"))
    }
    fn uncoalesce(&self, zone: BusRange<Gpa>) -> io::Result<()> {
        self.take(format!("-{zone}"))
    }
}

#[test]
fn mirror_is_told_of_old_and_new_registrations() {
    let bus = Bus::new();
    let first = event(0x9000, EventMatch::Anything);
    let zone = |start, len| BusRange::new(gpa(start), len).unwrap();
    bus.apply(BusChange::AssignEvent(first.clone())).unwrap();
    bus.apply(BusChange::Coalesce(zone(0xa_0000, 0x2_0000))).unwrap();
    let mirror = Arc::new(Recorder::default());
    bus.set_mirror(mirror.clone()).unwrap();
    bus.apply(BusChange::DeassignEvent(first)).unwrap();
    bus.apply(BusChange::Coalesce(zone(0x10, 4))).unwrap();
    bus.apply(BusChange::Uncoalesce(zone(0xa_1000, 8))).unwrap();
    let log = mirror.log.lock().unwrap().join(" ");
    assert_eq!(
        log,
        "+any write at 0x9000 +0xa0000..0xc0000 -any write at 0x9000 +0x10..0x14 -0xa1000..0xa1008"
    );
    assert_eq!(bus.coalesced(), [zone(0x10, 4)]);
}

#[test]
fn mirrors_refusal_leaves_the_bus_as_it_was() {
    let bus = Bus::new();
    bus.set_mirror(Arc::new(Recorder {
        refuse: true,
        ..Recorder::default()
    }))
    .unwrap();
    let error = bus.assign_event(event(0x9000, EventMatch::Anything)).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
    assert!(bus.events().is_empty());
    assert!(bus.coalesce(BusRange::new(gpa(0), 1).unwrap()).is_err());
    assert!(bus.coalesced().is_empty());
}
