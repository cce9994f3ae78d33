//! `Bytes` on guest-virtual addresses.
#![expect(clippy::unwrap_used, clippy::panic, reason = "test helpers fail by panicking")]

use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use umbra_memslots::{
    AddressSpaceId, Gpa, GuestMemory, GuestRam, Gva, HostMapping, NewSlot, SlotFlags, SlotId, SlotLimits,
};
use umbra_mmu::guest_walk::WalkFailure;
use umbra_mmu::gva_memory::{Behalf, GvaFault, GvaMemory};
use umbra_mmu::x86::control::{GuestCpu, cr0, cr4, efer};
use umbra_mmu::x86::{AccessKind, FaultCause, PageFaultCode, PagingRegs, PagingState, Privilege};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, GuestMemoryError, Permissions};

const ROOT: u64 = 0x1000;
const LAST_TABLE: u64 = 0x4000;
const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
/// A read-only slot.
const ROM: u64 = 0x10_0000;

/// 64 KiB of RAM that logs its dirty pages and a page of ROM; four levels of tables from `ROOT` on, each of whose first
/// and last entries lead to the next one.
struct Guest {
    ram: GuestRam,
    slot: SlotId,
    state: PagingState,
}

impl Guest {
    fn new() -> Self {
        let ram = GuestRam::new(SlotLimits::X86_64);
        let mapping = |bytes| Arc::new(HostMapping::anonymous(bytes).unwrap());
        let slot = ram
            .add(NewSlot::whole(Gpa::new(0), mapping(0x1_0000)).with_flags(SlotFlags::LOG_DIRTY))
            .unwrap();
        ram.add(NewSlot::whole(Gpa::new(ROM), mapping(0x1000)).with_flags(SlotFlags::READ_ONLY))
            .unwrap();
        let state = PagingState::new(&PagingRegs {
            cr0: cr0::PG | cr0::WP,
            cr3: ROOT,
            cr4: cr4::PAE | cr4::SMAP | cr4::SMEP,
            efer: efer::LMA | efer::NXE,
            rflags: 0,
            pkru: 0,
            pdptes: [0; 4],
            cpu: GuestCpu::intel(46),
        });
        let guest = Self { ram, slot, state };
        for table in [ROOT, ROOT + 0x1000, ROOT + 0x2000] {
            guest.set(table, (table + 0x1000) | P | W | U);
            guest.set(table + 0xff8, (table + 0x1000) | P | W | U);
        }
        guest
    }

    fn set(&self, at: u64, entry: u64) {
        self.ram.write(Gpa::new(at), &entry.to_le_bytes()).unwrap();
    }

    fn entry(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.ram.read(Gpa::new(at), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Maps page `page` of the virtual address space.
    fn map(&self, page: u64, entry: u64) {
        self.set(LAST_TABLE + 8 * page, entry);
    }

    fn pte(&self, page: u64) -> u64 {
        self.entry(LAST_TABLE + 8 * page)
    }

    fn dirty(&self) -> u64 {
        let slot = self.slot.in_space(AddressSpaceId::Normal);
        self.ram.with_table(|table| table.get_dirty_log(slot)).unwrap()[0]
    }

    fn on(&self, behalf: Behalf) -> GvaMemory {
        GvaMemory::new(self.ram.snapshot(), self.state, behalf)
    }
}

const KERNEL: Behalf = Behalf::Guest(Privilege::Supervisor);
const USER: Behalf = Behalf::Guest(Privilege::User);

fn fault(error: &GuestMemoryError) -> GvaFault {
    *GvaFault::of(error).unwrap_or_else(|| panic!("{error}"))
}

#[test]
fn bytes_across_pages_that_lie_apart_come_in_order() {
    let guest = Guest::new();
    guest.map(0, 0x9000 | P | W);
    guest.map(1, 0x6000 | P | W);
    guest.map(2, 0x8000 | P | W);
    let memory = guest.on(KERNEL);
    let text: Vec<u8> = (0..0x1800u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    memory.write_slice(&text, GuestAddress(0xc00)).unwrap();
    let mut found = vec![0; text.len()];
    memory.read_slice(&mut found, GuestAddress(0xc00)).unwrap();
    assert_eq!(found, text);
    let mut part = [0; 0x400];
    guest.ram.read(Gpa::new(0x9c00), &mut part).unwrap();
    assert_eq!(part, text[..0x400]);
    guest.ram.read(Gpa::new(0x8000), &mut part).unwrap();
    assert_eq!(part, text[0x1400..]);
}

#[test]
fn write_for_the_guest_sets_flags_and_logs_what_it_wrote() {
    let guest = Guest::new();
    guest.map(0, 0x6000 | P | W);
    guest.map(1, 0x8000 | P | W);
    let memory = guest.on(KERNEL);
    guest.dirty();
    memory.read_obj::<u64>(GuestAddress(0x10)).unwrap();
    assert_eq!((guest.pte(0) & (A | D), guest.pte(1) & (A | D)), (A, 0));
    assert_eq!(guest.dirty(), 0b1_1110, "the tables' own pages, for their flags");
    memory.write_obj(7u64, GuestAddress(0xffc)).unwrap();
    assert_eq!((guest.pte(0) & (A | D), guest.pte(1) & (A | D)), (A | D, A | D));
    assert_eq!(guest.dirty(), 1 << 6 | 1 << 8 | 1 << 4);
    memory.store(9u32, GuestAddress(0x1004), Ordering::SeqCst).unwrap();
    assert_eq!(guest.entry(0x8000) >> 32, 9);
}

#[test]
fn access_that_fails_later_on_has_touched_nothing() {
    let guest = Guest::new();
    guest.map(0, 0x6000 | P | W);
    guest.map(1, 0x8000 | P);
    let memory = guest.on(KERNEL);
    let error = memory.write_slice(&[1; 0x20], GuestAddress(0xff0)).unwrap_err();
    let GvaFault::Walk(WalkFailure::Fault(found)) = fault(&error) else {
        panic!("{error}")
    };
    assert_eq!((found.gva, found.cause), (Gva::new(0x1000), FaultCause::Permission));
    assert_eq!(found.code, PageFaultCode::new(0b11));
    assert_eq!((guest.pte(0), guest.entry(0x6ff0)), (0x6000 | P | W, 0));
    assert!(
        error
            .to_string()
            .contains("page fault at 0x1000, error code 0x3, at level 1: not permitted")
    );
}

#[test]
fn permissions_are_those_of_the_privilege() {
    let guest = Guest::new();
    guest.map(0, 0x6000 | P | W);
    guest.map(1, 0x8000 | P | W | U);
    let reads = |behalf, gva| guest.on(behalf).check_range(GuestAddress(gva), 8, Permissions::Read);
    assert!(reads(KERNEL, 0) && !reads(KERNEL, 0x1000), "SMAP");
    assert!(!reads(USER, 0) && reads(USER, 0x1000));
    assert!(reads(Behalf::Debugger, 0) && reads(Behalf::Debugger, 0x1000));
    assert_eq!(
        guest.on(USER).translate(Gva::new(0x1234), AccessKind::Fetch),
        Ok(Gpa::new(0x8234))
    );
    assert_eq!(guest.pte(1) & A, 0, "to ask leaves no trace");
}

#[test]
fn debugger_writes_everywhere_and_leaves_no_flags() {
    let guest = Guest::new();
    guest.map(0, 0x6000 | P);
    guest.map(1, ROM | P);
    let debugger = guest.on(Behalf::Debugger);
    debugger.write_slice(&[0xcc; 2], GuestAddress(0xfff)).unwrap();
    let mut found = [0; 2];
    debugger.read_slice(&mut found, GuestAddress(0xfff)).unwrap();
    assert_eq!(found, [0xcc; 2]);
    assert_eq!((guest.pte(0), guest.pte(1)), (0x6000 | P, ROM | P));
    assert_eq!(guest.entry(ROOT), (ROOT + 0x1000) | P | W | U);
}

#[test]
fn what_is_no_writable_ram_is_an_error_of_its_own() {
    let guest = Guest::new();
    guest.map(0, 0xd000_0000 | P | W);
    guest.map(1, ROM | P | W);
    let memory = guest.on(KERNEL);
    assert_eq!(
        fault(&memory.read_obj::<u8>(GuestAddress(8)).unwrap_err()),
        GvaFault::NoRam {
            gva: Gva::new(8),
            gpa: Gpa::new(0xd000_0008)
        }
    );
    assert!(memory.read_obj::<u8>(GuestAddress(0x1000)).is_ok());
    assert_eq!(
        fault(&memory.write_obj(1u8, GuestAddress(0x1000)).unwrap_err()),
        GvaFault::ReadOnly {
            gva: Gva::new(0x1000),
            gpa: Gpa::new(ROM)
        }
    );
}

#[test]
fn ends_of_the_address_space_are_errors_not_wraps() {
    let guest = Guest::new();
    guest.map(511, 0x6000 | P | W);
    let memory = guest.on(KERNEL);
    // The last page there is.
    memory.write_obj(5u64, GuestAddress(u64::MAX - 7)).unwrap();
    assert_eq!(guest.entry(0x6ff8), 5);
    assert!(memory.write_obj(5u64, GuestAddress(u64::MAX - 6)).is_err());
    assert!(!memory.check_range(GuestAddress(u64::MAX), usize::MAX, Permissions::Read));
    assert_eq!(
        fault(&memory.read_obj::<u8>(GuestAddress(1 << 47)).unwrap_err()),
        GvaFault::Walk(WalkFailure::NonCanonical(Gva::new(1 << 47)))
    );
    assert!(
        memory.check_range(GuestAddress(1 << 47), 0, Permissions::ReadWrite),
        "nothing is everywhere"
    );
    assert_eq!(memory.read(&mut [], GuestAddress(1 << 47)).unwrap(), 0);
}

proptest! {
    /// Against a byte-by-byte copy through `translate`.
    #[test]
    fn bytes_are_those_that_translate_leads_to(
        frames in proptest::collection::vec(proptest::option::weighted(0.9, 5u64..16), 6),
        at in 0u64..0x5800,
        count in 0usize..0x1800,
    ) {
        let guest = Guest::new();
        for (page, frame) in (0..).zip(&frames) {
            guest.map(page, frame.map_or(0, |frame| frame << 12 | P | W));
        }
        let pattern: Vec<u8> = (0..0xb000u32).map(|n| u8::try_from(n % 249).unwrap()).collect();
        guest.ram.write(Gpa::new(0x5000), &pattern).unwrap();
        let memory = guest.on(KERNEL);
        let slow: Result<Vec<u8>, WalkFailure> = (at..at + count as u64)
            .map(|gva| {
                let mut byte = [0];
                guest.ram.read(memory.translate(Gva::new(gva), AccessKind::Read)?, &mut byte).unwrap();
                Ok(byte[0])
            })
            .collect();
        let mut fast = vec![0; count];
        match (memory.read_slice(&mut fast, GuestAddress(at)), slow) {
            (Ok(()), Ok(slow)) => prop_assert_eq!(fast, slow),
            (Err(error), Err(slow)) => prop_assert_eq!(fault(&error), GvaFault::Walk(slow)),
            (fast, slow) => prop_assert!(false, "{:?} or {:?}", fast, slow.map(|bytes| bytes.len())),
        }
    }
}
