//! A guest without paging on tiny tables, for loom.

#![allow(dead_code, reason = "each test uses a part of it")]

use loom::model::Builder;
use loom::sync::Arc;
use umbra_memslots::{
    AddressSpaceId, EntrySize, Exchange, Generation, Gfn, Gpa, GuestMemory, Gva, MemoryFault, SlotId,
};
use umbra_mmu::direct::{FoundSlot, SlotSet};
use umbra_mmu::shadow::{
    BitSpan, DirtyLog, FaultOutcome, FoundFrame, FrameSource, GenerationSpans, HostParams, ShadowFault, ShadowMmu,
    ShadowVcpu, SpteLayout, TlbControl,
};
use umbra_mmu::tables::HeapTables;
use umbra_mmu::x86::{GuestCpu, PageFaultCode, PagingRegs, PagingState};

pub fn check(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

/// A guest without paging reads no tables.
pub struct NoMemory;

impl GuestMemory for NoMemory {
    fn read(&self, gpa: Gpa, _: &mut [u8]) -> Result<(), MemoryFault> {
        Err(MemoryFault::NoSlot { gpa })
    }

    fn write(&self, gpa: Gpa, _: &[u8]) -> Result<(), MemoryFault> {
        Err(MemoryFault::NoSlot { gpa })
    }

    fn read_entry(&self, gpa: Gpa, _: EntrySize) -> Result<u64, MemoryFault> {
        Err(MemoryFault::NoSlot { gpa })
    }

    fn compare_exchange_entry(&self, gpa: Gpa, _: EntrySize, _: u64, _: u64) -> Result<Exchange, MemoryFault> {
        Err(MemoryFault::NoSlot { gpa })
    }
}

/// Slots as of one generation: none at all, or one for every frame.
pub struct Fixed {
    pub generation: u64,
    pub present: bool,
}

impl FrameSource for Fixed {
    fn current(&mut self) -> SlotSet {
        SlotSet {
            generation: Generation::from_raw(self.generation),
            address_space: AddressSpaceId::Normal,
        }
    }

    fn frame(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundFrame>) {
        let slot = FoundSlot {
            id: SlotId::new(0),
            read_only: false,
            invalid: false,
        };
        (
            self.current(),
            self.present.then_some(FoundFrame {
                slot,
                address: gfn.base().get(),
                largest: 1,
                log: DirtyLog::Off,
            }),
        )
    }
}

pub struct NoTlb;

impl TlbControl for NoTlb {
    fn flush_all(&mut self) {}
    fn flush_gva(&mut self, _: Gva) {}
}

/// One bit of generation in each half: 4 is 0 again.
pub fn mmu() -> Arc<ShadowMmu<HeapTables>> {
    let tiny = GenerationSpans {
        low: BitSpan::new(3, 3).unwrap(),
        high: BitSpan::new(52, 52).unwrap(),
    };
    let layout = SpteLayout::new(HostParams::x86(46).with_generation(tiny)).unwrap();
    Arc::new(ShadowMmu::new(layout, HeapTables::new(0, 16).unwrap()).unwrap())
}

pub fn vcpu(mmu: &ShadowMmu<HeapTables>) -> ShadowVcpu {
    let cpu = GuestCpu::intel(46);
    let regs = PagingRegs {
        cr0: 0,
        cr3: 0,
        cr4: 0,
        efer: 0,
        rflags: 0,
        pkru: 0,
        pdptes: [0; 4],
        cpu,
    };
    let mut vcpu = ShadowVcpu::new(PagingState::new(&regs));
    mmu.root(&mut vcpu, &NoMemory, AddressSpaceId::Normal, &mut NoTlb);
    vcpu
}

pub fn report(
    mmu: &ShadowMmu<HeapTables>,
    vcpu: &mut ShadowVcpu,
    mut slots: impl FrameSource,
    gva: u64,
    code: u32,
) -> FaultOutcome {
    let fault = ShadowFault::from_code(Gva::new(gva), PageFaultCode::new(code));
    mmu.page_fault(vcpu, &NoMemory, &mut slots, &mut NoTlb, fault)
}

/// A write that found an MMIO SPTE: P, W, RSVD.
pub fn fault(mmu: &ShadowMmu<HeapTables>, vcpu: &mut ShadowVcpu, slots: impl FrameSource, gva: u64) -> FaultOutcome {
    report(mmu, vcpu, slots, gva, 0xb)
}

/// A write that found nothing: W.
pub fn touch(mmu: &ShadowMmu<HeapTables>, vcpu: &mut ShadowVcpu, slots: impl FrameSource, gva: u64) -> FaultOutcome {
    report(mmu, vcpu, slots, gva, 0x2)
}

/// No slot at all.
pub const NONE: Fixed = Fixed {
    generation: 0,
    present: false,
};
