//! Pages that are mapped ahead of their use, and writes that are allowed again without the lock.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/machine.rs"]
mod machine;
#[path = "common/recorder.rs"]
mod recorder;

use common::{WP, regs};
use machine::{Machine, Seen, range};
use recorder::Recorder;
use umbra_memslots::{GfnRange, Gva};
use umbra_mmu::shadow::{DirtyLog, HostParams, ShadowVcpu};
use umbra_mmu::x86::{Access, AccessKind, PagingRegs, PagingState, Privilege};

const READ: Access = Access::new(AccessKind::Read, Privilege::Supervisor);
const WRITE: Access = Access::new(AccessKind::Write, Privilege::Supervisor);
const PAGES: u64 = 24;
const USED: u64 = 0x67;

struct Guest {
    machine: Machine,
    regs: PagingRegs,
    vcpu: ShadowVcpu<Recorder>,
}

impl Guest {
    /// Without paging, or with four levels at pages 1 to 4 whose last has these entries.
    fn new(entries: Option<[u64; 9]>) -> Self {
        let machine = Machine::new(HostParams::x86(46), PAGES, 64);
        machine.ram.at_hand.set(true);
        for page in 1..4u64 {
            machine.ram.memory.set(page << 12, (page + 1) << 12 | USED);
        }
        for (index, entry) in (0u64..).zip(entries.into_iter().flatten()) {
            machine.ram.memory.set(4 << 12 | index << 3, entry);
        }
        let mut regs = regs(if entries.is_some() { 4 } else { 0 }, 0x1000);
        regs.cr0 |= WP;
        let vcpu = ShadowVcpu::with_observer(PagingState::new(&regs), Recorder::default());
        Self { machine, regs, vcpu }
    }

    fn access(&mut self, page: u64, access: Access) -> Seen {
        self.machine.access(&mut self.vcpu, &self.regs, page << 12, access)
    }

    /// Events of this name since it was last asked, without the name.
    fn events(&mut self, name: &str) -> Vec<String> {
        let events = self.vcpu.observer_mut().take();
        let named = events.iter().filter_map(|event| event.strip_prefix(name));
        named.map(|rest| rest.trim().to_owned()).collect()
    }

    /// The frames that leaves were made for.
    fn mapped(&mut self) -> Vec<u64> {
        let frame = |event: String| u64::from_str_radix(event.split(' ').nth(1).unwrap(), 16).unwrap();
        self.events("kvm_mmu_set_spte").into_iter().map(frame).collect()
    }

    fn faults(&self) -> u64 {
        self.vcpu.stats().faults
    }
}

fn all() -> GfnRange {
    range(0, PAGES)
}

/// Entries for pages 8, 9, …
fn used() -> [u64; 9] {
    [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|index| (8 + index) << 12 | USED)
}

#[test]
fn eight_around_a_leaf_are_mapped_in_order_and_without_a_trace() {
    let mut guest = Guest::new(Some(used()));
    assert_eq!(guest.access(5, READ), Seen::Ram(13 << 12));
    assert_eq!(guest.mapped(), [13, 8, 9, 10, 11, 12, 14, 15]);
    let before = guest.faults();
    // Nobody has used them so far.
    let used: Vec<u64> = guest
        .machine
        .mmu
        .collect_accessed(all())
        .iter()
        .map(|gfn| gfn.get())
        .collect();
    assert_eq!(used, [13]);
    for page in 0..8 {
        assert_eq!(guest.access(page, WRITE), Seen::Ram((8 + page) << 12));
    }
    assert_eq!(guest.faults(), before);
    assert_eq!(guest.access(8, READ), Seen::Ram(16 << 12));
    assert_eq!(guest.faults(), before + 1);
}

#[test]
fn nothing_is_mapped_ahead_where_memory_is_not_at_hand() {
    let mut guest = Guest::new(Some(used()));
    guest.machine.ram.at_hand.set(false);
    guest.access(5, READ);
    assert_eq!(guest.mapped(), [13]);
}

#[test]
fn first_entry_that_can_not_be_mapped_ends_it() {
    let not_present = 0;
    let unused = 10 << 12 | 0x47;
    let reserved = 10 << 12 | USED | 1 << 51;
    let mmio = 100 << 12 | USED;
    for entry in [not_present, unused, reserved, mmio] {
        let mut entries = used();
        entries[2] = entry;
        let mut guest = Guest::new(Some(entries));
        guest.access(5, READ);
        assert_eq!(guest.mapped(), [13, 8, 9], "{entry:#x}");
        assert!(guest.events("mark_mmio_spte").is_empty());
    }
    let mut guest = Guest::new(Some(used()));
    guest.machine.set_slots((1 << PAGES) - 1, 1 << 10);
    guest.access(5, READ);
    assert_eq!(guest.mapped(), [13, 8, 9]);
}

#[test]
fn mmio_maps_its_neighbours() {
    let mut entries = used();
    entries[1] = 100 << 12 | USED;
    let mut guest = Guest::new(Some(entries));
    assert_eq!(guest.access(1, READ), Seen::Mmio(100 << 12));
    assert_eq!(guest.mapped(), [8, 10, 11, 12, 13, 14, 15]);
}

#[test]
fn logged_pages_are_mapped_ahead_only_without_the_right_to_write() {
    let mut entries = used();
    // The second is read-only, the third clean, the fourth writable.
    (entries[1], entries[2]) = (9 << 12 | 0x65, 10 << 12 | 0x27);
    let mut guest = Guest::new(Some(entries));
    guest.machine.ram.log.set(DirtyLog::WriteProtection);
    guest.access(0, READ);
    assert_eq!(guest.mapped(), [8, 9, 10]);
    assert!(guest.machine.ram.dirty.borrow().iter().all(|&gfn| gfn == 8));
}

#[test]
fn tables_stay_in_step_when_they_are_mapped_ahead() {
    let mut entries = used();
    // The last table itself.
    entries[1] = 4 << 12 | USED;
    let mut guest = Guest::new(Some(entries));
    guest.access(0, READ);
    assert_eq!(guest.mapped()[..3], [8, 4, 10]);
    assert!(guest.events("kvm_mmu_unsync_page").is_empty());
    // Only a write makes it unsync.
    let before = guest.faults();
    assert_eq!(guest.access(1, WRITE), Seen::Ram(4 << 12));
    assert_eq!(guest.faults(), before + 1);
    assert_eq!(guest.events("kvm_mmu_unsync_page").len(), 1);
}

#[test]
fn without_paging_neighbours_are_mapped_in_runs_within_a_slot() {
    let mut guest = Guest::new(None);
    guest.machine.ram.low_large.set(true);
    guest.access(10, READ);
    assert_eq!(guest.mapped(), [10, 8, 9, 11, 12, 13, 14, 15]);
    // A run of one page is within a slot, one of several isn't if they have slots of their own.
    let mut guest = Guest::new(None);
    guest.access(9, READ);
    assert_eq!(guest.mapped(), [9, 8]);
}

#[test]
fn logged_page_becomes_writable_again_without_the_lock() {
    let mut guest = Guest::new(None);
    guest.access(10, WRITE);
    guest.machine.ram.log.set(DirtyLog::WriteProtection);
    for round in 1..4 {
        guest
            .machine
            .mmu
            .start_logging(&mut guest.machine.tlb, all(), DirtyLog::WriteProtection);
        guest.machine.ram.dirty.borrow_mut().clear();
        guest.events("");
        assert_eq!(guest.access(10, WRITE), Seen::Ram(10 << 12));
        assert!(guest.machine.ram.dirty.borrow().iter().eq(&[10]));
        assert_eq!(guest.vcpu.stats().fast_fixed, round);
        let [event] = guest.events("fast_page_fault").try_into().unwrap();
        assert!(event.starts_with("gva a000 error_code 3 "), "{event}");
        assert!(event.ends_with("spurious 0 fixed 1"), "{event}");
    }
    // Whoever comes second has nothing to do.
    let fault = umbra_mmu::shadow::ShadowFault::from_code(Gva::new(10 << 12), umbra_mmu::x86::PageFaultCode::new(3));
    let mut frames = machine::Frames(guest.machine.ram.clone());
    let outcome = guest.machine.mmu.page_fault(
        &mut guest.vcpu,
        &*guest.machine.ram,
        &mut frames,
        &mut guest.machine.tlb,
        fault,
    );
    assert_eq!(outcome, umbra_mmu::shadow::FaultOutcome::Spurious);
}

#[test]
fn guest_table_is_never_made_writable_without_the_lock() {
    let mut guest = Guest::new(None);
    guest.access(4, WRITE);
    // Another vCPU has paging, and uses the page as a table.
    let mut paged = regs(4, 0x1000);
    paged.cr0 |= WP;
    guest.machine.ram.memory.set(4 << 12, 10 << 12 | USED);
    let mut other = machine::vcpu(&paged);
    assert_eq!(guest.machine.access(&mut other, &paged, 0, READ), Seen::Ram(10 << 12));
    guest.events("");
    assert_eq!(guest.access(3, WRITE), Seen::Tracked(3 << 12));
    assert!(guest.events("fast_page_fault").is_empty());
    // Of the last level: it becomes unsync, on the slow path.
    assert_eq!(guest.access(4, WRITE), Seen::Ram(4 << 12));
    let [event] = guest.events("fast_page_fault").try_into().unwrap();
    assert!(event.ends_with("spurious 0 fixed 0"), "{event}");
    assert_eq!(guest.vcpu.stats().fast_fixed, 0);
}
