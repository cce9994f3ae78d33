//! Dirty logging by write protection and by dirty flags; ageing.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/machine.rs"]
mod machine;

use common::{WP, regs};
use machine::{Machine, Seen, range, vcpu};
use umbra_memslots::{Gfn, GfnRange};
use umbra_mmu::NoObserver;
use umbra_mmu::shadow::{DirtyLog, HostParams, ShadowVcpu};
use umbra_mmu::x86::{Access, AccessKind, PagingRegs, Privilege};

const READ: Access = Access::new(AccessKind::Read, Privilege::User);
const WRITE: Access = Access::new(AccessKind::Write, Privilege::User);
const USED: u64 = 0x67;

/// Four levels at pages 1 to 4; page 8 + n at address n << 12.
fn guest(log: DirtyLog) -> (Machine, PagingRegs, ShadowVcpu) {
    let mut machine = Machine::new(HostParams::x86(46), 16, 64);
    machine.mmu.start_logging(&mut machine.tlb, all(), log);
    for page in 1..4u64 {
        machine.ram.memory.set(page << 12, (page + 1) << 12 | USED);
    }
    for page in 0..4u64 {
        machine.ram.memory.set(0x4000 + 8 * page, (8 + page) << 12 | USED);
    }
    machine.ram.log.set(log);
    let mut regs = regs(4, 0x1000);
    regs.cr0 |= WP;
    let vcpu = vcpu(&regs);
    (machine, regs, vcpu)
}

fn all() -> GfnRange {
    range(0, 16)
}

fn numbers(frames: &[Gfn]) -> Vec<u64> {
    frames.iter().map(|gfn| gfn.get()).collect()
}

#[test]
fn write_protection_makes_the_first_write_known_and_no_other() {
    let (mut machine, regs, mut own) = guest(DirtyLog::Off);
    machine.access(&mut own, &regs, 0, WRITE);
    machine.access(&mut own, &regs, 0x1000, WRITE);
    machine.ram.log.set(DirtyLog::WriteProtection);
    for _ in 0..2 {
        machine.ram.dirty.borrow_mut().clear();
        machine
            .mmu
            .start_logging(&mut machine.tlb, all(), DirtyLog::WriteProtection);
        machine.access(&mut own, &regs, 0x1000, READ);
        assert!(machine.ram.dirty.borrow().is_empty());
        let before = own.stats().faults;
        for _ in 0..3 {
            assert_eq!(machine.access(&mut own, &regs, 0x1000, WRITE), Seen::Ram(0x9000));
        }
        assert_eq!(own.stats().faults, before + 1);
        assert!(machine.ram.dirty.borrow().iter().eq(&[9]));
    }
}

#[test]
fn dirty_flags_are_collected_without_any_fault() {
    let (mut machine, regs, mut own) = guest(DirtyLog::DirtyFlags);
    for page in 0..3u64 {
        machine.access(&mut own, &regs, page << 12, READ);
    }
    let collected = |machine: &mut Machine| numbers(&machine.mmu.collect_dirty(&mut machine.tlb, all()));
    assert_eq!(collected(&mut machine), [0; 0]);
    let before = own.stats().faults;
    machine.access(&mut own, &regs, 0x1000, WRITE);
    machine.access(&mut own, &regs, 0x2000, WRITE);
    assert_eq!(own.stats().faults, before);
    let flushes = machine.tlb.all;
    assert_eq!(collected(&mut machine), [9, 10]);
    assert!(machine.tlb.all > flushes);
    assert_eq!(collected(&mut machine), [0; 0]);
    // Written by a leaf that is gone when the log is read; and a first touch that is a write.
    machine.access(&mut own, &regs, 0x1000, WRITE);
    machine.access(&mut own, &regs, 0x3000, WRITE);
    machine.mmu.zap_all(&mut NoObserver, &mut machine.tlb);
    assert_eq!(collected(&mut machine), [9, 11]);
    assert!(machine.ram.dirty.borrow().is_empty());
}

#[test]
fn dirty_flags_of_leaves_made_before_count_as_well() {
    let (mut machine, regs, mut own) = guest(DirtyLog::Off);
    machine.access(&mut own, &regs, 0x1000, WRITE);
    machine.ram.log.set(DirtyLog::DirtyFlags);
    machine.mmu.start_logging(&mut machine.tlb, all(), DirtyLog::DirtyFlags);
    machine.access(&mut own, &regs, 0x1000, WRITE);
    assert_eq!(numbers(&machine.mmu.collect_dirty(&mut machine.tlb, all())), [9]);
}

#[test]
fn read_fault_on_a_written_page_does_not_lose_what_was_written() {
    let (mut machine, regs, mut own) = guest(DirtyLog::DirtyFlags);
    machine.access(&mut own, &regs, 0x1000, WRITE);
    // Somebody else faults on the same leaf.
    let mut frames = machine::Frames(machine.ram.clone());
    let fault = umbra_mmu::shadow::ShadowFault::from_code(
        umbra_memslots::Gva::new(0x1000),
        umbra_mmu::x86::PageFaultCode::new(4),
    );
    machine
        .mmu
        .page_fault(&mut own, &*machine.ram, &mut frames, &mut machine.tlb, fault);
    assert_eq!(numbers(&machine.mmu.collect_dirty(&mut machine.tlb, all())), [9]);
}

#[test]
fn read_only_slot_is_never_dirty() {
    let (mut machine, regs, mut own) = guest(DirtyLog::WriteProtection);
    machine.set_slots(0xffff, 1 << 9);
    assert_eq!(machine.access(&mut own, &regs, 0x1000, READ), Seen::Ram(0x9000));
    assert_eq!(machine.access(&mut own, &regs, 0x1000, WRITE), Seen::ReadOnly(0x9000));
    assert!(machine.ram.dirty.borrow().is_empty());
}

#[test]
fn pages_that_were_used_since_are_told_from_those_that_were_not() {
    let (mut machine, regs, mut own) = guest(DirtyLog::Off);
    for page in 0..3u64 {
        machine.access(&mut own, &regs, page << 12, READ);
    }
    assert_eq!(numbers(&machine.mmu.collect_accessed(all())), [8, 9, 10]);
    machine.access(&mut own, &regs, 0x1000, READ);
    assert_eq!(numbers(&machine.mmu.collect_accessed(all())), [9]);
    assert_eq!(numbers(&machine.mmu.collect_accessed(all())), [0; 0]);
}
