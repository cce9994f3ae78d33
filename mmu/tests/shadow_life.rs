//! What happens to one page on shadow tables, step by step: MMIO, guest tables edited, roots switched, limits reached.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/machine.rs"]
mod machine;

use common::{NXE, PSE, SMEP, WP, regs};
use machine::{HOST_TABLES, Machine, Seen, vcpu};
use umbra_memslots::{AddressSpaceId, Generation, Gva};
use umbra_mmu::MmuObserver;
use umbra_mmu::direct::MmioSource;
use umbra_mmu::mmio::MmioGen;
use umbra_mmu::shadow::{
    BitSpan, FaultOutcome, GenerationSpans, HostParams, ShadowError, ShadowFault, ShadowMmu, ShadowVcpu, SpteLayout,
};
use umbra_mmu::tables::HeapTables;
use umbra_mmu::x86::{Access, AccessKind, PageFaultCode, PagingRegs, PagingState, Privilege};

const USER_READ: Access = Access::new(AccessKind::Read, Privilege::User);
const USER_WRITE: Access = Access::new(AccessKind::Write, Privilege::User);
const KERNEL_READ: Access = Access::new(AccessKind::Read, Privilege::Supervisor);
const KERNEL_WRITE: Access = Access::new(AccessKind::Write, Privilege::Supervisor);
const KERNEL_FETCH: Access = Access::new(AccessKind::Fetch, Privilege::Supervisor);

/// Present, writable, user.
const RWU: u64 = 7;
/// An MMIO page: above the memory.
const MMIO: u64 = 0x3_0000_0000;

/// Four levels at pages 1 to 4; the last table maps page 8 + n at address n << 12, and the fourth entry is MMIO.
fn guest() -> (Machine, PagingRegs, ShadowVcpu) {
    let machine = Machine::new(HostParams::x86(46), 16, 64);
    for page in 1..4u64 {
        machine.ram.memory.set(page << 12, (page + 1) << 12 | RWU);
    }
    for page in 0..3u64 {
        machine.ram.memory.set(0x4000 + 8 * page, (8 + page) << 12 | RWU);
    }
    machine.ram.memory.set(0x4018, MMIO | RWU);
    let mut regs = regs(4, 0x1000);
    regs.cr0 |= WP;
    let vcpu = vcpu(&regs);
    (machine, regs, vcpu)
}

/// The guest writes to its last table, which is mapped at 0x4000.
fn unsync(machine: &mut Machine, regs: &PagingRegs, own: &mut ShadowVcpu) {
    machine.ram.memory.set(0x4020, 0x4000 | RWU);
    assert_eq!(machine.access(own, regs, 0x4000, USER_WRITE), Seen::Ram(0x4000));
}

/// The outcome of a fault as the walker reports it for MMIO: P, RSVD, and the access.
fn reserved_fault(
    machine: &mut Machine,
    own: &mut ShadowVcpu<impl MmuObserver>,
    gva: u64,
    write: bool,
) -> FaultOutcome {
    let code = PageFaultCode::new(0xd | u32::from(write) << 1);
    let fault = ShadowFault::from_code(Gva::new(gva), code);
    let mut frames = machine::Frames(machine.ram.clone());
    machine
        .mmu
        .page_fault(own, &*machine.ram, &mut frames, &mut machine.tlb, fault)
}

#[test]
fn memory_is_mapped_once_and_then_walked_without_faults() {
    let (mut machine, regs, mut own) = guest();
    for _ in 0..10 {
        assert_eq!(machine.access(&mut own, &regs, 0x1234, USER_READ), Seen::Ram(0x9234));
    }
    assert_eq!((own.stats().faults, own.stats().fixed), (1, 1));
    // The first write sets the guest's dirty flag, and so must fault.
    for _ in 0..10 {
        assert_eq!(machine.access(&mut own, &regs, 0x1234, USER_WRITE), Seen::Ram(0x9234));
    }
    assert_eq!((own.stats().faults, own.stats().fixed), (2, 2));
    assert_eq!(machine.ram.memory.get(0x4008), 0x9067);
}

#[test]
fn mmio_is_searched_once_and_then_recognised_by_cache_or_entry() {
    let (mut machine, regs, mut own) = guest();
    assert_eq!(
        machine.access(&mut own, &regs, 0x3010, USER_WRITE),
        Seen::Mmio(MMIO + 0x10)
    );
    assert_eq!((own.stats().created, own.stats().cache_hits), (1, 0));
    for _ in 0..10 {
        assert_eq!(
            machine.access(&mut own, &regs, 0x3020, USER_READ),
            Seen::Mmio(MMIO + 0x20)
        );
    }
    assert_eq!(
        (own.stats().created, own.stats().cache_hits, own.stats().spte_hits),
        (1, 10, 0)
    );
    // Another vCPU on the same tables finds the entry.
    let mut other = vcpu(&regs);
    for _ in 0..10 {
        assert_eq!(
            machine.access(&mut other, &regs, 0x3020, USER_READ),
            Seen::Mmio(MMIO + 0x20)
        );
    }
    assert_eq!(
        (other.stats().created, other.stats().cache_hits, other.stats().spte_hits),
        (0, 9, 1)
    );
}

#[test]
fn slot_change_makes_the_entry_stale_and_invlpg_removes_it() {
    let (mut machine, regs, mut own) = guest();
    unsync(&mut machine, &regs, &mut own);
    machine.access(&mut own, &regs, 0x3000, USER_WRITE);
    machine.set_slots(0xffff, 1 << 15);
    assert_eq!(machine.access(&mut own, &regs, 0x3000, USER_WRITE), Seen::Mmio(MMIO));
    assert_eq!((own.stats().stale, own.stats().created), (1, 2));
    machine.mmu.invlpg(
        &mut own,
        &*machine.ram,
        &mut machine.frames(),
        &mut machine.tlb,
        Gva::new(0x3fff),
    );
    assert_eq!(machine.tlb.one, 1);
    assert_eq!(machine.access(&mut own, &regs, 0x3000, USER_WRITE), Seen::Mmio(MMIO));
    assert_eq!(
        (own.stats().stale, own.stats().created, own.stats().cache_hits),
        (1, 3, 0)
    );
}

#[test]
fn fault_on_an_entry_that_was_zapped_meanwhile_is_tried_again() {
    let (mut machine, regs, mut own) = guest();
    unsync(&mut machine, &regs, &mut own);
    machine.access(&mut own, &regs, 0x3000, USER_WRITE);
    machine.mmu.invlpg(
        &mut own,
        &*machine.ram,
        &mut machine.frames(),
        &mut machine.tlb,
        Gva::new(0x3000),
    );
    assert_eq!(
        reserved_fault(&mut machine, &mut own, 0x3000, true),
        FaultOutcome::Retry
    );
}

#[test]
fn mmio_that_the_guest_forbids_is_its_fault_and_not_ours_to_emulate() {
    let (mut machine, regs, mut own) = guest();
    machine.ram.memory.set(0x4018, MMIO | 0b101);
    assert_eq!(machine.access(&mut own, &regs, 0x3000, USER_READ), Seen::Mmio(MMIO));
    // Known to the cache, and to the entry: a write is forbidden all the same.
    assert_eq!(machine.access(&mut own, &regs, 0x3000, USER_WRITE), Seen::Fault(0x7));
    let mut other = vcpu(&regs);
    assert_eq!(machine.access(&mut other, &regs, 0x3000, USER_WRITE), Seen::Fault(0x7));
    assert_eq!(other.stats().injected, 1);
}

#[test]
fn first_write_to_mmio_sets_the_dirty_flag_though_the_page_is_known() {
    let (mut machine, regs, mut own) = guest();
    machine.access(&mut own, &regs, 0x3000, USER_READ);
    assert_eq!(machine.ram.memory.get(0x4018), MMIO | 0x27);
    machine.access(&mut own, &regs, 0x3000, USER_WRITE);
    assert_eq!(machine.ram.memory.get(0x4018), MMIO | 0x67);
}

#[test]
fn address_of_another_root_is_not_answered_from_the_cache() {
    let (mut machine, first, mut own) = guest();
    // A second root, through which the same address leads to other MMIO.
    for page in 5..7u64 {
        machine.ram.memory.set(page << 12, (page + 1) << 12 | RWU);
    }
    machine.ram.memory.set(0x7000, 0xb000 | RWU);
    machine.ram.memory.set(0xb018, (MMIO + 0x1000) | RWU);
    let second = PagingRegs { cr3: 0x5000, ..first };
    for (regs, page) in [
        (first, MMIO),
        (second, MMIO + 0x1000),
        (first, MMIO),
        (second, MMIO + 0x1000),
    ] {
        own.set_state(PagingState::new(&regs));
        assert_eq!(machine.access(&mut own, &regs, 0x3000, USER_WRITE), Seen::Mmio(page));
    }
    // Each root was made once, and found again with what it knew.
    assert_eq!((own.stats().created, own.stats().spte_hits), (2, 2));
}

#[test]
fn slot_whose_generation_wrapped_is_seen() {
    let tiny = GenerationSpans {
        low: BitSpan::new(3, 3).unwrap(),
        high: BitSpan::new(52, 52).unwrap(),
    };
    for announced in [true, false] {
        let mut machine = Machine::new(HostParams::x86(46).with_generation(tiny), 16, 64);
        for page in 1..5u64 {
            machine.ram.memory.set(page << 12, (page + 1) << 12 | RWU);
        }
        let regs = regs(4, 0x1000);
        let mut own = vcpu(&regs);
        machine.set_slots(0xffff & !(1 << 5), 0);
        assert_eq!(machine.access(&mut own, &regs, 0, USER_WRITE), Seen::Mmio(0x5000));
        let now = machine.ram.generation.get();
        if announced {
            machine.set_slots(0xffff & !(1 << 5), 1);
            machine.set_slots(0xffff, 0);
        } else {
            // The same, but nobody tells the MMU.
            machine.ram.present.set(0xffff);
            machine.ram.generation.set(Generation::from_raw(now.get() + 4));
        }
        assert_eq!(
            MmioGen::cut(machine.ram.generation.get(), tiny),
            MmioGen::cut(now, tiny)
        );
        assert_eq!(
            machine.access(&mut own, &regs, 0, USER_WRITE),
            Seen::Ram(0x5000),
            "announced: {announced}"
        );
    }
}

#[test]
fn page_that_becomes_a_table_loses_its_writable_mappings() {
    let (mut machine, regs, mut own) = guest();
    assert_eq!(machine.access(&mut own, &regs, 0, USER_WRITE), Seen::Ram(0x8000));
    let flushes = machine.tlb.all;
    // The guest makes page 8 a table: the directory of the second GiB.
    machine.ram.memory.set(0x8000, 0x4000 | RWU);
    machine.ram.memory.set(0x2008, 0x8000 | RWU);
    let second = 1 << 30;
    assert_eq!(
        machine.access(&mut own, &regs, second + 0x1000, USER_READ),
        Seen::Ram(0x9000)
    );
    assert!(machine.tlb.all > flushes, "a TLB could still hold the right to write");
    assert_eq!(machine.access(&mut own, &regs, 8, USER_WRITE), Seen::Tracked(0x8008));
    assert_eq!(machine.access(&mut own, &regs, 8, USER_READ), Seen::Ram(0x8008));
    // Written often enough without being used as one, it is a page again.
    for _ in 0..3 {
        machine.writes(0x8008, 0);
    }
    assert_eq!(machine.access(&mut own, &regs, 8, USER_WRITE), Seen::Ram(0x8008));
}

#[test]
fn two_ways_to_one_table_with_different_rights_have_two_shadows() {
    let (mut machine, regs, mut own) = guest();
    // The same last table by another entry, which is read-only.
    machine.ram.memory.set(0x3008, 0x4000 | 0b101);
    assert_eq!(machine.access(&mut own, &regs, 0x1000, USER_WRITE), Seen::Ram(0x9000));
    assert_eq!(machine.access(&mut own, &regs, 0x20_1000, USER_READ), Seen::Ram(0x9000));
    for _ in 0..2 {
        assert_eq!(machine.access(&mut own, &regs, 0x20_1000, USER_WRITE), Seen::Fault(0x7));
        assert_eq!(machine.access(&mut own, &regs, 0x1000, USER_WRITE), Seen::Ram(0x9000));
    }
}

#[test]
fn write_that_another_cpu_makes_before_its_flush_is_not_missed() {
    let (mut machine, regs, mut own) = guest();
    // Page 8 is writable, and another CPU's TLB may know it.
    assert_eq!(machine.access(&mut own, &regs, 0, USER_WRITE), Seen::Ram(0x8000));
    machine.ram.memory.set(0x8000, 0x9000 | RWU);
    machine.ram.memory.set(0x3008, 0x8000 | RWU);
    let ram = machine.ram.clone();
    machine.tlb.last_moment = Some(Box::new(move || ram.memory.set(0x8000, 0xa000 | RWU)));
    assert_eq!(machine.access(&mut own, &regs, 0x20_0000, USER_READ), Seen::Ram(0xa000));
    assert!(machine.tlb.last_moment.is_none());
}

#[test]
fn without_wp_a_supervisor_writes_to_read_only_pages_but_may_not_execute_them_under_smep() {
    let (mut machine, mut regs, _) = guest();
    regs.cr0 &= !WP;
    regs.cr4 |= SMEP;
    regs.efer |= NXE;
    let mut own = vcpu(&regs);
    machine.ram.memory.set(0x4000, 0x8000 | 0b101);
    assert_eq!(machine.access(&mut own, &regs, 0, KERNEL_WRITE), Seen::Ram(0x8000));
    assert_eq!(machine.access(&mut own, &regs, 0, KERNEL_FETCH), Seen::Fault(0x11));
    assert_eq!(machine.access(&mut own, &regs, 0, USER_WRITE), Seen::Fault(0x7));
    assert_eq!(machine.access(&mut own, &regs, 0, USER_READ), Seen::Ram(0x8000));
    assert_eq!(machine.access(&mut own, &regs, 0, KERNEL_READ), Seen::Ram(0x8000));
}

#[test]
fn four_megabyte_page_is_two_of_ours_and_both_go_when_it_does() {
    let mut machine = Machine::new(HostParams::x86(46), 16, 64);
    machine.ram.memory.set32(0x1000, 0x87);
    let mut regs = regs(2, 0x1000);
    regs.cr4 |= PSE;
    let mut own = vcpu(&regs);
    assert_eq!(machine.access(&mut own, &regs, 0x2000, USER_READ), Seen::Ram(0x2000));
    assert_eq!(
        machine.access(&mut own, &regs, 0x20_2000, USER_READ),
        Seen::Mmio(0x20_2000)
    );
    machine.writes_halves(0x1000, 0);
    assert_eq!(machine.access(&mut own, &regs, 0x2000, USER_READ), Seen::Fault(0x4));
    assert_eq!(machine.access(&mut own, &regs, 0x20_2000, USER_READ), Seen::Fault(0x4));
}

#[test]
fn guest_with_more_tables_than_ours_goes_on_within_the_limit() {
    let mut machine = Machine::new(HostParams::x86(46), 40, 16);
    machine.ram.memory.set(0x1000, 0x2000 | RWU);
    machine.ram.memory.set(0x2000, 0x3000 | RWU);
    for table in 0..30u64 {
        machine.ram.memory.set(0x3000 + 8 * table, (4 + table) << 12 | RWU);
        machine.ram.memory.set((4 + table) << 12, 39 << 12 | RWU);
    }
    let regs = regs(4, 0x1000);
    let mut own = vcpu(&regs);
    for round in 0..3 {
        for table in 0..30u64 {
            let seen = machine.access(&mut own, &regs, table << 21, USER_WRITE);
            assert_eq!(seen, Seen::Ram(39 << 12), "round {round}");
            assert!(machine.mmu.tables_in_use() <= 16);
        }
    }
    assert!(own.stats().reclaims >= 3);
}

#[test]
fn root_that_was_zapped_is_loaded_again() {
    let (mut machine, regs, mut own) = guest();
    machine.access(&mut own, &regs, 0, USER_READ);
    // The slot that the root table lies in goes and comes back.
    machine.set_slots(0xffff & !(1 << 1), 0);
    assert_eq!(machine.access(&mut own, &regs, 0, USER_READ), Seen::Fault(0x4));
    machine.set_slots(0xffff, 0);
    assert_eq!(machine.access(&mut own, &regs, 0, USER_READ), Seen::Ram(0x8000));
}

#[test]
fn sources_of_an_mmio_answer_are_told_apart() {
    let (mut machine, regs, mut own) = guest();
    let sources = |outcome| match outcome {
        FaultOutcome::Emulate(mmio) => mmio.source,
        other => unreachable!("{other:?}"),
    };
    machine.access(&mut own, &regs, 0x3000, USER_WRITE);
    assert_eq!(
        sources(reserved_fault(&mut machine, &mut own, 0x3000, true)),
        MmioSource::Cache
    );
    let mut other = vcpu(&regs);
    machine
        .mmu
        .root(&mut other, &*machine.ram, AddressSpaceId::Normal, &mut machine.tlb);
    assert_eq!(
        sources(reserved_fault(&mut machine, &mut other, 0x3000, true)),
        MmioSource::Spte
    );
    machine.set_slots(0xffff, 1);
    assert_eq!(
        sources(reserved_fault(&mut machine, &mut other, 0x3000, true)),
        MmioSource::Search
    );
}

#[test]
fn shadow_tables_that_cannot_be_are_refused() {
    let space = || HeapTables::new(HOST_TABLES, 15).unwrap();
    let x86 = SpteLayout::new(HostParams::x86(46)).unwrap();
    assert_eq!(
        ShadowMmu::new(x86, space()).err(),
        Some(ShadowError::TooFewTables { capacity: 15 })
    );
    let ept = SpteLayout::new(HostParams::ept(46)).unwrap();
    assert!(matches!(
        ShadowMmu::new(ept, space()).err(),
        Some(ShadowError::Format { .. })
    ));
}
