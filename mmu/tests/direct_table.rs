//! The direct table against a plain map, and its tables counted.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use std::collections::BTreeMap;
use umbra_memslots::{AddressSpaceId, Gfn, GfnRange};
use umbra_mmu::direct::{DirectTable, LastTable, Levels, NewTableError, OutOfTables};
use umbra_mmu::shadow::{EntryFormat, HostParams, SpteLayout};
use umbra_mmu::tables::{HeapTables, TableSpace};

const ROOTS: u32 = AddressSpaceId::COUNT as u32;

fn table(host: HostParams, levels: Levels, capacity: u32) -> DirectTable {
    let layout = SpteLayout::new(host).unwrap();
    DirectTable::new(layout, levels, HeapTables::new(0x1000, capacity).unwrap()).unwrap()
}

fn gfn(raw: u64) -> Gfn {
    Gfn::new(raw).unwrap()
}

fn range(start: u64, pages: u64) -> GfnRange {
    GfnRange::new(gfn(start), pages).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Install(AddressSpaceId, u64, u64),
    Zap(AddressSpaceId, u64, u64),
    ZapAll(AddressSpaceId),
}

/// Frames that share tables at every level, and some that share none.
fn any_gfn() -> impl Strategy<Value = u64> {
    let part = prop_oneof![0u64..4, 508u64..512];
    (part.clone(), part.clone(), part.clone(), part, 0u64..2)
        .prop_map(|(a, b, c, d, e)| a | b << 9 | c << 18 | d << 27 | e << 36)
}

fn any_step() -> impl Strategy<Value = Step> {
    let space = prop_oneof![Just(AddressSpaceId::Normal), Just(AddressSpaceId::Smm)];
    let pages = prop_oneof![
        1u64..5,
        Just(511),
        Just(512),
        Just(513),
        Just(1 << 18),
        Just((1 << 27) + 1),
        Just(1 << 45)
    ];
    prop_oneof![
        8 => (space.clone(), any_gfn(), 1u64..1000).prop_map(|(s, g, e)| Step::Install(s, g, e << 12 | 1)),
        3 => (space.clone(), any_gfn(), pages).prop_map(|(s, g, p)| Step::Zap(s, g, p)),
        1 => space.prop_map(Step::ZapAll),
    ]
}

proptest! {
    #[test]
    fn table_equals_a_map_after_any_steps(
        steps in proptest::collection::vec(any_step(), 1..60),
        five: bool,
        suppress_ve: bool,
    ) {
        let host = if suppress_ve {
            HostParams { format: EntryFormat::Ept { suppress_ve: true }, ..HostParams::ept(46) }
        } else {
            HostParams::x86(46)
        };
        let levels = if five { Levels::Five } else { Levels::Four };
        let table = table(host, levels, 400);
        let empty = table.layout().empty();
        let mut model: BTreeMap<(AddressSpaceId, u64), u64> = BTreeMap::new();
        let mut last = LastTable::new();
        let mut asked: Vec<(AddressSpaceId, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Install(space, frame, entry) => {
                    let done = table.write(|writer| writer.install(space, gfn(frame), entry)).unwrap();
                    if levels.holds(gfn(frame)) {
                        prop_assert_eq!(done.old, model.insert((space, frame), entry).unwrap_or(empty));
                        prop_assert_eq!(table.space().load(done.at), entry);
                    }
                    asked.push((space, frame));
                }
                Step::Zap(space, frame, pages) => {
                    let zapped = table.write(|writer| writer.zap_range(space, range(frame, pages)));
                    let before = model.len();
                    model.retain(|&(s, f), _| s != space || f < frame || f >= frame + pages);
                    prop_assert_eq!(zapped.leaves, (before - model.len()) as u64);
                }
                Step::ZapAll(space) => {
                    table.write(|writer| writer.zap_all(space));
                    model.retain(|&(s, _), _| s != space);
                }
            }
            for &(space, frame) in &asked {
                let found = table.walk(space, gfn(frame)).unwrap();
                prop_assert_eq!(found.entry, model.get(&(space, frame)).copied().unwrap_or(empty));
                prop_assert_eq!(table.walk_from(&mut last, space, gfn(frame)).unwrap().entry, found.entry);
            }
        }
        for space in AddressSpaceId::ALL {
            table.write(|writer| writer.zap_all(space));
        }
        prop_assert_eq!(table.tables_in_use(), ROOTS, "tables leaked");
        for index in 0..table.space().capacity() {
            for entry in 0..512 {
                let at = umbra_mmu::tables::EntryLocation { table: umbra_mmu::tables::TableId::new(index), index: entry };
                prop_assert!([0, empty].contains(&table.space().load(at)), "a free table isn't empty");
            }
        }
    }
}

#[test]
fn too_small_a_space_is_refused_and_the_smallest_holds_one_page() {
    let layout = SpteLayout::new(HostParams::x86(46)).unwrap();
    let needed = ROOTS + 3;
    let refused = DirectTable::new(layout, Levels::Four, HeapTables::new(0, needed - 1).unwrap());
    assert_eq!(
        refused.err(),
        Some(NewTableError::TooFewTables {
            capacity: needed - 1,
            needed
        })
    );
    let table = table(HostParams::x86(46), Levels::Four, needed);
    let install = |frame| table.write(|writer| writer.install(AddressSpaceId::Normal, gfn(frame), 0x1001));
    assert!(install(0).is_ok());
    assert!(install(511).is_ok());
    assert_eq!(install(512), Err(OutOfTables { limit: needed }));
    assert_eq!(table.walk(AddressSpaceId::Normal, gfn(511)).unwrap().entry, 0x1001);
    table.write(|writer| writer.zap_all(AddressSpaceId::Normal));
    assert!(install(512).is_ok());
}

#[test]
fn gfn_beyond_the_tree_is_empty_and_not_installed() {
    let table = table(HostParams::x86(46), Levels::Four, 16);
    let beyond = gfn(1 << 36);
    table
        .write(|writer| writer.install(AddressSpaceId::Normal, beyond, 0x1001))
        .unwrap();
    assert_eq!(table.walk(AddressSpaceId::Normal, beyond).unwrap().entry, 0);
    assert_eq!(table.walk(AddressSpaceId::Normal, gfn(0)).unwrap().entry, 0);
    assert_eq!(table.tables_in_use(), ROOTS);
}

/// The links are what a CPU would follow: walk the raw bits by the manual (SDM vol. 3A, table 4-15 and on).
#[test]
fn raw_entries_lead_a_hardware_walk_to_the_leaf() {
    let table = table(HostParams::x86(46), Levels::Four, 16);
    let frame = 0x1_2345_6789;
    table
        .write(|writer| writer.install(AddressSpaceId::Smm, gfn(frame), 0xabc_d001))
        .unwrap();
    let mut at = table.space().address(table.root(AddressSpaceId::Smm));
    for shift in [27, 18, 9, 0] {
        let id = table.space().table_at(at).unwrap();
        let index = u16::try_from(frame >> shift & 0x1ff).unwrap();
        let entry = table
            .space()
            .load(umbra_mmu::tables::EntryLocation { table: id, index });
        if shift == 0 {
            assert_eq!(entry, 0xabc_d001);
        } else {
            assert_eq!(entry & 0b111, 0b111, "present, writable, user");
            assert_eq!(entry & (1 << 7), 0, "not a large page");
            assert_eq!(entry >> 46, 0, "no reserved bit, no NX");
        }
        at = entry & 0x000f_ffff_ffff_f000;
    }
}
