//! Large leaves: where they are made, and when they are split.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/machine.rs"]
mod machine;
#[path = "common/recorder.rs"]
mod recorder;

use common::{PSE, WP, regs};
use machine::{Machine, Seen, range};
use recorder::Recorder;
use umbra_mmu::NoObserver;
use umbra_mmu::shadow::{DirtyLog, HostParams, ShadowVcpu};
use umbra_mmu::x86::{Access, AccessKind, PagingRegs, PagingState, Privilege};

const READ: Access = Access::new(AccessKind::Read, Privilege::User);
const WRITE: Access = Access::new(AccessKind::Write, Privilege::User);
const USED: u64 = 0x67;
const LARGE: u64 = 0xe7;
const GIB: u64 = 1 << 30;
const MIB2: u64 = 1 << 21;

type Cpu = ShadowVcpu<Recorder>;

/// Four levels at pages 1 to 4. The directory (page 3) maps 2 MiB pages at 1 GiB and the lowest 2 MiB, the table above
/// it (page 2) a page of 1 GiB.
fn guest(largest: u8) -> (Machine, PagingRegs, Cpu) {
    let machine = Machine::new(HostParams::x86(46), 16, 64);
    machine.ram.high.set(true);
    machine.ram.low_large.set(true);
    machine.ram.largest.set(largest);
    let memory = &machine.ram.memory;
    memory.set(0x1000, 0x2000 | USED);
    memory.set(0x2000, 0x3000 | USED);
    memory.set(0x2008, GIB | LARGE);
    memory.set(0x3000, 0x4000 | USED);
    memory.set(0x3008, (GIB + MIB2) | LARGE);
    memory.set(0x3010, LARGE);
    memory.set(0x4000, 0x8000 | USED);
    let mut regs = regs(4, 0x1000);
    regs.cr0 |= WP;
    let own = ShadowVcpu::with_observer(PagingState::new(&regs), Recorder::default());
    (machine, regs, own)
}

fn levels_set(cpu: &mut Cpu) -> Vec<char> {
    let set = |event: &String| {
        event
            .starts_with("kvm_mmu_set_spte")
            .then(|| event.chars().last().unwrap())
    };
    cpu.observer_mut().take().iter().filter_map(set).collect()
}

#[test]
fn guest_page_of_two_megabytes_is_one_fault() {
    let (mut machine, regs, mut own) = guest(2);
    for offset in [0, 0x1000, MIB2 - 8] {
        let seen = machine.access(&mut own, &regs, MIB2 + offset, WRITE);
        assert_eq!(seen, Seen::Ram(GIB + MIB2 + offset));
    }
    assert_eq!((own.stats().faults, levels_set(&mut own)), (1, vec!['2']));
    assert_eq!(machine.mmu.leaves(), 1);
}

#[test]
fn guest_page_of_one_gigabyte_is_as_large_as_the_memory_allows() {
    for (largest, level, faults) in [(1, '1', 3), (2, '2', 2), (3, '3', 1)] {
        let (mut machine, regs, mut own) = guest(largest);
        for offset in [0, 0x1000, GIB - 8] {
            let seen = machine.access(&mut own, &regs, GIB + offset, WRITE);
            assert_eq!(seen, Seen::Ram(GIB + offset));
        }
        assert_eq!(own.stats().faults, faults);
        assert!(levels_set(&mut own).iter().all(|&set| set == level));
    }
}

#[test]
fn without_paging_memory_is_mapped_by_two_megabytes() {
    let (mut machine, _, _) = guest(3);
    let regs = regs(0, 0);
    let mut own = ShadowVcpu::with_observer(PagingState::new(&regs), Recorder::default());
    machine.ram.largest.set(2);
    for offset in [0, MIB2 - 8] {
        assert_eq!(
            machine.access(&mut own, &regs, GIB + offset, WRITE),
            Seen::Ram(GIB + offset)
        );
    }
    assert_eq!(levels_set(&mut own), ['2']);
}

#[test]
fn four_megabyte_page_is_two_large_leaves() {
    let (mut machine, _, _) = guest(2);
    machine.ram.memory.set32(0x5000, 0x4000_00e7);
    let mut regs = regs(2, 0x5000);
    regs.cr4 |= PSE;
    let mut own = ShadowVcpu::with_observer(PagingState::new(&regs), Recorder::default());
    for offset in [0, 0x1000, MIB2, 2 * MIB2 - 8] {
        assert_eq!(machine.access(&mut own, &regs, offset, WRITE), Seen::Ram(GIB + offset));
    }
    assert_eq!(levels_set(&mut own), ['2', '2']);
}

#[test]
fn memory_that_holds_shadowed_tables_is_mapped_page_by_page() {
    let (mut machine, regs, mut own) = guest(2);
    // The lowest 2 MiB hold the tables themselves.
    assert_eq!(
        machine.access(&mut own, &regs, 2 * MIB2 + 0x9000, WRITE),
        Seen::Ram(0x9000)
    );
    assert_eq!(
        machine.access(&mut own, &regs, 2 * MIB2 + 0x3000, WRITE),
        Seen::Tracked(0x3000)
    );
    assert_eq!(levels_set(&mut own), ['1', '1']);
}

#[test]
fn large_leaf_is_split_when_a_table_appears_in_it() {
    let (mut machine, first, mut own) = guest(2);
    // Without paging nothing is shadowed, and the lowest 2 MiB are one leaf.
    let flat = regs(0, 0);
    own.set_state(PagingState::new(&flat));
    assert_eq!(machine.access(&mut own, &flat, 0x1000, WRITE), Seen::Ram(0x1000));
    assert_eq!(levels_set(&mut own), ['2']);
    own.set_state(PagingState::new(&first));
    assert_eq!(machine.access(&mut own, &first, 0, WRITE), Seen::Ram(0x8000));
    own.set_state(PagingState::new(&flat));
    own.observer_mut().take();
    assert_eq!(machine.access(&mut own, &flat, 0x5000, READ), Seen::Ram(0x5000));
    assert_eq!(levels_set(&mut own), [' '; 0], "reading needs no split");
    assert_eq!(machine.access(&mut own, &flat, 0x1000, WRITE), Seen::Tracked(0x1000));
    assert_eq!(machine.access(&mut own, &flat, 0x5000, WRITE), Seen::Ram(0x5000));
    // The first is known to be a table, and stays as it is; the second is a neighbour.
    assert_eq!(levels_set(&mut own), ['1']);
    // The tables are gone: the next fault makes it large again.
    machine.mmu.zap_range(&mut NoObserver, &mut machine.tlb, range(0, 16));
    assert_eq!(machine.access(&mut own, &flat, 0x1000, WRITE), Seen::Ram(0x1000));
    assert_eq!(levels_set(&mut own), ['2']);
}

#[test]
fn large_leaf_is_split_by_dirty_logging_and_dropped_by_part_of_its_range() {
    let (mut machine, regs, mut own) = guest(2);
    machine.access(&mut own, &regs, MIB2, WRITE);
    machine.ram.log.set(DirtyLog::WriteProtection);
    let slot = range(1 << 18, 1 << 18);
    machine
        .mmu
        .start_logging(&mut machine.tlb, slot, DirtyLog::WriteProtection);
    machine.access(&mut own, &regs, MIB2 + 0x5000, READ);
    assert!(machine.ram.dirty.borrow().is_empty());
    machine.access(&mut own, &regs, MIB2 + 0x5000, WRITE);
    assert_eq!(levels_set(&mut own), ['2', '1']);
    let gfn = (1 << 18) + 512 + 5;
    assert!(machine.ram.dirty.borrow().iter().eq(&[gfn]));

    machine.ram.log.set(DirtyLog::Off);
    machine.mmu.zap_all(&mut NoObserver, &mut machine.tlb);
    machine.access(&mut own, &regs, MIB2, WRITE);
    assert_eq!(machine.mmu.leaves(), 1);
    machine.mmu.zap_range(&mut NoObserver, &mut machine.tlb, range(gfn, 1));
    assert_eq!(machine.mmu.leaves(), 0);
}

#[test]
fn leaves_that_were_small_for_a_log_become_one_again() {
    let (mut machine, regs, mut own) = guest(2);
    let area = range((GIB + MIB2) >> 12, 512);
    machine.ram.log.set(DirtyLog::WriteProtection);
    for page in 0..4 {
        machine.access(&mut own, &regs, MIB2 + (page << 12), WRITE);
    }
    // And a page that the guest maps as a small one.
    machine.access(&mut own, &regs, 0, WRITE);
    assert_eq!(levels_set(&mut own), ['1'; 5]);
    let mut frames = machine::Frames(machine.ram.clone());
    let all = range(0, 1 << 20);
    assert_eq!(machine.mmu.recover_large(&mut frames, &mut machine.tlb, all), 0);
    machine.ram.log.set(DirtyLog::Off);
    machine.mmu.start_logging(&mut machine.tlb, area, DirtyLog::Off);
    let flushes = machine.tlb.all;
    assert_eq!(machine.mmu.recover_large(&mut frames, &mut machine.tlb, all), 4);
    assert!(machine.tlb.all > flushes);
    let before = own.stats().faults;
    for page in 0..4 {
        let seen = machine.access(&mut own, &regs, MIB2 + (page << 12), WRITE);
        assert_eq!(seen, Seen::Ram(GIB + MIB2 + (page << 12)));
    }
    assert_eq!((own.stats().faults, levels_set(&mut own)), (before + 1, vec!['2']));
    assert_eq!(machine.mmu.leaves(), 2);
}
