//! Roots that are remembered, PCIDs, table memory that gets scarce, memory that the host takes away.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/machine.rs"]
mod machine;
#[path = "common/recorder.rs"]
mod recorder;

use common::{AC, WP, regs};
use machine::{Machine, Seen, range};
use recorder::Recorder;
use umbra_memslots::{AddressSpaceId, Gva};
use umbra_mmu::NoObserver;
use umbra_mmu::shadow::{FaultOutcome, HostParams, InvPcid, ShadowFault, ShadowVcpu};
use umbra_mmu::x86::{Access, AccessKind, PageFaultCode, PagingRegs, PagingState, Privilege};

const READ: Access = Access::new(AccessKind::Read, Privilege::User);
const WRITE: Access = Access::new(AccessKind::Write, Privilege::User);
const USED: u64 = 0x67;
const TABLE: u64 = 0x9000;

type Cpu = ShadowVcpu<Recorder>;

/// Six roots at pages 1 to 6, which share the tables at 7 to 9; page 10 at address 0, and the last table at 0x1000.
fn guest(tables: u32) -> (Machine, PagingRegs, Cpu) {
    let machine = Machine::new(HostParams::x86(46), 48, tables);
    for root in 1..7u64 {
        machine.ram.memory.set(root << 12, 0x7000 | USED);
    }
    for page in 7..9u64 {
        machine.ram.memory.set(page << 12, (page + 1) << 12 | USED);
    }
    machine.ram.memory.set(TABLE, 0xa000 | USED);
    machine.ram.memory.set(TABLE + 8, TABLE | USED);
    let mut regs = regs(4, 0x1000);
    regs.cr0 |= WP;
    let own = ShadowVcpu::with_observer(PagingState::new(&regs), Recorder::default());
    (machine, regs, own)
}

fn load(machine: &mut Machine, own: &mut Cpu, regs: &mut PagingRegs, root: u64) {
    regs.cr3 = root << 12;
    own.set_state(PagingState::new(regs));
    machine
        .mmu
        .root(own, &*machine.ram, AddressSpaceId::Normal, &mut machine.tlb);
}

#[test]
fn current_root_and_three_before_it_are_remembered() {
    let (mut machine, mut regs, mut own) = guest(64);
    for root in [1, 2, 3, 4] {
        load(&mut machine, &mut own, &mut regs, root);
    }
    own.observer_mut().take();
    for root in [1, 2, 3, 4, 4, 1] {
        load(&mut machine, &mut own, &mut regs, root);
    }
    assert_eq!((own.observer_mut().take().len(), own.stats().root_hits), (0, 6));
    // Root 2 was left the longest time ago.
    load(&mut machine, &mut own, &mut regs, 5);
    own.observer_mut().take();
    load(&mut machine, &mut own, &mut regs, 2);
    assert_eq!(own.observer_mut().take(), ["kvm_mmu_get_page gfn 2 role 3704 existing"]);
}

#[test]
fn roots_of_a_mode_that_remembers_none_are_kept_while_nothing_changes() {
    let (mut machine, mut regs, mut own) = guest(64);
    (regs.cr4, regs.efer) = (0, 0);
    load(&mut machine, &mut own, &mut regs, 1);
    assert_eq!(own.observer_mut().take().len(), 4);
    load(&mut machine, &mut own, &mut regs, 1);
    assert_eq!(own.observer_mut().take().len(), 0);
    load(&mut machine, &mut own, &mut regs, 2);
    assert_eq!(own.observer_mut().take().len(), 4);
}

#[test]
fn remembered_roots_are_forgotten_when_tables_are_read_by_other_rules() {
    let (mut machine, mut regs, mut own) = guest(64);
    load(&mut machine, &mut own, &mut regs, 1);
    load(&mut machine, &mut own, &mut regs, 2);
    for _ in 0..2 {
        regs.cr0 ^= WP;
        own.observer_mut().take();
        for root in [2, 1] {
            load(&mut machine, &mut own, &mut regs, root);
        }
        assert_eq!(own.observer_mut().take().len(), 2, "asked for anew");
    }
    // It is no rule.
    regs.rflags ^= AC;
    load(&mut machine, &mut own, &mut regs, 2);
    assert_eq!(own.observer_mut().take().len(), 0);
}

#[test]
fn remembered_root_that_was_zapped_is_not_used() {
    let (mut machine, mut regs, mut own) = guest(64);
    load(&mut machine, &mut own, &mut regs, 1);
    load(&mut machine, &mut own, &mut regs, 2);
    machine.mmu.zap_all(&mut NoObserver, &mut machine.tlb);
    own.observer_mut().take();
    load(&mut machine, &mut own, &mut regs, 1);
    assert_eq!(own.observer_mut().take(), ["kvm_mmu_get_page gfn 1 role 3704 new"]);
}

/// The vCPU has used PCIDs 1 and 2 on roots 1 and 2, and then changed the table, which both know of.
fn two_pcids() -> (Machine, [PagingRegs; 2], Cpu) {
    let (mut machine, first, mut own) = guest(64);
    let second = PagingRegs { cr3: 0x2000, ..first };
    for (pcid, regs) in [(1, first), (2, second)] {
        own.load_cr3(PagingState::new(&regs), pcid, false);
        assert_eq!(machine.access(&mut own, &regs, 0, WRITE), Seen::Ram(0xa000));
        assert_eq!(machine.access(&mut own, &regs, 0x1000, WRITE), Seen::Ram(TABLE));
    }
    machine.ram.memory.set(TABLE, 0xb000 | USED);
    (machine, [first, second], own)
}

#[test]
fn cr3_load_that_keeps_translations_keeps_them_and_another_does_not() {
    let (mut machine, [first, _], mut own) = two_pcids();
    own.load_cr3(PagingState::new(&first), 1, true);
    assert_eq!(machine.access(&mut own, &first, 0, READ), Seen::Ram(0xa000));
    own.load_cr3(PagingState::new(&first), 1, false);
    assert_eq!(machine.access(&mut own, &first, 0, READ), Seen::Ram(0xb000));
}

#[test]
fn flush_of_a_pcid_is_not_forgotten_while_another_root_is_current() {
    for what in [
        InvPcid::Context { pcid: 1 },
        InvPcid::All,
        InvPcid::Address {
            pcid: 1,
            gva: Gva::new(0x123),
        },
    ] {
        let (mut machine, [first, _], mut own) = two_pcids();
        machine
            .mmu
            .invpcid(&mut own, &*machine.ram, &mut machine.frames(), &mut machine.tlb, what);
        own.load_cr3(PagingState::new(&first), 1, true);
        assert_eq!(machine.access(&mut own, &first, 0, READ), Seen::Ram(0xb000), "{what:?}");
    }
    let (mut machine, [first, _], mut own) = two_pcids();
    let other = InvPcid::Context { pcid: 7 };
    machine
        .mmu
        .invpcid(&mut own, &*machine.ram, &mut machine.frames(), &mut machine.tlb, other);
    own.load_cr3(PagingState::new(&first), 1, true);
    assert_eq!(machine.access(&mut own, &first, 0, READ), Seen::Ram(0xa000));
}

#[test]
fn invpcid_of_the_current_context_takes_effect_at_once() {
    let (mut machine, [_, second], mut own) = two_pcids();
    let what = InvPcid::Context { pcid: 2 };
    machine
        .mmu
        .invpcid(&mut own, &*machine.ram, &mut machine.frames(), &mut machine.tlb, what);
    assert_eq!(machine.access(&mut own, &second, 0, READ), Seen::Ram(0xb000));
}

#[test]
fn scarce_tables_cost_the_oldest_pages_and_not_the_root() {
    let (mut machine, regs, mut own) = guest(24);
    for table in 0..24u64 {
        machine.ram.memory.set(0x8000 + 8 * table, (16 + table) << 12 | USED);
        machine.ram.memory.set((16 + table) << 12, 0xa000 | USED);
    }
    let mut zapped = Vec::new();
    for table in 0..24u64 {
        assert_eq!(machine.access(&mut own, &regs, table << 21, WRITE), Seen::Ram(0xa000));
        zapped.extend(
            own.observer_mut()
                .take()
                .into_iter()
                .filter(|event| event.contains("zap")),
        );
    }
    let stats = own.stats();
    assert_eq!(stats.reclaimed_pages, zapped.len() as u64);
    assert!(stats.reclaims > 0 && stats.reclaimed_pages < 20, "{stats:?}");
    assert!(zapped[0].contains("gfn 7 role 3703"), "{zapped:?}");
    assert!(zapped.iter().all(|event| !event.contains("gfn 1 ")), "{zapped:?}");
    assert_eq!(stats.roots, 1);
    // What came last is still there.
    let faults = own.stats().faults;
    machine.access(&mut own, &regs, 23 << 21, WRITE);
    assert_eq!(own.stats().faults, faults);
}

#[test]
fn nothing_leaks_however_often_roots_and_tables_come_and_go() {
    let (mut machine, mut regs, mut own) = guest(16);
    for round in 0..200u64 {
        load(&mut machine, &mut own, &mut regs, 1 + round % 6);
        machine.access(&mut own, &regs, (round % 2) << 12, WRITE);
        if round % 7 == 0 {
            machine
                .mmu
                .zap_range(&mut NoObserver, &mut machine.tlb, range(7 + round % 3, 1));
        }
        assert!(machine.mmu.tables_in_use() <= 16);
    }
    machine.mmu.zap_all(&mut NoObserver, &mut machine.tlb);
    assert_eq!((machine.mmu.tables_in_use(), machine.mmu.leaves()), (0, 0));
}

#[test]
fn memory_that_is_going_is_not_mapped_until_it_is_back() {
    let (mut machine, regs, mut own) = guest(64);
    assert_eq!(machine.access(&mut own, &regs, 0, WRITE), Seen::Ram(0xa000));
    let page = range(0xa, 1);
    machine.mmu.invalidate_begin(&mut machine.tlb, page);
    machine.mmu.invalidate_begin(&mut machine.tlb, page);
    assert_eq!(machine.mmu.leaves(), 0);
    let fault = ShadowFault::from_code(Gva::new(0), PageFaultCode::new(6));
    let mut frames = machine::Frames(machine.ram.clone());
    let mut outcome = |machine: &mut Machine| {
        machine
            .mmu
            .page_fault(&mut own, &*machine.ram, &mut frames, &mut machine.tlb, fault)
    };
    assert_eq!(outcome(&mut machine), FaultOutcome::Retry);
    machine.mmu.invalidate_end(page);
    assert_eq!(outcome(&mut machine), FaultOutcome::Retry);
    machine.mmu.invalidate_end(page);
    assert_eq!(outcome(&mut machine), FaultOutcome::Fixed);
}

#[test]
fn memory_found_before_an_invalidation_is_not_installed_after_it() {
    /// Another thread takes the memory away and gives other memory, right after it was found.
    struct Racing<'a>(machine::Frames, &'a Machine);
    impl umbra_mmu::shadow::FrameSource for Racing<'_> {
        fn current(&mut self) -> umbra_mmu::direct::SlotSet {
            self.0.current()
        }

        fn frame(
            &mut self,
            gfn: umbra_memslots::Gfn,
        ) -> (umbra_mmu::direct::SlotSet, Option<umbra_mmu::shadow::FoundFrame>) {
            let found = self.0.frame(gfn);
            let page = range(gfn.get(), 1);
            self.1.mmu.invalidate_begin(&mut machine::Flushes::default(), page);
            self.1.mmu.invalidate_end(page);
            found
        }
    }
    let (machine, regs, mut own) = guest(64);
    let mut tlb = machine::Flushes::default();
    machine
        .mmu
        .root(&mut own, &*machine.ram, AddressSpaceId::Normal, &mut tlb);
    let mut frames = Racing(machine::Frames(machine.ram.clone()), &machine);
    let fault = ShadowFault::from_code(Gva::new(0), PageFaultCode::new(6));
    let outcome = machine
        .mmu
        .page_fault(&mut own, &*machine.ram, &mut frames, &mut tlb, fault);
    assert_eq!((outcome, machine.mmu.leaves()), (FaultOutcome::Retry, 0));
    let mut frames = machine::Frames(machine.ram.clone());
    let outcome = machine
        .mmu
        .page_fault(&mut own, &*machine.ram, &mut frames, &mut tlb, fault);
    assert_eq!((outcome, regs.cr3), (FaultOutcome::Fixed, 0x1000));
}
