//! The direct tables, walked by the model of the hardware from their raw bits: MMIO faults as reserved (x86) or
//! misconfigured (EPT), everything else isn't present.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use std::collections::BTreeSet;
use umbra_memslots::{AddressSpaceId, Gpa, SlotLimits, SlotTable};
use umbra_mmu::direct::{DirectMmu, DirectTable, DirectVcpu, Direction, Levels};
use umbra_mmu::hw_model::{EptOutcome, HwAccess, HwCpu, HwMemory, HwOutcome, ept_walk, hw_walk};
use umbra_mmu::shadow::{EntryFormat, HostParams, SpteLayout};
use umbra_mmu::tables::{EntryLocation, HeapTables, TableSpace};

const SPACE: AddressSpaceId = AddressSpaceId::Normal;

/// The table space as physical memory: nothing else answers.
struct Wired<'a>(&'a HeapTables);

impl HwMemory for Wired<'_> {
    fn load(&self, address: u64, _bytes: u64) -> u64 {
        let index = u16::try_from(address % 4096 / 8).unwrap();
        self.0
            .table_at(address)
            .map_or(u64::MAX, |table| self.0.load(EntryLocation { table, index }))
    }

    fn set_bits(&self, _address: u64, _bytes: u64, _expected: u64, _bits: u64) -> bool {
        true
    }
}

fn mmu(host: HostParams) -> DirectMmu {
    let layout = SpteLayout::new(host).unwrap();
    // Table addresses up to the top of the narrowest width.
    let space = HeapTables::new((1 << 32) - 64 * 4096, 64).unwrap();
    DirectMmu::over(DirectTable::new(layout, Levels::Four, space).unwrap())
}

fn x86_code(mmu: &DirectMmu, gpa: u64, access: HwAccess) -> u32 {
    let space = mmu.table().space();
    let cpu = HwCpu {
        cr0: 1 << 31 | 1 << 16,
        cr3: space.address(mmu.table().root(SPACE)),
        cr4: 1 << 5,
        efer: 1 << 10 | 1 << 11,
        rflags: 0,
        pkru: 0,
        pdpte: [0; 4],
        maxphyaddr: mmu.layout().host().physical_bits,
        page1gb: true,
        pse36: true,
        amd: false,
    };
    match hw_walk(&cpu, &Wired(space), gpa, access) {
        HwOutcome::PageFault { code } => code,
        other => unreachable!("nothing is mapped, yet {other:x?}"),
    }
}

fn access(write: bool, fetch: bool, cpl3: bool) -> HwAccess {
    HwAccess {
        write: write && !fetch,
        fetch,
        cpl3,
        implicit: false,
    }
}

proptest! {
    #[test]
    fn mmio_pages_fault_as_such_and_no_others_do(
        format in prop_oneof![Just(None), Just(Some(false)), Just(Some(true))],
        width in 36u32..52,
        l1tf: bool,
        touched in proptest::collection::btree_set((0u64..3, 0u64..3, 0u64..4), 0..12),
        write: bool, fetch: bool, cpl3: bool,
    ) {
        let mut host = HostParams::x86(width);
        if let Some(suppress_ve) = format {
            host.format = EntryFormat::Ept { suppress_ve };
        }
        if l1tf {
            host = host.with_l1tf(width);
        }
        let mmu = mmu(host);
        let slots = SlotTable::new(SlotLimits::default());
        let (mut reader, mut vcpu) = (slots.reader(SPACE).unwrap(), DirectVcpu::new());
        let gpa = |(a, b, c): (u64, u64, u64)| a << 30 | b << 21 | c << 12;
        let touched: BTreeSet<u64> = touched.into_iter().map(gpa).collect();
        for &page in &touched {
            mmu.lookup(&mut vcpu, &mut reader, Gpa::new(page), Direction::Read);
        }
        let wires = access(write, fetch, cpl3);
        for a in 0..3 {
            for b in 0..3 {
                for c in 0..4 {
                    let page = gpa((a, b, c));
                    let mmio = touched.contains(&page);
                    if format.is_some() {
                        let space = mmu.table().space();
                        let root = space.address(mmu.table().root(SPACE));
                        let expected = if mmio { EptOutcome::Misconfiguration } else { EptOutcome::Violation };
                        prop_assert_eq!(ept_walk(root, width, &Wired(space), page + 8, wires), expected);
                    } else {
                        let code = x86_code(&mmu, page + 8, wires);
                        // P and RSVD together, or neither; never a mere protection fault.
                        prop_assert_eq!(code & 0b1001, if mmio { 0b1001 } else { 0 }, "{:#x}", code);
                    }
                }
            }
        }
    }
}
