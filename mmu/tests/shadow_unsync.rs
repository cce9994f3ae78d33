//! Guest tables of the last level that the guest writes to without faults, and how their shadows catch up.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/machine.rs"]
mod machine;
#[path = "common/recorder.rs"]
mod recorder;

use common::{WP, regs};
use machine::{Machine, Seen};
use proptest::prelude::*;
use recorder::Recorder;
use umbra_memslots::{Gpa, Gva};
use umbra_mmu::shadow::{HostParams, ShadowVcpu};
use umbra_mmu::x86::{Access, AccessKind, PagingRegs, PagingState, Privilege};

const READ: Access = Access::new(AccessKind::Read, Privilege::User);
const WRITE: Access = Access::new(AccessKind::Write, Privilege::User);
/// Present, writable, user, accessed, dirty.
const USED: u64 = 0x67;
const TABLE: u64 = 0x4000;
/// A page without a slot.
const HOLE: u64 = 14;

type Cpu = ShadowVcpu<Recorder>;

/// Four levels at pages 1 to 4; the last table maps page 8 + n at address n << 12, itself at 0x4000, and the hole at
/// 0x5000. It is unsync.
fn guest() -> (Machine, PagingRegs, Cpu) {
    let mut machine = Machine::new(HostParams::x86(46), 16, 64);
    machine.set_slots(0xffff & !(1 << HOLE), 0);
    for page in 1..4u64 {
        machine.ram.memory.set(page << 12, (page + 1) << 12 | USED);
    }
    for page in 0..4u64 {
        machine.ram.memory.set(TABLE + 8 * page, (8 + page) << 12 | USED);
    }
    machine.ram.memory.set(TABLE + 0x20, TABLE | USED);
    machine.ram.memory.set(TABLE + 0x28, HOLE << 12 | USED);
    let mut regs = regs(4, 0x1000);
    regs.cr0 |= WP;
    let mut own = ShadowVcpu::with_observer(PagingState::new(&regs), Recorder::default());
    assert_eq!(machine.access(&mut own, &regs, 0x1000, WRITE), Seen::Ram(0x9000));
    assert_eq!(machine.access(&mut own, &regs, 0x4008, WRITE), Seen::Ram(TABLE + 8));
    assert!(
        own.observer_mut()
            .take()
            .contains(&"kvm_mmu_unsync_page gfn 4 role 3701".to_owned())
    );
    (machine, regs, own)
}

fn faults(cpu: &Cpu) -> u64 {
    cpu.stats().faults
}

#[test]
fn table_is_written_without_faults_and_the_change_seen_after_invlpg_of_that_page() {
    let (mut machine, regs, mut own) = guest();
    let before = faults(&own);
    assert_eq!(machine.access(&mut own, &regs, 0x4010, WRITE), Seen::Ram(TABLE + 0x10));
    machine.ram.memory.set(TABLE + 8, 0xb000 | USED);
    // As long as the guest doesn't flush, it may see the one or the other.
    assert_eq!(machine.access(&mut own, &regs, 0x1000, READ), Seen::Ram(0x9000));
    assert_eq!(faults(&own), before);
    machine.mmu.invlpg(
        &mut own,
        &*machine.ram,
        &mut machine.frames(),
        &mut machine.tlb,
        Gva::new(0x2000),
    );
    assert_eq!(machine.access(&mut own, &regs, 0x1000, READ), Seen::Ram(0x9000));
    machine.mmu.invlpg(
        &mut own,
        &*machine.ram,
        &mut machine.frames(),
        &mut machine.tlb,
        Gva::new(0x1fff),
    );
    assert_eq!(machine.access(&mut own, &regs, 0x1000, READ), Seen::Ram(0xb000));
    // The table is still writable.
    let before = faults(&own);
    machine.access(&mut own, &regs, 0x4010, WRITE);
    assert_eq!(faults(&own), before);
}

#[test]
fn page_is_forgotten_with_the_fault_that_the_guest_gets() {
    let (mut machine, regs, mut own) = guest();
    machine.ram.memory.set(TABLE + 0x10, 0xa000 | USED & !2);
    assert_eq!(machine.access(&mut own, &regs, 0x2000, READ), Seen::Ram(0xa000));
    machine.ram.memory.set(TABLE + 0x10, 0xb000 | USED & !2);
    assert_eq!(machine.access(&mut own, &regs, 0x2000, READ), Seen::Ram(0xa000));
    assert_eq!(machine.access(&mut own, &regs, 0x2000, WRITE), Seen::Fault(7));
    assert_eq!(machine.access(&mut own, &regs, 0x2000, READ), Seen::Ram(0xb000));
}

#[test]
fn loading_cr3_brings_everything_up_to_date_and_protects_the_table_again() {
    let (mut machine, regs, mut own) = guest();
    machine.access(&mut own, &regs, 0, WRITE);
    machine.access(&mut own, &regs, 0x2000, WRITE);
    machine.ram.memory.set(TABLE, 0xb000 | USED);
    machine.ram.memory.set(TABLE + 8, 0);
    machine.ram.memory.set(TABLE + 0x10, 0xa000 | USED & !2);
    own.observer_mut().take();
    own.set_state(PagingState::new(&regs));
    let flushes = machine.tlb.all;
    assert_eq!(machine.access(&mut own, &regs, 0, READ), Seen::Ram(0xb000));
    assert!(machine.tlb.all > flushes);
    assert_eq!(own.observer_mut().take()[0], "kvm_mmu_sync_page gfn 4 role 3701");
    assert_eq!(machine.access(&mut own, &regs, 0x1000, READ), Seen::Fault(4));
    // Read-only now, and known to be so without a walk.
    assert_eq!(machine.access(&mut own, &regs, 0x2000, READ), Seen::Ram(0xa000));
    assert_eq!(machine.access(&mut own, &regs, 0x2000, WRITE), Seen::Fault(7));
    // The first write to the table makes it unsync once more.
    own.observer_mut().take();
    machine.access(&mut own, &regs, 0x4000, WRITE);
    assert!(
        own.observer()
            .0
            .contains(&"kvm_mmu_unsync_page gfn 4 role 3701".to_owned())
    );
}

#[test]
fn cpu_that_loads_the_root_of_another_catches_up_with_what_that_one_wrote() {
    let (mut machine, regs, mut own) = guest();
    machine.ram.memory.set(TABLE + 8, 0xb000 | USED);
    let mut other = machine::vcpu(&regs);
    assert_eq!(machine.access(&mut other, &regs, 0x1000, READ), Seen::Ram(0xb000));
    assert_eq!(machine.access(&mut own, &regs, 0x1000, READ), Seen::Ram(0xb000));
}

#[test]
fn unsync_table_that_becomes_a_directory_is_tracked_from_then_on() {
    let (mut machine, regs, mut own) = guest();
    // The last table as the directory of the second GiB, whose first entry leads to page 8 as a table.
    machine.ram.memory.set(0x8008, 0xa000 | USED);
    machine.ram.memory.set(0x2008, TABLE | USED);
    assert_eq!(
        machine.access(&mut own, &regs, (1 << 30) + 0x1000, READ),
        Seen::Ram(0xa000)
    );
    let zapped = "kvm_mmu_prepare_zap_page gfn 4 role 3701".to_owned();
    assert!(own.observer().0.contains(&zapped));
    assert_eq!(machine.access(&mut own, &regs, 0x4000, WRITE), Seen::Tracked(TABLE));
}

#[test]
fn zapped_parent_takes_its_unsync_pages_along() {
    let (mut machine, regs, mut own) = guest();
    own.observer_mut().take();
    // Half of an entry of the directory: data.
    machine
        .mmu
        .guest_wrote(own.observer_mut(), &mut machine.tlb, Gpa::new(0x3ff1), 2);
    assert_eq!(
        own.observer_mut().take(),
        [
            "kvm_mmu_prepare_zap_page gfn 3 role 3702",
            "kvm_mmu_prepare_zap_page gfn 4 role 3701",
            "kvm_mmu_sync_page gfn 4 role 3701",
        ]
    );
    assert_eq!(machine.access(&mut own, &regs, 0x1000, READ), Seen::Ram(0x9000));
}

#[test]
fn mmio_whose_entry_was_changed_is_cleared_by_sync() {
    let (mut machine, regs, mut own) = guest();
    assert_eq!(machine.access(&mut own, &regs, 0x5000, WRITE), Seen::Mmio(HOLE << 12));
    machine.ram.memory.set(TABLE + 0x28, 0x3_0000_0000 | USED);
    own.set_state(PagingState::new(&regs));
    assert_eq!(
        machine.access(&mut own, &regs, 0x5000, WRITE),
        Seen::Mmio(0x3_0000_0000)
    );
    // Read-only from now on: the entry says so before anybody walks.
    machine.access(&mut own, &regs, 0x4000, WRITE);
    machine.ram.memory.set(TABLE + 0x28, 0x3_0000_0000 | USED & !2);
    own.set_state(PagingState::new(&regs));
    assert_eq!(machine.access(&mut own, &regs, 0x5000, WRITE), Seen::Fault(7));
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Touch,
    SlotAppears,
    SlotVanishes,
    GuestWritesTable,
    LoadCr3,
    Invlpg,
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Touch),
        Just(Event::SlotAppears),
        Just(Event::SlotVanishes),
        Just(Event::GuestWritesTable),
        Just(Event::LoadCr3),
        Just(Event::Invlpg),
    ]
}

fn play(events: &[Event]) -> Result<(), TestCaseError> {
    let (mut machine, regs, mut own) = guest();
    let all = 0xffffu64;
    for event in events {
        match event {
            Event::Touch => {
                let slot = machine.ram.present.get() >> HOLE & 1 == 1;
                let expected = if slot {
                    Seen::Ram(HOLE << 12)
                } else {
                    Seen::Mmio(HOLE << 12)
                };
                prop_assert_eq!(machine.access(&mut own, &regs, 0x5000, WRITE), expected);
            }
            Event::SlotAppears => machine.set_slots(all, 0),
            Event::SlotVanishes => machine.set_slots(all & !(1 << HOLE), 0),
            Event::GuestWritesTable => {
                let at = machine.access(&mut own, &regs, 0x4028, WRITE);
                prop_assert_eq!(at, Seen::Ram(TABLE + 0x28));
            }
            Event::LoadCr3 => own.set_state(PagingState::new(&regs)),
            Event::Invlpg => machine.mmu.invlpg(
                &mut own,
                &*machine.ram,
                &mut machine.frames(),
                &mut machine.tlb,
                Gva::new(0x5000),
            ),
        }
    }
    Ok(())
}

#[test]
fn slot_created_between_mark_and_sync_is_reached_by_the_next_access() {
    use Event::{GuestWritesTable, Invlpg, LoadCr3, SlotAppears, Touch};
    for sync in [LoadCr3, Invlpg] {
        play(&[Touch, GuestWritesTable, SlotAppears, sync, Touch]).unwrap();
        play(&[GuestWritesTable, Touch, SlotAppears, sync, LoadCr3, Touch]).unwrap();
    }
}

proptest! {
    #[test]
    fn sync_never_revives_mmio(events in proptest::collection::vec(any_event(), 1..40)) {
        play(&events)?;
    }
}
