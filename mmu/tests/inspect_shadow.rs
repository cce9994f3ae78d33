//! Shadow tables listed beside the guest's, in every mode.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/machine.rs"]
mod machine;

use common::{WP, regs};
use machine::{Flushes, HOST_RAM, HOST_TABLES, Machine, vcpu};
use umbra_memslots::AddressSpaceId;
use umbra_mmu::AccessMask;
use umbra_mmu::inspect::{Beside, Limits, Row, Seen, by_gva, guest_tables, our_tables};
use umbra_mmu::mmio::Freshness;
use umbra_mmu::shadow::HostParams;
use umbra_mmu::x86::{Access, AccessKind, PagingRegs, PagingState, Privilege};

const READ: Access = Access::new(AccessKind::Read, Privilege::User);
const WRITE: Access = Access::new(AccessKind::Write, Privilege::User);
const RWU: u64 = 7;
const MMIO: u64 = 0x3_0000_0000;

/// The guest's tables beside their shadows.
fn look(machine: &Machine, regs: &PagingRegs) -> Vec<Beside> {
    let state = PagingState::new(regs);
    // Another vCPU in the same state gets the same root.
    let root = machine.mmu.root(
        &mut vcpu(regs),
        &*machine.ram,
        AddressSpaceId::Normal,
        &mut Flushes::default(),
    );
    let guest = guest_tables(&state, &*machine.ram, Limits::default());
    let ours = our_tables(&machine.mmu, root, machine.ram.generation.get(), Limits::default());
    by_gva(&guest.rows, &ours.rows)
}

#[test]
fn every_shadow_entry_stands_beside_its_guest_entry() {
    let mut machine = Machine::new(HostParams::x86(46), 16, 64);
    for page in 1..4u64 {
        machine.ram.memory.set(page << 12, (page + 1) << 12 | RWU);
    }
    for (index, entry) in [(0, 0x8000 | RWU), (1, 0x9000 | RWU), (3, MMIO | RWU), (9, 0xb000 | RWU)] {
        machine.ram.memory.set(0x4000 + 8 * index, entry);
    }
    let mut regs = regs(4, 0x1000);
    regs.cr0 |= WP;
    let mut own = vcpu(&regs);
    machine.access(&mut own, &regs, 0x1000, WRITE);
    machine.access(&mut own, &regs, 0x3008, READ);
    machine.access(&mut own, &regs, 0x9000, READ);

    let lines = look(&machine, &regs);
    // Three levels of tables with their shadows.
    for line in &lines[..3] {
        let (Some(guest), Some(ours)) = (line.guest, line.ours) else {
            panic!("{line:x?}")
        };
        assert_eq!((guest.start, guest.level), (ours.start, ours.level));
        assert!(matches!(ours.seen, Seen::Table { address, .. } if address >= HOST_TABLES));
    }
    let at = |start| {
        lines.iter().filter(move |line| {
            [line.guest, line.ours]
                .iter()
                .flatten()
                .any(|row: &Row| row.is_leaf() && row.start == start)
        })
    };
    // Two guest pages are one run; only the second has been touched.
    let run: Vec<&Beside> = at(0).chain(at(0x1000)).collect();
    assert_eq!(
        run[0].guest.map(|row| row.count),
        Some(2),
        "accessed and dirty differ, but frames run on: {run:x?}"
    );
    let ours = run.iter().find_map(|line| line.ours).map(|row| row.seen);
    let Some(Seen::Page { address, access, .. }) = ours else {
        panic!("{run:x?}")
    };
    assert_eq!((address, access), (HOST_RAM + 0x9000, AccessMask::ALL));
    // MMIO, fresh, until the slots change.
    let mmio = |lines: &[Beside]| {
        lines.iter().find_map(|line| match line.ours?.seen {
            Seen::Mmio { facts, freshness } => Some((line.guest?.start, facts.gfn.get(), freshness)),
            _ => None,
        })
    };
    assert_eq!(mmio(&lines), Some((0x3000, MMIO >> 12, Freshness::Fresh)));
    let generation = machine.ram.generation.get();
    machine.ram.generation.set(generation.begin_update().finish_update(2));
    assert_eq!(
        mmio(&look(&machine, &regs)),
        Some((0x3000, MMIO >> 12, Freshness::Stale))
    );
}

#[test]
fn large_page_of_a_32_bit_guest_has_a_shadow_of_small_ones() {
    let mut machine = Machine::new(HostParams::x86(46), 16, 64);
    machine.ram.memory.set32(0x1000, 0x87);
    let mut regs = regs(2, 0x1000);
    regs.cr4 |= common::PSE;
    let mut own = vcpu(&regs);
    machine.access(&mut own, &regs, 0x5000, READ);
    machine.access(&mut own, &regs, 0x6000, READ);
    let lines = look(&machine, &regs);
    let Some(Beside {
        guest: Some(guest),
        ours: None,
    }) = lines.first()
    else {
        panic!("{lines:x?}")
    };
    assert_eq!((guest.start, guest.bytes()), (0, 4 << 20));
    let leaf = lines.iter().filter_map(|line| line.ours).find(Row::is_leaf);
    let Some(Row {
        start: 0x5000,
        count: 2,
        seen: Seen::Page { address, .. },
        ..
    }) = leaf
    else {
        panic!("{lines:x?}")
    };
    assert_eq!(address, HOST_RAM + 0x5000);
}
