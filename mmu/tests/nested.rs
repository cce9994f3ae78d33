//! Two stages in one table: what the CPU sees through ours is what it would see through L1's table and then the host's.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use proptest::prelude::*;
use std::cell::Cell;
use umbra_memslots::{AddressSpaceId, Generation, Gfn, Gpa, Gva, SlotId};
use umbra_mmu::direct::{DirectTable, FoundSlot, Levels, MmioSource, SlotSet};
use umbra_mmu::hw_model::{EptOutcome, HwAccess, HwCpu, HwMemory, HwOutcome, ept_walk, hw_walk};
use umbra_mmu::nested::{Eptp, GuestTable, NestedFault, NestedMmu, NestedOutcome};
use umbra_mmu::shadow::{FoundFrame, FrameSource, HostParams, ShadowRoot, SpteLayout, TlbControl};
use umbra_mmu::tables::{EntryLocation, HeapTables, TableSpace};
use umbra_mmu::testing::WalkMemory;
use umbra_mmu::x86::control::{GuestCpu, cr0, cr4, efer};
use umbra_mmu::x86::{AccessKind, PagingRegs, PagingState};

const WIDTH: u32 = 46;
const PAGES: u64 = 12;
const HOST: u64 = 1 << 40;
const ROOT: u64 = 0x1000;

struct Host {
    generation: Cell<Generation>,
    read_only: u64,
    flushes: u64,
}

impl Host {
    fn new(read_only: u64) -> Self {
        let generation = Cell::new(Generation::from_raw(2));
        Self {
            generation,
            read_only,
            flushes: 0,
        }
    }
}

impl FrameSource for Host {
    fn current(&mut self) -> SlotSet {
        SlotSet {
            generation: self.generation.get(),
            address_space: AddressSpaceId::Normal,
        }
    }

    fn frame(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundFrame>) {
        let read_only = self.read_only >> gfn.get().min(63) & 1 == 1;
        let slot = FoundSlot {
            id: SlotId::new(0),
            read_only,
            invalid: false,
        };
        let frame = (gfn.get() < PAGES).then(|| FoundFrame::page(slot, HOST + gfn.base().get()));
        (self.current(), frame)
    }
}

struct Tlb<'a>(&'a mut u64);

impl TlbControl for Tlb<'_> {
    fn flush_all(&mut self) {
        *self.0 += 1;
    }

    fn flush_gva(&mut self, _gva: Gva) {}
}

struct Wired<'a>(&'a HeapTables);

impl HwMemory for Wired<'_> {
    fn load(&self, address: u64, _bytes: u64) -> u64 {
        let index = u16::try_from(address % 4096 / 8).unwrap();
        let table = self.0.table_at(address).unwrap();
        self.0.load(EntryLocation { table, index })
    }

    fn set_bits(&self, _address: u64, _bytes: u64, _expected: u64, _bits: u64) -> bool {
        true
    }
}

/// What an access of L2's comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Ram(u64),
    Mmio(u64),
    ReadOnly(u64),
    /// L1 hears of it.
    Refused,
    Misconfigured,
}

struct Machine {
    memory: WalkMemory,
    host: Host,
    mmu: NestedMmu,
    ept: bool,
}

impl Machine {
    fn new(ept: bool, tables: u32, read_only: u64) -> Self {
        let params = if ept {
            HostParams::ept(WIDTH)
        } else {
            HostParams::x86(WIDTH)
        };
        let space = HeapTables::new(0x10_0000, tables).unwrap();
        let table = DirectTable::new(SpteLayout::new(params).unwrap(), Levels::Four, space).unwrap();
        let memory = WalkMemory::new(usize::try_from(PAGES).unwrap());
        Self {
            memory,
            host: Host::new(read_only),
            mmu: NestedMmu::new(table),
            ept,
        }
    }

    fn hw(root: u64) -> HwCpu {
        HwCpu {
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
        }
    }

    fn l1(&self) -> GuestTable {
        if self.ept {
            return GuestTable::Ept(Eptp {
                root: Gpa::new(ROOT),
                flags: false,
                physical_bits: WIDTH,
            });
        }
        GuestTable::Npt(PagingState::new(&PagingRegs {
            cr0: cr0::PG | cr0::WP,
            cr3: ROOT,
            cr4: cr4::PAE,
            efer: efer::LMA | efer::NXE,
            rflags: 0,
            pkru: 0,
            pdptes: [0; 4],
            cpu: GuestCpu::amd(WIDTH),
        }))
    }

    /// What the CPU says, walking tables at `root`: an address, or whether the fault was for a reserved bit.
    fn walk(&self, root: u64, memory: &impl HwMemory, address: u64, kind: AccessKind) -> Result<u64, bool> {
        let (write, fetch) = (kind == AccessKind::Write, kind == AccessKind::Fetch);
        let wires = HwAccess {
            write,
            fetch,
            cpl3: true,
            implicit: false,
        };
        if self.ept {
            return match ept_walk(root, WIDTH, memory, address, wires) {
                EptOutcome::Access { address } => Ok(address),
                EptOutcome::Violation => Err(false),
                EptOutcome::Misconfiguration => Err(true),
            };
        }
        match hw_walk(&Self::hw(root), memory, address, wires) {
            HwOutcome::Access(page) => Ok(page.address),
            HwOutcome::PageFault { code } => Err(code & 8 != 0),
            HwOutcome::GeneralProtection => panic!("{address:#x}"),
        }
    }

    /// The two stages, one after the other.
    fn expected(&self, address: u64, kind: AccessKind) -> Seen {
        match self.walk(ROOT, &self.memory, address, kind) {
            Ok(l1) if l1 >> 12 >= PAGES => Seen::Mmio(l1),
            Ok(l1) if kind == AccessKind::Write && self.host.read_only >> (l1 >> 12) & 1 == 1 => Seen::ReadOnly(l1),
            Ok(l1) => Seen::Ram(HOST + l1),
            Err(true) if self.ept => Seen::Misconfigured,
            Err(_) => Seen::Refused,
        }
    }

    fn fault(&mut self, address: u64, kind: AccessKind, reserved: bool) -> NestedOutcome {
        let fault = NestedFault {
            address: Gpa::new(address),
            kind,
            reserved,
        };
        let mut flushes = 0;
        let l1 = self.l1();
        let outcome = self
            .mmu
            .fault(&l1, &self.memory, &mut self.host, &mut Tlb(&mut flushes), fault);
        self.host.flushes += flushes;
        outcome
    }

    /// L2's access on our tables, faults answered.
    fn access(&mut self, address: u64, kind: AccessKind) -> Seen {
        let ShadowRoot::Long { address: root, .. } = self.mmu.root() else {
            panic!()
        };
        for _ in 0..8 {
            let reserved = match self.walk(root, &Wired(self.mmu.table().space()), address, kind) {
                Ok(found) => return Seen::Ram(found),
                Err(reserved) => reserved,
            };
            return match self.fault(address, kind, reserved) {
                NestedOutcome::Fixed | NestedOutcome::Retry => continue,
                NestedOutcome::Emulate(gpa, _) => Seen::Mmio(gpa.get()),
                NestedOutcome::ReadOnlyWrite(gpa, _) => Seen::ReadOnly(gpa.get()),
                NestedOutcome::Violation { .. } | NestedOutcome::NestedPageFault(_) => Seen::Refused,
                NestedOutcome::Misconfiguration => Seen::Misconfigured,
            };
        }
        panic!("no end of faults at {address:#x}");
    }

    /// An entry of L1's that leads to `to`; of a leaf, write-back.
    fn set(&self, table: u64, index: u64, to: u64, rights: u64, leaf: bool) {
        let memory_type = if self.ept && leaf { 6 << 3 } else { 0 };
        self.memory.set(table + 8 * index, to | rights | memory_type);
    }
}

const ALL: u64 = 7;

/// Tables of L1's in its pages 1 to 4, of which the last one maps L2's page n to L1's page `frames[n]`.
fn linear(ept: bool, read_only: u64, frames: &[u64]) -> Machine {
    let machine = Machine::new(ept, 32, read_only);
    for table in 1..4 {
        machine.set(table << 12, 0, (table + 1) << 12, ALL, false);
    }
    for (index, frame) in (0..).zip(frames) {
        machine.set(0x4000, index, frame << 12, ALL, true);
    }
    machine
}

#[test]
fn mmio_of_l2_is_remembered_by_l1s_gfn_until_the_slots_change() {
    for ept in [true, false] {
        let mut machine = linear(ept, 0, &[5, 0xd0000]);
        let mmio = |machine: &mut Machine| machine.fault(0x1010, AccessKind::Write, true);
        assert_eq!(machine.access(0x10, AccessKind::Read), Seen::Ram(HOST + 0x5010));
        let gpa = Gpa::new(0xd000_0010);
        assert_eq!(
            machine.fault(0x1010, AccessKind::Write, false),
            NestedOutcome::Emulate(gpa, MmioSource::Search)
        );
        assert_eq!(machine.access(0x1010, AccessKind::Read), Seen::Mmio(0xd000_0010));
        assert_eq!(mmio(&mut machine), NestedOutcome::Emulate(gpa, MmioSource::Spte));
        let now = machine.host.generation.get();
        machine.host.generation.set(now.begin_update());
        assert_eq!(mmio(&mut machine), NestedOutcome::Emulate(gpa, MmioSource::Search));
        machine.host.generation.set(now.begin_update().finish_update(2));
        assert_eq!(mmio(&mut machine), NestedOutcome::Emulate(gpa, MmioSource::Search));
        assert_eq!(mmio(&mut machine), NestedOutcome::Emulate(gpa, MmioSource::Spte));
    }
}

#[test]
fn what_l1_invalidates_is_walked_again() {
    for ept in [true, false] {
        let mut machine = linear(ept, 0, &[5]);
        assert_eq!(machine.access(0, AccessKind::Write), Seen::Ram(HOST + 0x5000));
        machine.set(0x4000, 0, 0x6000, ALL, true);
        let mut flushes = 0;
        machine.mmu.invalidate(&mut Tlb(&mut flushes));
        assert_eq!((flushes, machine.mmu.table().tables_in_use()), (1, 2));
        assert_eq!(machine.access(0, AccessKind::Write), Seen::Ram(HOST + 0x6000));
    }
}

#[test]
fn too_few_tables_forget_and_go_on() {
    for ept in [true, false] {
        let mut machine = Machine::new(ept, 5, 0);
        for table in 1..4 {
            for index in 0..3 {
                machine.set(table << 12, index, (table + 1) << 12, ALL, false);
            }
        }
        machine.set(0x4000, 0, 0x7000, ALL, true);
        for gib in [0, 1, 2, 0, 1] {
            assert_eq!(machine.access(gib << 30, AccessKind::Read), Seen::Ram(HOST + 0x7000));
        }
        assert!(machine.host.flushes >= 4);
    }
}

#[test]
fn flags_of_l1s_ept_are_set_as_its_cpu_would() {
    let mut machine = linear(true, 0, &[5]);
    let l1 = GuestTable::Ept(Eptp {
        root: Gpa::new(ROOT),
        flags: true,
        physical_bits: WIDTH,
    });
    let mut fault = |kind| {
        let fault = NestedFault {
            address: Gpa::new(0),
            kind,
            reserved: false,
        };
        machine
            .mmu
            .fault(&l1, &machine.memory, &mut machine.host, &mut Tlb(&mut 0), fault)
    };
    assert_eq!(fault(AccessKind::Read), NestedOutcome::Fixed);
    assert_eq!(
        (machine.memory.get(ROOT) >> 8 & 3, machine.memory.get(0x4000) >> 8 & 3),
        (1, 1)
    );
    // Clean, so the first write faults, which sets the flag.
    let ShadowRoot::Long { address: root, .. } = machine.mmu.root() else {
        panic!()
    };
    let wired = Wired(machine.mmu.table().space());
    assert_eq!(machine.walk(root, &wired, 0, AccessKind::Write), Err(false));
    let fault = NestedFault {
        address: Gpa::new(0),
        kind: AccessKind::Write,
        reserved: false,
    };
    let outcome = machine
        .mmu
        .fault(&l1, &machine.memory, &mut machine.host, &mut Tlb(&mut 0), fault);
    assert_eq!(outcome, NestedOutcome::Fixed);
    assert_eq!(
        (machine.memory.get(ROOT) >> 8 & 3, machine.memory.get(0x4000) >> 8 & 3),
        (1, 3)
    );
}

proptest! {
    /// Any tables of L1's, pointing to each other, to nowhere and to devices.
    #[test]
    fn one_table_does_what_two_stages_do(
        ept: bool,
        read_only: u64,
        entries in proptest::collection::vec((1u64..6, 0u64..3, 0u64..14, 0usize..5, 0u8..8, 0u32..400), 1..40),
        accesses in proptest::collection::vec(((0u64..3, 0u64..3, 0u64..3, 0u64..3), 0u8..3), 1..40),
    ) {
        let mut machine = Machine::new(ept, 64, read_only);
        machine.set(ROOT, 0, 0x2000, ALL, false);
        machine.set(0x2000, 0, 0x3000, ALL, false);
        machine.set(0x3000, 0, 0x4000, ALL, false);
        for (table, index, frame, rights, shape, flip) in entries {
            // No execute-only: the guest's CPU knows no such thing, the model does.
            let rights = if ept { [7, 7, 3, 1, 0] } else { [0x67, 0x67, 0x65, 0x61, 0] }[rights];
            let frame = if frame >= 12 { 0xd_0000 + frame } else { frame };
            let large = if shape == 0 { 0x80 } else { 0 };
            let flipped = if (3..52).contains(&flip) { 1 << flip } else { 0 };
            machine.set(table << 12, index, (frame << 12 | large) ^ flipped, rights, shape < 5);
        }
        for ((a, b, c, d), kind) in accesses {
            let address = a << 39 | b << 30 | c << 21 | d << 12 | 0x18;
            let kind = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch][usize::from(kind)];
            let expected = machine.expected(address, kind);
            prop_assert_eq!(machine.access(address, kind), expected, "{:?} at {:#x}", kind, address);
        }
    }
}
