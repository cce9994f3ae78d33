//! RAM in direct tables, against a plain list of mappings, as the models of the hardware see it in both formats.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use umbra_memslots::{AddressSpaceId, Generation, Gfn, GfnRange};
use umbra_mmu::AccessMask;
use umbra_mmu::direct::{DirectTable, Levels, RamLeaf};
use umbra_mmu::hw_model::{EptOutcome, HwAccess, HwCpu, HwMemory, HwOutcome, ept_walk, hw_walk};
use umbra_mmu::mmio::{MmioGen, MmioSpte};
use umbra_mmu::shadow::{DirtyLog, HostParams, SpteLayout};
use umbra_mmu::tables::{EntryLocation, HeapTables, TableSpace};

const SPACE: AddressSpaceId = AddressSpaceId::Normal;
const WIDTH: u32 = 46;

fn gfn(raw: u64) -> Gfn {
    Gfn::new(raw).unwrap()
}

fn range(first: u64, pages: u64) -> GfnRange {
    GfnRange::new(gfn(first), pages).unwrap()
}

fn pages(level: u8) -> u64 {
    1 << (9 * (level - 1))
}

/// The tables as physical memory.
struct Wired<'a>(&'a HeapTables);

impl Wired<'_> {
    fn at(&self, address: u64) -> Option<EntryLocation> {
        let index = u16::try_from(address % 4096 / 8).unwrap();
        self.0.table_at(address).map(|table| EntryLocation { table, index })
    }
}

impl HwMemory for Wired<'_> {
    fn load(&self, address: u64, _bytes: u64) -> u64 {
        self.at(address).map_or(u64::MAX, |at| self.0.load(at))
    }

    fn set_bits(&self, address: u64, _bytes: u64, expected: u64, bits: u64) -> bool {
        self.at(address)
            .is_none_or(|at| self.0.compare_exchange(at, expected, expected | bits).is_ok())
    }
}

/// What an access came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Memory(u64),
    Mmio,
    NotMapped,
    Forbidden,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Read,
    Write,
    Fetch,
}

/// A table with a CPU.
struct Real {
    table: DirectTable,
    ept: bool,
}

impl Real {
    fn new(ept: bool, tables: u32) -> Self {
        let host = if ept {
            HostParams::ept(WIDTH)
        } else {
            HostParams::x86(WIDTH)
        };
        let layout = SpteLayout::new(host).unwrap();
        let space = HeapTables::new(0x10_0000, tables).unwrap();
        let table = DirectTable::new(layout, Levels::Four, space).unwrap();
        Self { table, ept }
    }

    fn access(&self, page: u64, kind: Kind) -> Seen {
        let wires = HwAccess {
            write: kind == Kind::Write,
            fetch: kind == Kind::Fetch,
            cpl3: true,
            implicit: false,
        };
        let root = self.table.space().address(self.table.root(SPACE));
        let memory = Wired(self.table.space());
        if self.ept {
            return match ept_walk(root, WIDTH, &memory, page << 12 | 8, wires) {
                EptOutcome::Access { address } => {
                    if kind == Kind::Write {
                        self.set_ept_dirty(page);
                    }
                    Seen::Memory(address)
                }
                EptOutcome::Misconfiguration => Seen::Mmio,
                EptOutcome::Violation if self.entry(page) & 0b111 == 0 => Seen::NotMapped,
                EptOutcome::Violation => Seen::Forbidden,
            };
        }
        let cpu = HwCpu {
            cr0: 1 << 31 | 1 << 16,
            cr3: root,
            cr4: 1 << 5,
            efer: 1 << 10 | 1 << 11,
            rflags: 0,
            pkru: 0,
            pdpte: [0; 4],
            maxphyaddr: WIDTH,
            page1gb: true,
            pse36: true,
            amd: true,
        };
        match hw_walk(&cpu, &memory, page << 12 | 8, wires) {
            HwOutcome::Access(found) => Seen::Memory(found.address),
            HwOutcome::PageFault { code } if code & 8 != 0 => Seen::Mmio,
            HwOutcome::PageFault { code } if code & 1 != 0 => Seen::Forbidden,
            _ => Seen::NotMapped,
        }
    }

    fn entry(&self, page: u64) -> u64 {
        self.table.walk(SPACE, gfn(page)).unwrap().entry
    }

    /// The model of the EPT walker is of a CPU without flags: set D as one with them does.
    fn set_ept_dirty(&self, page: u64) {
        let leaf = self.table.walk(SPACE, gfn(page)).unwrap();
        let dirty = leaf.entry | 1 << 9;
        self.table.space().compare_exchange(leaf.at, leaf.entry, dirty).unwrap();
    }

    fn map(&self, page: u64, leaf: RamLeaf) {
        let mapped = self.table.write(|writer| writer.map(SPACE, gfn(page), leaf)).unwrap();
        assert_eq!(self.table.space().load(mapped.at), mapped.entry);
    }

    fn mmio(&self, page: u64) {
        let layout = self.table.layout();
        let made = MmioGen::cut(Generation::from_raw(2), layout.generation_spans());
        let spte = MmioSpte::encode(layout, gfn(page), AccessMask::ALL, made).unwrap();
        self.table
            .write(|writer| writer.install(SPACE, gfn(page), spte.raw()))
            .unwrap();
    }

    fn collect(&self, range: GfnRange) -> Vec<GfnRange> {
        let mut found = Vec::new();
        let any = self
            .table
            .write(|writer| writer.collect_dirty(SPACE, range, |dirty| found.push(dirty)));
        assert_eq!(any, !found.is_empty());
        found
    }
}

/// One mapping of the list.
#[derive(Clone, Copy, Debug)]
struct Block {
    first: u64,
    pages: u64,
    /// `None`: MMIO.
    address: Option<u64>,
    write: bool,
    exec: bool,
    dirty: bool,
}

#[derive(Default)]
struct Naive(Vec<Block>);

impl Naive {
    fn overlapping(&mut self, range: GfnRange) -> impl Iterator<Item = &mut Block> {
        let (first, last) = (range.start().get(), range.last().get());
        self.0
            .iter_mut()
            .filter(move |block| block.first <= last && first < block.first + block.pages)
    }

    fn zap(&mut self, range: GfnRange) {
        let (first, last) = (range.start().get(), range.last().get());
        self.0
            .retain(|block| block.first > last || first >= block.first + block.pages);
    }

    /// Makes room for a block: larger ones are cut into 512 each until they fit, smaller ones go.
    fn make_room(&mut self, range: GfnRange) {
        while let Some(at) = self.0.iter().position(|block| {
            block.pages > range.pages() && (block.first..block.first + block.pages).contains(&range.start().get())
        }) {
            let block = self.0.swap_remove(at);
            let pages = block.pages / 512;
            self.0.extend((0..512).map(|part| Block {
                first: block.first + part * pages,
                pages,
                address: block.address.map(|address| address + ((part * pages) << 12)),
                ..block
            }));
        }
        self.zap(range);
    }

    fn map(&mut self, page: u64, leaf: RamLeaf) {
        let level = if leaf.log == DirtyLog::Off { leaf.level } else { 1 };
        let pages = pages(level);
        let first = page / pages * pages;
        let write =
            leaf.access.contains(AccessMask::WRITE) && (leaf.log != DirtyLog::WriteProtection || leaf.for_write);
        let new = Block {
            first,
            pages,
            address: Some(leaf.address),
            write,
            exec: leaf.access.contains(AccessMask::EXEC),
            dirty: write && (leaf.log != DirtyLog::DirtyFlags || leaf.for_write),
        };
        let before: Vec<Block> = {
            let target = range(first, pages);
            let mut copy = Naive(self.0.clone());
            if copy
                .0
                .iter()
                .any(|block| block.pages > pages && block.first <= first && first < block.first + block.pages)
            {
                let old = copy
                    .0
                    .iter()
                    .find(|block| block.first <= first && first < block.first + block.pages);
                let old = *old.unwrap();
                let address = old.address.map(|address| address + ((first - old.first) << 12));
                copy.0 = vec![Block {
                    first,
                    pages,
                    address,
                    ..old
                }];
            }
            copy.overlapping(target).map(|block| *block).collect()
        };
        let kept = before
            .iter()
            .any(|old| (old.first, old.pages, old.address) == (first, pages, new.address) && old.dirty);
        self.make_room(range(first, pages));
        self.0.push(Block {
            dirty: new.dirty || kept,
            ..new
        });
    }

    fn access(&mut self, page: u64, kind: Kind) -> Seen {
        let Some(block) = self.overlapping(range(page, 1)).next() else {
            return Seen::NotMapped;
        };
        let Some(address) = block.address else {
            return Seen::Mmio;
        };
        match kind {
            Kind::Write if !block.write => return Seen::Forbidden,
            Kind::Fetch if !block.exec => return Seen::Forbidden,
            Kind::Write => block.dirty = true,
            _ => {}
        }
        Seen::Memory(address + ((page - block.first) << 12) + 8)
    }

    fn collect(&mut self, range: GfnRange) -> Vec<GfnRange> {
        let dirty = self.overlapping(range).filter(|block| block.dirty);
        let mut found: Vec<GfnRange> = dirty
            .map(|block| {
                block.dirty = false;
                self::range(block.first, block.pages).intersection(range).unwrap()
            })
            .collect();
        found.sort_by_key(|range| range.start());
        found
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Map {
        page: u64,
        level: u8,
        frame: u64,
        rights: u8,
        log: DirtyLog,
        for_write: bool,
    },
    Mmio(u64),
    Protect(u64, u64),
    Access(u64, Kind),
    Collect(u64, u64),
    Zap(u64, u64),
}

fn page() -> impl Strategy<Value = u64> {
    (0u64..2, 0u64..2, 0u64..3).prop_map(|(gib, large, small)| gib << 18 | large << 9 | small)
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1), Just(2), Just(512), Just(513), Just(1 << 18)]
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![Just(Kind::Read), Just(Kind::Write), Just(Kind::Fetch)];
    let log = prop_oneof![
        Just(DirtyLog::Off),
        Just(DirtyLog::WriteProtection),
        Just(DirtyLog::DirtyFlags)
    ];
    prop_oneof![
        4 => (page(), 1u8..=3, 0u64..3, 0u8..4, log, any::<bool>()).prop_map(|(page, level, frame, rights, log, for_write)| {
            Op::Map { page, level, frame, rights, log, for_write }
        }),
        1 => page().prop_map(Op::Mmio),
        1 => (page(), length()).prop_map(|(page, pages)| Op::Protect(page, pages)),
        4 => (page(), kind).prop_map(|(page, kind)| Op::Access(page, kind)),
        2 => (page(), length()).prop_map(|(page, pages)| Op::Collect(page, pages)),
        1 => (page(), length()).prop_map(|(page, pages)| Op::Zap(page, pages)),
    ]
}

fn leaf(frame: u64, level: u8, rights: u8, log: DirtyLog, for_write: bool) -> RamLeaf {
    let address = (1 + frame) << 31;
    let access = AccessMask::from_masked(rights);
    RamLeaf {
        address,
        level,
        access,
        log,
        for_write,
    }
}

proptest! {
    #[test]
    fn tables_do_what_the_list_does(ept: bool, ops in proptest::collection::vec(op(), 1..40)) {
        let (real, mut naive) = (Real::new(ept, 64), Naive::default());
        for op in ops {
            match op {
                Op::Map { page, level, frame, rights, log, for_write } => {
                    let leaf = leaf(frame, level, rights, log, for_write);
                    real.map(page, leaf);
                    naive.map(page, leaf);
                }
                Op::Mmio(page) => {
                    real.mmio(page);
                    naive.make_room(range(page, 1));
                    naive.0.push(Block { first: page, pages: 1, address: None, write: false, exec: false, dirty: false });
                }
                Op::Protect(page, pages) => {
                    let changed = real.table.write(|writer| writer.write_protect(SPACE, range(page, pages)));
                    let mut expected = false;
                    for block in naive.overlapping(range(page, pages)).filter(|block| block.write) {
                        (block.write, expected) = (false, true);
                    }
                    prop_assert_eq!(changed, expected);
                }
                Op::Access(page, kind) => prop_assert_eq!(real.access(page, kind), naive.access(page, kind)),
                Op::Collect(page, pages) => {
                    prop_assert_eq!(real.collect(range(page, pages)), naive.collect(range(page, pages)));
                }
                Op::Zap(page, pages) => {
                    real.table.write(|writer| writer.zap_range(SPACE, range(page, pages)));
                    naive.zap(range(page, pages));
                }
            }
            for page in (0..2).flat_map(|gib| (0..4).map(move |place| gib << 18 | (place >> 1) << 9 | (place & 1))) {
                prop_assert_eq!(real.access(page, Kind::Read), naive.access(page, Kind::Read), "{:x} after {:?}", page, op);
            }
        }
        real.table.write(|writer| writer.zap_all(SPACE));
        prop_assert_eq!(real.table.tables_in_use(), 2, "nothing leaks");
    }
}

#[test]
fn large_page_is_split_where_a_slot_ends_and_joined_when_it_is_whole_again() {
    for ept in [false, true] {
        let real = Real::new(ept, 16);
        let whole = leaf(0, 2, 3, DirtyLog::Off, false);
        real.map(0, whole);
        assert_eq!(real.table.tables_in_use(), 4, "two roots, and two tables of a path");
        real.mmio(7);
        assert_eq!(real.table.tables_in_use(), 5);
        assert_eq!(
            (real.access(7, Kind::Read), real.access(8, Kind::Fetch)),
            (Seen::Mmio, Seen::Memory(0x8000_8008))
        );
        real.map(0, whole);
        assert_eq!(real.table.tables_in_use(), 4);
        assert_eq!(real.access(7, Kind::Write), Seen::Memory(0x8000_7008));
    }
}

#[test]
fn first_write_faults_and_is_then_let_through_where_writes_are_logged_so() {
    for ept in [false, true] {
        let real = Real::new(ept, 16);
        let log = DirtyLog::WriteProtection;
        real.map(3, leaf(0, 3, 2, log, false));
        assert_eq!(
            (real.access(3, Kind::Read), real.access(3, Kind::Write)),
            (Seen::Memory(0x8000_0008), Seen::Forbidden)
        );
        real.map(3, leaf(0, 1, 2, log, true));
        assert_eq!(real.access(3, Kind::Write), Seen::Memory(0x8000_0008));
        assert!(real.table.write(|writer| writer.write_protect(SPACE, range(0, 512))));
        assert_eq!(real.access(3, Kind::Write), Seen::Forbidden);
    }
}

#[test]
fn running_out_of_tables_leaves_every_mapping_as_it_was() {
    let real = Real::new(false, 6);
    real.map(0, leaf(0, 3, 3, DirtyLog::Off, false));
    let small = leaf(1, 1, 3, DirtyLog::Off, false);
    // One table to split 1 GiB, one for 2 MiB; then there is none for the second GiB.
    real.map(5, small);
    let refused = real
        .table
        .write(|writer| writer.map(SPACE, gfn(1 << 18), small))
        .unwrap_err();
    assert_eq!(refused.limit, 6);
    assert_eq!(real.access(5, Kind::Read), Seen::Memory(0x1_0000_0008));
    assert_eq!(
        real.access(0x3_ffff, Kind::Read),
        Seen::Memory(0x8000_0000 + 0x3fff_f008)
    );
    let beyond = real
        .table
        .write(|writer| writer.map(SPACE, gfn(1 << 40), small))
        .unwrap();
    assert_eq!((beyond.level, beyond.spurious), (0, true));
}

#[test]
fn leaves_of_both_formats_are_the_kernels() {
    let entry = |ept, level, log| {
        let real = Real::new(ept, 16);
        real.map(0, leaf(0, level, 3, log, false));
        real.entry(0)
    };
    // P, R/W, U/S, A, D, bit 11; with a size bit; without D.
    assert_eq!(entry(false, 1, DirtyLog::Off), 0x8000_0867);
    assert_eq!(entry(false, 2, DirtyLog::Off), 0x8000_08e7);
    assert_eq!(entry(false, 1, DirtyLog::DirtyFlags), 0x8000_0827);
    // R, W, X, write-back, ignore PAT, A, D, bit 11.
    assert_eq!(entry(true, 1, DirtyLog::Off), 0x8000_0b77);
    assert_eq!(entry(true, 3, DirtyLog::Off), 0x8000_0bf7);
}
