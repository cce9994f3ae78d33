//! What an observer is told, in the order of KVM's own trace of the same faults on shadow paging.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/machine.rs"]
mod machine;
#[path = "common/recorder.rs"]
mod recorder;

use common::{PSE, WP, regs};
use machine::Machine;
use recorder::Recorder;
use umbra_memslots::AddressSpaceId;
use umbra_mmu::shadow::{HostParams, ShadowVcpu};
use umbra_mmu::x86::{Access, AccessKind, PagingRegs, PagingState, Privilege};

const READ: Access = Access::new(AccessKind::Read, Privilege::User);
const WRITE: Access = Access::new(AccessKind::Write, Privilege::User);
const RWU: u64 = 7;
const MMIO: u64 = 0x3_0000_0000;

type Cpu = ShadowVcpu<Recorder>;

fn cpu(regs: &PagingRegs) -> Cpu {
    ShadowVcpu::with_observer(PagingState::new(regs), Recorder::default())
}

/// Four levels at pages 1 to 4; the last table maps page 8 at address 0 and MMIO at 0x3000.
fn guest() -> (Machine, PagingRegs, Cpu) {
    let machine = Machine::new(HostParams::x86(46), 16, 64);
    for page in 1..4u64 {
        machine.ram.memory.set(page << 12, (page + 1) << 12 | RWU);
    }
    machine.ram.memory.set(0x4000, 0x8000 | RWU);
    machine.ram.memory.set(0x4018, MMIO | RWU);
    let mut regs = regs(4, 0x1000);
    regs.cr0 |= WP;
    let cpu = cpu(&regs);
    (machine, regs, cpu)
}

#[test]
fn first_touch_walks_then_gets_pages_then_sets_the_leaf() {
    let (mut machine, regs, mut own) = guest();
    machine.access(&mut own, &regs, 0, WRITE);
    assert_eq!(
        own.observer().0,
        [
            "kvm_mmu_get_page gfn 1 role 3704 new",
            "kvm_mmu_pagetable_walk addr 0 pferr 6",
            "kvm_mmu_paging_element pte 2007 level 4",
            "kvm_mmu_paging_element pte 3007 level 3",
            "kvm_mmu_paging_element pte 4007 level 2",
            "kvm_mmu_paging_element pte 8007 level 1",
            "kvm_mmu_set_accessed_bit gpa 1000",
            "kvm_mmu_set_accessed_bit gpa 2000",
            "kvm_mmu_set_accessed_bit gpa 3000",
            "kvm_mmu_set_accessed_bit gpa 4000",
            "kvm_mmu_set_dirty_bit gpa 4000",
            "kvm_mmu_get_page gfn 2 role 3703 new",
            "kvm_mmu_get_page gfn 3 role 3702 new",
            "kvm_mmu_get_page gfn 4 role 3701 new",
            "kvm_mmu_spte_requested gfn 8 pfn 10000008 level 1",
            // Host page 8: P, W, U, A, D, host- and MMU-writable, MMU-present.
            "kvm_mmu_set_spte gfn 8 spte 10000008e67 level 1",
        ]
    );
}

#[test]
fn mmio_is_marked_and_then_checked() {
    let (mut machine, regs, mut own) = guest();
    machine.access(&mut own, &regs, 0x3008, WRITE);
    let events = own.observer_mut().take();
    assert_eq!(
        events[events.len() - 2..],
        [
            "kvm_mmu_spte_requested gfn 300000 pfn 8000000000000000 level 1",
            "mark_mmio_spte gfn 300000 access 7 gen 2",
        ]
    );
    // Not the cache: the state was set again.
    own.set_state(PagingState::new(&regs));
    machine.access(&mut own, &regs, 0x3008, WRITE);
    assert_eq!(
        own.observer().0,
        [
            "check_mmio_spte spte 8000300000017 spte-gen 2 valid 1",
            "handle_mmio_page_fault addr 3008 gfn 300000 access 6",
        ]
    );
}

#[test]
fn known_mmio_that_the_guest_may_not_write_is_a_walk_and_no_new_mark() {
    let (mut machine, regs, mut own) = guest();
    machine.ram.memory.set(0x4018, MMIO | RWU & !2);
    machine.access(&mut own, &regs, 0x3008, READ);
    for known in ["the cache", "the SPTE"] {
        own.observer_mut().take();
        machine.access(&mut own, &regs, 0x3008, WRITE);
        let events = own.observer_mut().take();
        assert_eq!(
            events.last().map(String::as_str),
            Some("kvm_mmu_walker_error pferr 7"),
            "{known}"
        );
        assert!(
            events
                .iter()
                .all(|event| !event.contains("mark") && !event.contains("requested"))
        );
        assert_eq!(
            events.iter().any(|event| event.contains("handle_mmio")),
            known == "the SPTE"
        );
    }
}

#[test]
fn fault_of_the_guest_is_a_walk_with_an_error() {
    let (mut machine, regs, mut own) = guest();
    machine.access(&mut own, &regs, 0x1000, READ);
    assert_eq!(
        own.observer().0[1..],
        [
            "kvm_mmu_pagetable_walk addr 1000 pferr 4",
            "kvm_mmu_paging_element pte 2007 level 4",
            "kvm_mmu_paging_element pte 3007 level 3",
            "kvm_mmu_paging_element pte 4007 level 2",
            "kvm_mmu_paging_element pte 0 level 1",
            "kvm_mmu_walker_error pferr 4",
        ]
    );
}

#[test]
fn pdptes_are_elements_of_level_three_and_direct_pages_follow_the_request() {
    let mut machine = Machine::new(HostParams::x86(46), 16, 64);
    let mut regs = regs(3, 0x1000);
    regs.pdptes[0] = 0x2001;
    // A large page, of which only the first pages have slots.
    machine.ram.memory.set(0x2000, 0xe7);
    let mut own = cpu(&regs);
    machine.access(&mut own, &regs, 0x5000, READ);
    assert_eq!(
        own.observer().0,
        [
            "kvm_mmu_get_page gfn 2 role 1702 new",
            "kvm_mmu_pagetable_walk addr 5000 pferr 4",
            "kvm_mmu_paging_element pte 2001 level 3",
            "kvm_mmu_paging_element pte e7 level 2",
            "kvm_mmu_spte_requested gfn 5 pfn 10000005 level 1",
            "kvm_mmu_get_page gfn 0 role 1781 new",
            "kvm_mmu_set_spte gfn 5 spte 10000005e67 level 1",
        ]
    );
}

#[test]
fn page_that_is_written_like_data_is_zapped() {
    let (mut machine, mut regs, _) = guest();
    regs.cr4 |= PSE;
    let mut own = cpu(&regs);
    machine.access(&mut own, &regs, 0, READ);
    own.observer_mut().take();
    // Half of a word of the page directory: no entry is written like that.
    machine.mmu.guest_wrote(
        own.observer_mut(),
        &mut machine.tlb,
        umbra_memslots::Gpa::new(0x3ff2),
        2,
    );
    assert_eq!(own.observer().0, ["kvm_mmu_prepare_zap_page gfn 3 role 3702"]);
}

#[test]
fn zapping_all_says_so_first() {
    let (mut machine, regs, mut own) = guest();
    machine
        .mmu
        .root(&mut own, &*machine.ram, AddressSpaceId::Normal, &mut machine.tlb);
    own.observer_mut().take();
    machine.mmu.zap_all(own.observer_mut(), &mut machine.tlb);
    assert_eq!(
        own.observer().0,
        ["kvm_mmu_zap_all_fast", "kvm_mmu_prepare_zap_page gfn 1 role 3704"]
    );
    assert!(machine.mmu.tables_in_use() == 0 && regs.cr3 == 0x1000);
}
