//! A machine in a few lines: memory, a guest's page tables in it, shadows of them, and the CPU's page faults answered.
#![no_std]
extern crate alloc;
extern crate std; // to print

use alloc::boxed::Box;
use core::cell::RefCell;
use umbra_memslots::{
    AddressSpaceId, EntrySize, Exchange, Generation, Gfn, Gpa, GuestMemory, Gva, MemoryFault, SlotId,
};
use umbra_mmu::direct::{FoundSlot, SlotSet};
use umbra_mmu::shadow::{FaultOutcome, FoundFrame, FrameSource, HostParams, ShadowFault};
use umbra_mmu::shadow::{ShadowMmu, ShadowVcpu, SpteLayout, TlbControl};
use umbra_mmu::tables::HeapTables;
use umbra_mmu::x86::{GuestCpu, PageFaultCode, PagingRegs, PagingState, control};

const PAGES: u64 = 8;
const WORDS: usize = 8 * 512;
struct Ram(RefCell<[u64; WORDS]>);

fn word(gpa: Gpa) -> usize {
    usize::try_from(gpa.get() / 8).unwrap_or(usize::MAX)
}

impl GuestMemory for Ram {
    fn read_entry(&self, gpa: Gpa, _: EntrySize) -> Result<u64, MemoryFault> {
        let entry = self.0.borrow().get(word(gpa)).copied();
        entry.ok_or(MemoryFault::NoSlot { gpa })
    }
    fn compare_exchange_entry(&self, gpa: Gpa, _: EntrySize, old: u64, new: u64) -> Result<Exchange, MemoryFault> {
        match self.0.borrow_mut().get_mut(word(gpa)) {
            Some(entry) if *entry == old => *entry = new,
            Some(entry) => return Ok(Exchange::Differs(*entry)),
            None => return Err(MemoryFault::NoSlot { gpa }),
        }
        Ok(Exchange::Done)
    }
    fn read(&self, gpa: Gpa, _: &mut [u8]) -> Result<(), MemoryFault> {
        Err(MemoryFault::NotMapped { gpa })
    }
    fn write(&self, gpa: Gpa, _: &[u8]) -> Result<(), MemoryFault> {
        Err(MemoryFault::NotMapped { gpa })
    }
}

struct Host; // who knows where guest memory really is, and whose CPU walks the shadow tables
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
        let there = (gfn.get() < PAGES).then(|| FoundFrame::page(slot, 0x4000_0000 + gfn.base().get()));
        (self.current(), there)
    }
}
impl TlbControl for Host {
    fn flush_all(&mut self) {}
    fn flush_gva(&mut self, _: Gva) {}
}

fn main() -> Result<(), Box<dyn core::error::Error>> {
    let (ram, mut host, mut tlb) = (Ram(RefCell::new([0; WORDS])), Host, Host);
    // The guest's tables, in its pages 1 to 4: address 0 leads to page 5, address 0x1000 to a device at 0xd0000000.
    for (at, entry) in [
        (0x1000, 0x2007),
        (0x2000, 0x3007),
        (0x3000, 0x4007),
        (0x4000, 0x5007),
        (0x4008, 0xd000_0067),
    ] {
        ram.0.borrow_mut()[at / 8] = entry;
    }
    let (cr0, cr4, efer) = (
        control::cr0::PG | control::cr0::WP,
        control::cr4::PAE,
        control::efer::LMA,
    );
    let cpu = GuestCpu::intel(46);
    let regs = PagingRegs {
        cr0,
        cr3: 0x1000,
        cr4,
        efer,
        rflags: 0,
        pkru: 0,
        pdptes: [0; 4],
        cpu,
    };
    let mut vcpu = ShadowVcpu::new(PagingState::new(&regs));
    let layout = SpteLayout::new(HostParams::x86(46))?;
    let tables = HeapTables::new(0x8000_0000, 64)?;
    let mmu = ShadowMmu::new(layout, tables)?;
    let root = mmu.root(&mut vcpu, &ram, AddressSpaceId::Normal, &mut tlb);
    std::println!("the CPU is to load {root:x?}");
    let mut fault = |gva, code| {
        let fault = ShadowFault::from_code(Gva::new(gva), PageFaultCode::new(code));
        mmu.page_fault(&mut vcpu, &ram, &mut host, &mut tlb, fault)
    };
    assert_eq!(fault(0x10, 0b110), FaultOutcome::Fixed); // a user's write, now mapped
    assert!(matches!(fault(0x1010, 0b110), FaultOutcome::Emulate(_))); // MMIO, found by search
    assert!(matches!(fault(0x1010, 0b1111), FaultOutcome::Emulate(_))); // again: the MMIO SPTE's reserved bit
    assert!(matches!(fault(0x2000, 0b100), FaultOutcome::Inject(_))); // nothing there: the guest's own fault
    assert_eq!(ram.0.borrow()[0x4000 / 8], 0x5067); // and the guest sees its page accessed and dirty
    Ok(())
}
