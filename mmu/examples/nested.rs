//! A hypervisor (L1) as guest: it runs a guest of its own (L2) on a nested table, which is shadowed. The second stage that L2
//! runs on leads from its addresses to the host's at once; L1's MMIO, handed to L2, is recognised by its entry alone.

use umbra_memslots::{AddressSpaceId, Generation, Gfn, Gva, SlotId};
use umbra_mmu::NoObserver;
use umbra_mmu::direct::{FoundSlot, SlotSet};
use umbra_mmu::shadow::{
    FaultOutcome, FoundFrame, FrameSource, HostParams, ShadowFault, ShadowMmu, ShadowVcpu, SpteLayout, TlbControl,
};
use umbra_mmu::tables::HeapTables;
use umbra_mmu::testing::WalkMemory;
use umbra_mmu::x86::control::{cr0, cr4, efer};
use umbra_mmu::x86::{GuestCpu, PageFaultCode, PagingRegs, PagingState};

/// Where the host has L1's memory of eight pages.
const HOST: u64 = 1 << 32;
const PAGES: u64 = 8;
const USED: u64 = 0x67;

struct Host;

impl FrameSource for Host {
    fn current(&mut self) -> SlotSet {
        SlotSet {
            generation: Generation::from_raw(2),
            address_space: AddressSpaceId::Normal,
        }
    }

    fn frame(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundFrame>) {
        let slot = FoundSlot {
            id: SlotId::new(0),
            read_only: false,
            invalid: false,
        };
        let there = gfn.get() < PAGES;
        (
            self.current(),
            there.then(|| FoundFrame::page(slot, HOST + gfn.base().get())),
        )
    }
}

impl TlbControl for Host {
    fn flush_all(&mut self) {}
    fn flush_gva(&mut self, _address: Gva) {}
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // L1's nested table: pages 1 to 4. L2's first page is L1's sixth, its second is MMIO of L1's.
    let memory = WalkMemory::new(8);
    for page in 1..4u64 {
        memory.set(page << 12, (page + 1) << 12 | USED);
    }
    memory.set(4 << 12, 6 << 12 | USED);
    memory.set(4 << 12 | 8, 0xfed0_0000 | USED);
    let table = PagingState::new(&PagingRegs {
        cr0: cr0::PG | cr0::WP,
        cr3: 1 << 12,
        cr4: cr4::PAE,
        efer: efer::LMA,
        rflags: 0,
        pkru: 0,
        pdptes: [0; 4],
        cpu: GuestCpu::amd(46),
    });

    let layout = SpteLayout::new(HostParams::x86(46))?;
    let mmu = ShadowMmu::new(layout, HeapTables::new(1 << 40, 64)?)?;
    let mut l2 = ShadowVcpu::nested(table, NoObserver);
    let second_stage = mmu.root(&mut l2, &memory, AddressSpaceId::Normal, &mut Host);
    println!("L2 runs on {second_stage:x?}");

    let (user_write, reserved) = (6, 0xf);
    for (address, code) in [
        (0x10, user_write),
        (0x1020, user_write),
        (0x1020, reserved),
        (0x5000, user_write),
    ] {
        let fault = ShadowFault::from_code(Gva::new(address), PageFaultCode::new(code));
        match mmu.page_fault(&mut l2, &memory, &mut Host, &mut Host, fault) {
            FaultOutcome::Fixed => println!("{address:#x}: mapped, run L2 again"),
            FaultOutcome::Emulate(mmio) => println!("{address:#x}: MMIO at L1's {}, by {:?}", mmio.gpa, mmio.source),
            FaultOutcome::Inject(fault) => println!("{address:#x}: nested page fault for L1, {:?}", fault.code),
            other => println!("{address:#x}: {other:?}"),
        }
    }
    let stats = l2.stats();
    println!(
        "{} mapped, {} MMIO SPTEs made, {} used",
        stats.fixed, stats.created, stats.spte_hits
    );
    Ok(())
}
