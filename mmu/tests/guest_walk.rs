//! Walks over random tables against the model of the hardware, and what the model can't say: levels, causes, races,
//! read-only tables, PDPTE loading.
#![cfg(not(loom))]
#![expect(clippy::panic, reason = "a test may panic")]

mod common;

use common::{AC, LA57, NXE, PAE, PKE, PSE, SMAP, SMEP, WP, regs};
use proptest::prelude::*;
use std::cell::Cell;
use umbra_memslots::{EntrySize, Exchange, Gpa, GuestMemory, Gva, MemoryFault};
use umbra_mmu::guest_walk::{BadPdpte, PdpteLoad, WalkFailure, load_pdptes, translate, walk};
use umbra_mmu::hw_model::hw_walk;
use umbra_mmu::testing::{WalkMemory, as_hardware, hw_access, hw_cpu};
use umbra_mmu::x86::{
    Access, AccessKind, FaultCause, GuestCpu, PageFault, PagingMode, PagingRegs, PagingState, Privilege,
};

const READ: Access = Access::new(AccessKind::Read, Privilege::User);
const WRITE: Access = Access::new(AccessKind::Write, Privilege::User);
const FETCH: Access = Access::new(AccessKind::Fetch, Privilege::User);
const PAGES: u64 = 8;

/// Entries that lead somewhere more often than not: into the memory (tables, themselves), out of it, or nowhere; with any
/// flags and now and then any other bit.
fn any_entry() -> impl Strategy<Value = u64> {
    let address = prop_oneof![6 => (0..PAGES).prop_map(|page| page << 12), 1 => any::<u64>().prop_map(|a| a & 0x000f_ffff_ffff_f000)];
    let flags = prop_oneof![5 => Just(0x07u64), 2 => Just(0x67), 2 => 0u64..0x1000, 1 => Just(0x87)];
    let odd = prop_oneof![8 => Just(0u64), 2 => (0u32..64).prop_map(|bit| 1 << bit), 1 => any::<u64>()];
    (address, flags, odd).prop_map(|(address, flags, odd)| (address | flags) ^ odd)
}

fn any_regs() -> impl Strategy<Value = PagingRegs> {
    let mode = prop_oneof![1 => Just(0u8), 3 => Just(2), 3 => Just(3), 4 => Just(4), 2 => Just(5)];
    (
        mode,
        0..PAGES,
        any::<u64>(),
        any::<u32>(),
        32u32..=52,
        proptest::array::uniform4(any_entry()),
    )
        .prop_map(|(levels, root, bits, pkru, physical_bits, pdptes)| {
            let mut regs = regs(levels, root << 12);
            let pick = |index: u32, bit: u64| if bits >> index & 1 == 1 { bit } else { 0 };
            regs.cr0 |= pick(0, WP);
            regs.cr4 |= pick(1, PSE) | pick(2, SMEP) | pick(3, SMAP) | pick(4, PKE);
            regs.efer |= pick(5, NXE);
            regs.rflags |= pick(6, AC);
            regs.pkru = pkru;
            regs.pdptes = pdptes;
            regs.cpu = GuestCpu {
                physical_bits,
                gigabyte_pages: bits >> 7 & 1 == 1,
                pse36: bits >> 8 & 1 == 1,
                upper_global_reserved: bits >> 9 & 1 == 1,
            };
            regs
        })
}

/// Indices from the few that are filled, at every level and in every mode's cut of the address.
fn any_gva(levels: u8) -> impl Strategy<Value = u64> {
    proptest::collection::vec(0u64..4, 6).prop_map(move |parts| {
        let shifts: &[u32] = if levels == 2 { &[12, 22] } else { &[12, 21, 30, 39, 48] };
        let low: u64 = shifts.iter().zip(&parts).map(|(shift, part)| part << shift).sum();
        match levels {
            2 => low & 0xffff_ffff | parts[5],
            3 => low & 0x1_ffff_ffff | parts[5],
            _ => low | parts[5],
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn walker_equals_the_hardware_on_random_tables(
        (regs, gvas) in any_regs().prop_flat_map(|regs| {
            let levels = PagingMode::of(&regs).levels();
            (Just(regs), proptest::collection::vec((any_gva(levels), 0usize..9), 1..12))
        }),
        entries in proptest::collection::vec((0..PAGES, 0u64..6, any_entry()), 1..80),
    ) {
        let memory = WalkMemory::new(usize::try_from(PAGES).unwrap());
        for (page, index, entry) in entries {
            memory.set(page << 12 | index << 3, entry);
        }
        let state = PagingState::new(&regs);
        for (gva, access) in gvas {
            let access = Access::ALL[access];
            let before = memory.contents();
            let ours = walk(&state, &memory, Gva::new(gva), access);
            let after = memory.contents();
            memory.restore(&before);
            let quiet = translate(&state, &memory, Gva::new(gva), access);
            prop_assert_eq!(&memory.contents(), &before, "translate left a trace");
            prop_assert_eq!(quiet.ok(), ours.as_ref().ok().map(|walk| walk.gpa));
            let theirs = hw_walk(&hw_cpu(&regs), &memory, gva, hw_access(access));
            prop_assert_eq!(as_hardware(&ours), theirs, "{:?} {:x} {:x?}", access, gva, regs);
            prop_assert_eq!(&memory.contents(), &after, "accessed and dirty flags differ");
            if let Ok(walk) = ours {
                for entry in walk.entries() {
                    // Except for D of an entry that is read at two levels.
                    let held = memory.read_entry(entry.gpa, walk.entry_size()).unwrap();
                    prop_assert_eq!(held & !0x40, entry.pte.raw() & !0x40);
                }
            }
        }
    }
}

/// Four levels at pages 1 to 4, all through entry 0, to page 5.
fn chain() -> (WalkMemory, PagingRegs) {
    let memory = WalkMemory::new(8);
    for page in 1..=4u64 {
        memory.set(page << 12, (page + 1) << 12 | 7);
    }
    (memory, regs(4, 0x1000))
}

fn fault(result: Result<umbra_mmu::guest_walk::GuestWalk, WalkFailure>) -> PageFault {
    match result {
        Err(WalkFailure::Fault(fault)) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn fault_says_the_level_and_the_cause() {
    for (page, level) in [(1u64, 4u8), (2, 3), (3, 2), (4, 1)] {
        let look = |entry, access| {
            let (memory, mut regs) = chain();
            regs.efer |= NXE;
            memory.set(page << 12, entry);
            let fault = fault(walk(&PagingState::new(&regs), &memory, Gva::new(0x123), access));
            assert_eq!(fault.gva, Gva::new(0x123));
            (fault.level, fault.code.raw(), fault.cause)
        };
        let next = (page + 1) << 12;
        assert_eq!(look(0, READ), (level, 0x4, FaultCause::NotPresent));
        assert_eq!(look(next | 6, FETCH), (level, 0x14, FaultCause::NotPresent));
        assert_eq!(look(1 << 50 | next | 7, WRITE), (level, 0xf, FaultCause::Reserved));
        // A permission is found missing at the end of the walk, whichever entry lacks it.
        assert_eq!(look(next | 5, WRITE), (1, 0x7, FaultCause::Permission));
        assert_eq!(look(next | 3, READ), (1, 0x5, FaultCause::Permission));
        assert_eq!(look(1 << 63 | next | 7, FETCH), (1, 0x15, FaultCause::Permission));
    }
}

#[test]
fn missing_table_is_a_fault_that_looks_like_not_present() {
    let (memory, regs) = chain();
    memory.set(0x2000, 0x10_0000_0000 | 7);
    let fault = fault(walk(&PagingState::new(&regs), &memory, Gva::new(0), WRITE));
    let gpa = Gpa::new(0x10_0000_0000);
    assert_eq!((fault.level, fault.code.raw()), (2, 0x6));
    assert_eq!(fault.cause, FaultCause::NoTable(MemoryFault::NoSlot { gpa }));
}

#[test]
fn non_canonical_address_never_reaches_the_tables() {
    let (memory, mut regs) = chain();
    let odd = Gva::new(1 << 47);
    assert_eq!(
        walk(&PagingState::new(&regs), &memory, odd, READ),
        Err(WalkFailure::NonCanonical(odd))
    );
    regs.cr4 |= LA57;
    assert!(!matches!(
        walk(&PagingState::new(&regs), &memory, odd, READ),
        Err(WalkFailure::NonCanonical(_))
    ));
}

#[test]
fn table_that_maps_itself_ends_after_its_levels() {
    let memory = WalkMemory::new(2);
    memory.set(0x1000, 0x1000 | 7);
    for levels in [4, 5] {
        let walk = walk(
            &PagingState::new(&regs(levels, 0x1000)),
            &memory,
            Gva::new(0x234),
            WRITE,
        )
        .unwrap();
        assert_eq!(
            (walk.gpa, walk.entries().len()),
            (Gpa::new(0x1234), usize::from(levels))
        );
        // The one entry is read anew at each level: the last reading found the flags that the others set.
        assert_eq!(memory.get(0x1000), 0x1067);
        memory.set(0x1000, 0x1007);
    }
}

/// A memory in which another CPU interferes with compare-exchanges.
struct Interfering<'a, F: Fn(&WalkMemory, u32) -> Option<MemoryFault>> {
    memory: &'a WalkMemory,
    calls: Cell<u32>,
    other_cpu: F,
}

impl<F: Fn(&WalkMemory, u32) -> Option<MemoryFault>> GuestMemory for Interfering<'_, F> {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), MemoryFault> {
        self.memory.read(gpa, buffer)
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryFault> {
        self.memory.write(gpa, data)
    }

    fn read_entry(&self, gpa: Gpa, size: EntrySize) -> Result<u64, MemoryFault> {
        self.memory.read_entry(gpa, size)
    }

    fn compare_exchange_entry(&self, gpa: Gpa, size: EntrySize, old: u64, new: u64) -> Result<Exchange, MemoryFault> {
        self.calls.set(self.calls.get() + 1);
        match (self.other_cpu)(self.memory, self.calls.get()) {
            Some(fault) => Err(fault),
            None => self.memory.compare_exchange_entry(gpa, size, old, new),
        }
    }
}

fn interfered(
    other_cpu: impl Fn(&WalkMemory, u32) -> Option<MemoryFault>,
) -> (WalkMemory, Result<u64, WalkFailure>, u32) {
    let (memory, regs) = chain();
    let racing = Interfering {
        memory: &memory,
        calls: Cell::new(0),
        other_cpu,
    };
    let result = walk(&PagingState::new(&regs), &racing, Gva::new(0), WRITE).map(|walk| walk.gpa.get());
    let calls = racing.calls.get();
    (memory, result, calls)
}

#[test]
fn entry_changed_between_reading_and_flagging_is_walked_again() {
    // Just before D would be set, another CPU maps another page.
    let (memory, result, _) = interfered(|memory, call| {
        if call == 4 {
            memory.set(0x4000, 0x6007);
        }
        None
    });
    assert_eq!(result, Ok(0x6000));
    assert_eq!((memory.get(0x4000), memory.get(0x1000)), (0x6067, 0x2027));
    // Another one takes it away.
    let (memory, result, _) = interfered(|memory, call| {
        if call == 4 {
            memory.set(0x4000, 0);
        }
        None
    });
    assert!(matches!(result, Err(WalkFailure::Fault(fault)) if fault.cause == FaultCause::NotPresent));
    assert_eq!(memory.get(0x4000), 0);
}

#[test]
fn guest_that_changes_an_entry_for_ever_cannot_hold_the_walk_up() {
    let (_, result, calls) = interfered(|memory, call| {
        memory.set(0x4000, 0x5007 | u64::from(call % 7) << 52);
        memory.set(0x1000, 0x2007 | u64::from(call % 7) << 52);
        None
    });
    assert_eq!(result, Err(WalkFailure::Retry));
    assert!(calls < 100, "{calls}");
}

#[test]
fn read_only_tables_work_without_flags_and_vanishing_ones_mean_retry() {
    let (memory, result, _) = interfered(|_, _| Some(MemoryFault::ReadOnly { gpa: Gpa::new(0) }));
    assert_eq!((result, memory.get(0x4000)), (Ok(0x5000), 0x5007));
    let (_, result, _) = interfered(|_, call| (call == 2).then_some(MemoryFault::BeingRemoved { gpa: Gpa::new(0) }));
    assert_eq!(result, Err(WalkFailure::Retry));
}

#[test]
fn pdptes_are_loaded_whole_or_not_at_all() {
    let memory = WalkMemory::new(2);
    let mut regs = regs(3, 0x1020);
    regs.cr4 |= PAE;
    for index in 0..4 {
        memory.set(0x1020 + 8 * index, 0x1001);
    }
    assert_eq!(load_pdptes(&regs, &memory), PdpteLoad::Loaded([0x1001; 4]));
    for bit in 0..64 {
        memory.set(0x1038, 0x1001 ^ 1 << bit);
        // Present is bit 0; 1-2 and 5-8 are reserved, and all from the physical width on.
        let reserved = [1, 2, 5, 6, 7, 8].contains(&bit) || bit >= 46;
        let expected = BadPdpte {
            index: 3,
            entry: 0x1001 ^ 1 << bit,
            reserved: 1 << bit,
        };
        assert_eq!(
            load_pdptes(&regs, &memory) == PdpteLoad::Fault(expected),
            reserved,
            "bit {bit}"
        );
    }
    // An absent one may hold anything.
    memory.set(0x1038, !1);
    assert_eq!(
        load_pdptes(&regs, &memory),
        PdpteLoad::Loaded([0x1001, 0x1001, 0x1001, !1])
    );
    regs.cr3 = 0x8000_0000;
    assert!(matches!(load_pdptes(&regs, &memory), PdpteLoad::NoMemory(_)));
}

#[test]
fn pse36_page_lies_above_4_gib() {
    let memory = WalkMemory::new(2);
    memory.set32(0x1004, 0x0040_0087 | 0xab << 13);
    let mut regs = regs(2, 0x1000);
    regs.cr4 |= PSE;
    let found = walk(&PagingState::new(&regs), &memory, Gva::new(0x0041_2345), READ).unwrap();
    assert_eq!((found.gpa, found.page_shift), (Gpa::new(0xab_0041_2345), 22));
    // Without PSE the same entry leads to a table.
    regs.cr4 = 0;
    assert!(walk(&PagingState::new(&regs), &memory, Gva::new(0x0041_2345), READ).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn walker_equals_the_hardware_on_random_bytes(bytes in proptest::collection::vec(any::<u8>(), 8..300), accesses: [u8; 32]) {
        let mut bytes = bytes;
        // The mark after which accesses come, in the place of an entry.
        bytes.truncate(8 + (bytes.len() - 8) / 3 * 3);
        bytes.extend([0xff; 3]);
        bytes.extend(accesses);
        umbra_mmu::testing::check_walk_bytes(&bytes);
    }
}
