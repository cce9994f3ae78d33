//! Listings of small tables, and of tables that mean harm.

use super::*;
use crate::access_mask::AccessMask;
use crate::direct::{DirectMmu, DirectOptions, DirectVcpu, Direction};
use crate::mmio::Freshness;
use crate::shadow::{HostParams, ShadowRoot, SpteLayout};
use crate::x86::control::{GuestCpu, cr0, cr4, efer};
use crate::x86::{PagingRegs, PagingState};
use alloc::vec::Vec;
use umbra_memslots::testing::VecMemory;
use umbra_memslots::{AddressSpaceId, Gpa, Hva, SlotFlags, SlotLimits, SlotRequest, SlotTable};

const LINK: u64 = 0b111;

fn state(cr4: u64, efer: u64, cr3: u64) -> PagingState {
    PagingState::new(&PagingRegs {
        cr0: cr0::PG,
        cr3,
        cr4,
        efer,
        rflags: 0,
        pkru: 0,
        pdptes: [0x2001, 0, 0, 0x2001],
        cpu: GuestCpu::intel(46),
    })
}

fn long() -> PagingState {
    state(cr4::PAE, efer::LMA, 0x1000)
}

fn list(state: &PagingState, memory: &VecMemory) -> Listing {
    guest_tables(state, memory, Limits::default())
}

#[test]
fn alike_entries_are_one_row_and_full_tables_fold() {
    let memory = VecMemory::new(0x8000);
    memory.poke_u64(Gpa::new(0x1000), 0x2000 | LINK);
    for table in 0..3u64 {
        memory.poke_u64(Gpa::new(0x2000 + 8 * table), (0x3000 + table * 0x1000) | LINK);
        for index in 0..512 {
            let dirty = if index == 7 { 0x40 } else { 0 };
            let page = table << 30 | index << 21 | 0x83 | dirty;
            memory.poke_u64(Gpa::new(0x3000 + table * 0x1000 + 8 * index), page);
        }
    }
    let found = list(&long(), &memory);
    assert_eq!(found.rows.len(), 3, "{:x?}", found.rows);
    let (tables, run) = (found.rows[1], found.rows[2]);
    assert!(matches!(
        tables.seen,
        Seen::Table {
            address: 0x3000,
            tables: 3,
            again: false,
            ..
        }
    ));
    assert_eq!((tables.count, run.count, run.bytes()), (3, 1536, 3 << 30));
    let expected = Seen::Page {
        address: 0,
        access: AccessMask::WRITE | AccessMask::EXEC,
        accessed: Share::None,
        dirty: Share::Some,
        repeated: false,
    };
    assert_eq!(run.seen, expected);
    // One entry less, and the last table stands for itself.
    memory.poke_u64(Gpa::new(0x5ff8), 0);
    assert_eq!(list(&long(), &memory).rows.len(), 5);
}

#[test]
fn table_that_points_to_itself_is_listed_once_for_each_level() {
    let memory = VecMemory::new(0x2000);
    for index in 0..512 {
        memory.poke_u64(Gpa::new(0x1000 + 8 * index), 0x1000 | LINK);
    }
    let found = list(&long(), &memory);
    assert!(!found.cut_short);
    let tables = found
        .rows
        .iter()
        .filter(|row| matches!(row.seen, Seen::Table { again: false, .. }));
    assert_eq!(tables.count(), 3);
    // Tables, those of their entries that lead there again (below and above the hole in the addresses), a run at the end.
    assert_eq!(found.rows.len(), 3 + 3 + 1 + 1);
    assert!(matches!(
        found.rows[3].seen,
        Seen::Page {
            address: 0x1000,
            repeated: true,
            ..
        }
    ));
    assert_eq!(found.rows[3].count, 512);
    let cut = guest_tables(
        &long(),
        &memory,
        Limits {
            entries: 100,
            rows: 1 << 10,
        },
    );
    assert!(cut.cut_short);
    let cut = guest_tables(
        &long(),
        &memory,
        Limits {
            entries: 1 << 20,
            rows: 5,
        },
    );
    assert!(cut.cut_short && cut.rows.len() == 5);
}

#[test]
fn bad_entries_say_what_is_bad() {
    let memory = VecMemory::new(0x3000);
    memory.poke_u64(Gpa::new(0x1000), 0x10_0000 | LINK);
    memory.poke_u64(Gpa::new(0x1008), 0x2000 | LINK | 1 << 50);
    memory.poke_u64(Gpa::new(0x1ff8), 0x2000 | LINK | 0x80);
    let found = list(&long(), &memory);
    let seen: Vec<Seen> = found.rows.iter().map(|row| row.seen).collect();
    let expected = [
        Seen::NoTable { address: 0x10_0000 },
        Seen::Reserved { bits: 1 << 50 },
        Seen::Reserved { bits: 0x80 },
    ];
    assert_eq!(seen, expected);
    assert_eq!(found.rows[2].start, 0xffff_ff80_0000_0000, "canonical");
    let nowhere = list(&state(cr4::PAE, efer::LMA, 0xf000_0000), &memory);
    assert!(nowhere.rows.is_empty());
}

#[test]
fn other_modes_have_their_own_sizes() {
    let memory = VecMemory::new(0x4000);
    // PAE: two PDPTEs lead to the same directory.
    memory.poke_u64(Gpa::new(0x2000), 0x60_0000 | 0x83);
    let found = list(&state(cr4::PAE, 0, 0x1000), &memory);
    let starts: Vec<(u64, u8)> = found.rows.iter().map(|row| (row.start, row.level)).collect();
    assert_eq!(starts, [(0, 3), (0, 2), (3 << 30, 3)]);
    assert!(matches!(found.rows[2].seen, Seen::Table { again: true, .. }));
    // 32-bit: a 4 MiB page at the top.
    memory.poke_u64(Gpa::new(0x1ff8), 0x0080_0083 << 32);
    let found = list(&state(cr4::PSE, 0, 0x1000), &memory);
    let [row] = found.rows[..] else { panic!("{found:x?}") };
    assert_eq!((row.start, row.bytes()), (0xffc0_0000, 4 << 20));
    assert!(matches!(row.seen, Seen::Page { address: 0x80_0000, .. }));
}

/// A direct MMU that has met MMIO at these pages; the last one after the slots changed.
fn direct(pages: &[u64], later: u64) -> (DirectMmu, umbra_memslots::Generation, ShadowRoot) {
    let layout = SpteLayout::new(HostParams::x86(46)).unwrap();
    let mmu = DirectMmu::new(DirectOptions::new(layout)).unwrap();
    let mut slots = SlotTable::new(SlotLimits::default());
    let mut reader = slots.reader(AddressSpaceId::Normal).unwrap();
    let mut vcpu = DirectVcpu::new();
    for page in pages {
        let _ = mmu.lookup(&mut vcpu, &mut reader, Gpa::new(page << 12), Direction::Read);
    }
    let slot = SlotRequest::set(0, SlotFlags::empty(), Gpa::new(0), 0x1000, Hva::new(0x1000));
    slots.apply(slot).unwrap();
    let _ = mmu.lookup(&mut vcpu, &mut reader, Gpa::new(later << 12), Direction::Read);
    let now = reader.snapshot().generation();
    let root = mmu.root(AddressSpaceId::Normal);
    (mmu, now, root)
}

#[test]
fn mmio_sptes_are_marked_with_all_they_hold() {
    let (mmu, now, root) = direct(&[0xd0000, 0xd0001], 0xd0002);
    let found = our_tables(&mmu, root, now, Limits::default());
    let leaves: Vec<&Row> = found.rows.iter().filter(|row| row.is_leaf()).collect();
    assert_eq!(leaves.len(), 2, "{found:x?}");
    let Seen::Mmio { facts, freshness } = leaves[0].seen else {
        panic!()
    };
    assert_eq!(
        (facts.gfn.get(), leaves[0].count, freshness),
        (0xd0000, 2, Freshness::Stale)
    );
    let Seen::Mmio { facts, freshness } = leaves[1].seen else {
        panic!()
    };
    assert_eq!((facts.gfn.get(), freshness), (0xd0002, Freshness::Fresh));
    assert_eq!(facts.generation.get(), 2);
}

#[test]
fn direct_rows_stand_beside_the_pages_that_reach_them() {
    let memory = VecMemory::new(0x5000);
    for table in 1..=3u64 {
        memory.poke_u64(Gpa::new(table << 12), (table + 1) << 12 | LINK);
    }
    memory.poke_u64(Gpa::new(0x4000), 0xd000_1000 | LINK);
    memory.poke_u64(Gpa::new(0x4008), 0x1000 | LINK);
    let (mmu, now, root) = direct(&[0xd0000, 0xd0001, 0xd0002], 0x8_0000);
    let ours = our_tables(&mmu, root, now, Limits::default());
    let lines = by_gpa(&list(&long(), &memory).rows, &ours.rows, 100);
    assert_eq!(lines.len(), 5);
    let Some(Row {
        start,
        count,
        seen: Seen::Mmio { facts, .. },
        ..
    }) = lines[3].ours
    else {
        panic!("{lines:x?}")
    };
    assert_eq!(
        (start, count, facts.gfn.get()),
        (0xd000_1000, 1, 0xd0001),
        "the part that the page maps"
    );
    assert_eq!(lines[4].ours, None);
}

#[test]
fn shadow_rows_stand_beside_the_same_addresses() {
    let row = |start, shift| Row {
        start,
        level: 1,
        shift,
        index: 0,
        count: 1,
        raw: 0,
        seen: Seen::Reserved { bits: 1 },
    };
    let guest = [row(0, 39), row(0, 12), row(0x3000, 12)];
    let ours = [row(0, 39), row(0x1000, 12), row(0x3000, 12), row(0x9000, 12)];
    let lines = by_gva(&guest, &ours);
    let pairs: Vec<_> = lines
        .iter()
        .map(|line| (line.guest.map(|row| row.start), line.ours.map(|row| row.start)))
        .collect();
    let expected = [
        (Some(0), Some(0)),
        (Some(0), None),
        (None, Some(0x1000)),
        (Some(0x3000), Some(0x3000)),
        (None, Some(0x9000)),
    ];
    assert_eq!(pairs, expected);
}
