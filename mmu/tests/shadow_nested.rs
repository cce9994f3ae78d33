//! A guest's guest on a nested table that its hypervisor keeps: shadowed, write-tracked, with MMIO SPTEs.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/machine.rs"]
mod machine;
#[path = "common/recorder.rs"]
mod recorder;

use common::{WP, regs};
use machine::{Machine, Seen, vcpu};
use recorder::Recorder;
use umbra_memslots::Gva;
use umbra_mmu::shadow::{HostParams, ShadowVcpu};
use umbra_mmu::x86::{Access, AccessKind, PagingRegs, PagingState, Privilege};

const READ: Access = Access::new(AccessKind::Read, Privilege::User);
const WRITE: Access = Access::new(AccessKind::Write, Privilege::User);
const L1_WRITE: Access = Access::new(AccessKind::Write, Privilege::Supervisor);
const USED: u64 = 0x67;
const MMIO: u64 = 100 << 12;

/// L1 runs without paging. Its nested table is at pages 1 to 4, and maps page 8 and MMIO of L1's at L2's pages 0 and 1.
struct Guest {
    machine: Machine,
    l1: (ShadowVcpu, PagingRegs),
    l2: (ShadowVcpu<Recorder>, PagingRegs),
}

impl Guest {
    fn new() -> Self {
        let machine = Machine::new(HostParams::x86(46), 16, 64);
        for page in 1..4u64 {
            machine.ram.memory.set(page << 12, (page + 1) << 12 | USED);
        }
        machine.ram.memory.set(4 << 12, 8 << 12 | USED);
        machine.ram.memory.set(4 << 12 | 8, MMIO | USED);
        let off = regs(0, 0);
        let mut table = regs(4, 1 << 12);
        table.cr0 |= WP;
        let l2 = ShadowVcpu::nested(PagingState::new(&table), Recorder::default());
        Self {
            machine,
            l1: (vcpu(&off), off),
            l2: (l2, table),
        }
    }

    fn l2(&mut self, address: u64, access: Access) -> Seen {
        self.machine.access(&mut self.l2.0, &self.l2.1, address, access)
    }

    fn events(&mut self, name: &str) -> Vec<String> {
        let events = self.l2.0.observer_mut().take();
        let named = events.iter().filter_map(|event| event.strip_prefix(name));
        named.map(|rest| rest.trim().to_owned()).collect()
    }

    /// L1 writes an entry, and a device or emulator does it for it if it must.
    fn l1_writes(&mut self, at: u64, entry: u64) -> Seen {
        let seen = self.machine.access(&mut self.l1.0, &self.l1.1, at, L1_WRITE);
        match seen {
            Seen::Tracked(gpa) => self.machine.writes(gpa, entry),
            Seen::Ram(gpa) => self.machine.ram.memory.set(gpa, entry),
            other => unreachable!("{other:?}"),
        }
        seen
    }
}

#[test]
fn guests_guest_runs_on_shadows_of_its_own() {
    let mut guest = Guest::new();
    assert_eq!(guest.l2(0x123, WRITE), Seen::Ram(0x8123));
    let pages = guest.events("kvm_mmu_get_page");
    assert_eq!(
        pages,
        ["1", "2", "3", "4"].map(|gfn| format!("gfn {gfn} role 2370{} new", 5 - gfn.parse::<u32>().unwrap()))
    );
    // The same table as L1's own paging is shadowed apart.
    let in_use = guest.machine.mmu.tables_in_use();
    let mut l1 = vcpu(&guest.l2.1);
    assert_eq!(
        guest.machine.access(&mut l1, &guest.l2.1, 0x123, READ),
        Seen::Ram(0x8123)
    );
    assert_eq!(guest.machine.mmu.tables_in_use(), in_use + 4);
}

#[test]
fn mmio_of_the_guests_guest_is_known_by_its_entry_alone() {
    let mut guest = Guest::new();
    assert_eq!(guest.l2(0x1010, READ), Seen::Mmio(MMIO | 0x10));
    assert_eq!(guest.events("mark_mmio_spte"), ["gfn 64 access 7 gen 2"]);
    for round in 1..4 {
        assert_eq!(guest.l2(0x1010, READ), Seen::Mmio(MMIO | 0x10));
        assert_eq!(guest.events("handle_mmio_page_fault"), ["addr 1010 gfn 64 access 6"]);
        let stats = guest.l2.0.stats();
        assert_eq!((stats.cache_hits, stats.spte_hits), (0, round));
    }
    // A slot comes.
    guest.machine.ram.high.set(true);
    guest.machine.set_slots(0xffff, 0);
    guest.machine.ram.memory.set(4 << 12 | 8, 9 << 12 | USED);
    guest.l2.0.set_state(PagingState::new(&guest.l2.1));
    assert_eq!(guest.l2(0x1010, READ), Seen::Ram(0x9010));
}

#[test]
fn upper_tables_of_the_hypervisor_are_tracked_and_last_ones_catch_up() {
    let mut guest = Guest::new();
    guest.l2(0, READ);
    // Another last table, at page 5, which leads to page 10.
    guest.machine.ram.memory.set(5 << 12, 10 << 12 | USED);
    assert_eq!(guest.l1_writes(3 << 12, 5 << 12 | USED), Seen::Tracked(3 << 12));
    assert_eq!(guest.l2(0, READ), Seen::Ram(10 << 12));
    // Now the hypervisor may write to that, and says that it did.
    assert_eq!(guest.l1_writes(5 << 12, 11 << 12 | USED), Seen::Ram(5 << 12));
    let Guest { machine, l2, .. } = &mut guest;
    machine.mmu.invlpg(
        &mut l2.0,
        &*machine.ram,
        &mut machine.frames(),
        &mut machine.tlb,
        Gva::new(0),
    );
    assert_eq!(guest.l2(0, READ), Seen::Ram(11 << 12));
    assert_eq!(guest.l1_writes(5 << 12, 0), Seen::Ram(5 << 12));
    let table = PagingState::new(&guest.l2.1);
    guest.l2.0.set_state(table);
    // A nested page fault for the hypervisor: a user's read, of what isn't there.
    assert_eq!(guest.l2(0, READ), Seen::Fault(4));
}
