//! A machine whose CPUs are models of the hardware that walk our shadow tables.

#![allow(dead_code, reason = "each test uses a part of it")]

use crate::common::{LA57, NXE, PAE, PG, PKE, SMAP, SMEP, WP};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use umbra_memslots::{
    AddressSpaceId, EntrySize, Exchange, Generation, Gfn, GfnRange, Gpa, GuestMemory, Gva, MemoryFault, SlotId,
};
use umbra_mmu::direct::{FoundSlot, SlotSet};
use umbra_mmu::hw_model::{HwCpu, HwMemory, HwOutcome, hw_walk};
use umbra_mmu::shadow::{
    DirtyLog, FaultOutcome, FoundFrame, FrameSource, HostParams, ShadowFault, ShadowMmu, ShadowRoot, ShadowVcpu,
    SpteLayout, TlbControl,
};
use umbra_mmu::tables::{EntryLocation, HeapTables, TableSpace};
use umbra_mmu::testing::{WalkMemory, hw_access, hw_cpu};
use umbra_mmu::x86::{Access, PageFaultCode, PagingRegs, PagingState};
use umbra_mmu::{MmuObserver, NoObserver};

/// Where the walker of the shadow tables finds guest page 0.
pub const HOST_RAM: u64 = 1 << 40;
/// Where it finds the shadow tables.
pub const HOST_TABLES: u64 = 1 << 41;

/// Guest memory with slots of one page each.
pub struct Ram {
    pub memory: WalkMemory,
    pub pages: u64,
    /// Pages that have a slot, and those of them that are read-only.
    pub present: Cell<u64>,
    pub read_only: Cell<u64>,
    pub generation: Cell<Generation>,
    /// The first 2 MiB are one slot, as far as nothing else is said about its pages.
    pub low_large: Cell<bool>,
    /// Further memory, which holds nothing: from 1 GiB to 3 GiB.
    pub high: Cell<bool>,
    /// Level of the largest leaves in these.
    pub largest: Cell<u8>,
    pub log: Cell<DirtyLog>,
    /// Pages are mapped ahead of their use.
    pub at_hand: Cell<bool>,
    /// What was said to be dirty.
    pub dirty: RefCell<BTreeSet<u64>>,
}

impl Ram {
    pub fn has(&self, gfn: u64) -> bool {
        if gfn < self.pages {
            self.present.get() >> gfn & 1 == 1
        } else {
            (gfn < 512 && self.low_is_whole()) || (self.high.get() && (1 << 18..3 << 18).contains(&gfn))
        }
    }

    fn slot_of(&self, gfn: u64) -> SlotId {
        if gfn < 512 && self.low_is_whole() {
            SlotId::new(0)
        } else {
            SlotId::new(1 + u16::try_from(gfn.min(100)).unwrap())
        }
    }

    fn low_is_whole(&self) -> bool {
        self.low_large.get() && self.present.get() == self.all() && self.read_only.get() == 0
    }

    fn all(&self) -> u64 {
        (1 << self.pages) - 1
    }

    fn largest(&self, gfn: u64) -> u8 {
        match gfn {
            0..512 if self.low_is_whole() => 2.min(self.largest.get()),
            0..0x4_0000 => 1,
            _ => self.largest.get(),
        }
    }

    fn is_read_only(&self, gfn: u64) -> bool {
        gfn < self.pages && self.read_only.get() >> gfn & 1 == 1
    }
}

impl GuestMemory for Ram {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), MemoryFault> {
        self.memory.read(gpa, buffer)
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryFault> {
        self.memory.write(gpa, data)
    }

    fn read_entry(&self, gpa: Gpa, size: EntrySize) -> Result<u64, MemoryFault> {
        if self.has(gpa.gfn().get()) {
            self.memory.read_entry(gpa, size)
        } else {
            Err(MemoryFault::NoSlot { gpa })
        }
    }

    fn compare_exchange_entry(&self, gpa: Gpa, size: EntrySize, old: u64, new: u64) -> Result<Exchange, MemoryFault> {
        match gpa.gfn().get() {
            gfn if !self.has(gfn) => Err(MemoryFault::NoSlot { gpa }),
            gfn if self.is_read_only(gfn) => Err(MemoryFault::ReadOnly { gpa }),
            _ => self.memory.compare_exchange_entry(gpa, size, old, new),
        }
    }
}

impl HwMemory for Ram {
    fn load(&self, address: u64, bytes: u64) -> u64 {
        if self.has(address >> 12) {
            self.memory.load(address, bytes)
        } else {
            0
        }
    }

    fn set_bits(&self, address: u64, bytes: u64, expected: u64, bits: u64) -> bool {
        if self.is_read_only(address >> 12) {
            true
        } else {
            self.memory.set_bits(address, bytes, expected, bits)
        }
    }
}

/// A vCPU's view of the slots.
pub struct Frames(pub Rc<Ram>);

impl FrameSource for Frames {
    fn current(&mut self) -> SlotSet {
        SlotSet {
            generation: self.0.generation.get(),
            address_space: AddressSpaceId::Normal,
        }
    }

    fn frame(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundFrame>) {
        let found = self.0.has(gfn.get()).then(|| FoundFrame {
            slot: FoundSlot {
                id: self.0.slot_of(gfn.get()),
                read_only: self.0.is_read_only(gfn.get()),
                invalid: false,
            },
            address: HOST_RAM + gfn.base().get(),
            largest: self.0.largest(gfn.get()),
            log: self.0.log.get(),
        });
        (self.current(), found)
    }

    fn mark_dirty(&mut self, gfn: Gfn) {
        self.0.dirty.borrow_mut().insert(gfn.get());
    }

    fn at_hand(&mut self, _gfn: Gfn) -> bool {
        self.0.at_hand.get()
    }
}

/// Walkers here remember nothing; how often they would have had to forget is counted.
#[derive(Default)]
pub struct Flushes {
    pub all: u64,
    pub one: u64,
    /// What another CPU does at the last moment before its TLB is flushed.
    pub last_moment: Option<Box<dyn FnOnce()>>,
}

impl TlbControl for Flushes {
    fn flush_all(&mut self) {
        self.all += 1;
        if let Some(act) = self.last_moment.take() {
            act();
        }
    }

    fn flush_gva(&mut self, _gva: Gva) {
        self.one += 1;
    }
}

/// The shadow tables as the hardware sees them.
struct Wired<'a>(&'a HeapTables);

impl HwMemory for Wired<'_> {
    fn load(&self, address: u64, _bytes: u64) -> u64 {
        let index = u16::try_from(address % 4096 / 8).unwrap();
        self.0
            .table_at(address)
            .map_or(u64::MAX, |table| self.0.load(EntryLocation { table, index }))
    }

    fn set_bits(&self, address: u64, _bytes: u64, expected: u64, bits: u64) -> bool {
        let index = u16::try_from(address % 4096 / 8).unwrap();
        let table = self.0.table_at(address).unwrap();
        let at = EntryLocation { table, index };
        self.0.compare_exchange(at, expected, expected | bits).is_ok()
    }
}

/// What came of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Guest-physical memory was accessed.
    Ram(u64),
    /// The same, by emulation: it is a guest table.
    Tracked(u64),
    /// A write to a read-only slot went to the bus.
    ReadOnly(u64),
    /// It went to the bus.
    Mmio(u64),
    /// The guest got a page fault.
    Fault(u32),
    /// The guest got #GP.
    NonCanonical,
}

pub struct Machine {
    pub mmu: ShadowMmu<HeapTables>,
    pub ram: Rc<Ram>,
    pub tlb: Flushes,
    host: HostParams,
}

impl Machine {
    pub fn new(host: HostParams, pages: u64, tables: u32) -> Self {
        let layout = SpteLayout::new(host).unwrap();
        let mmu = ShadowMmu::new(layout, HeapTables::new(HOST_TABLES, tables).unwrap()).unwrap();
        let ram = Ram {
            memory: WalkMemory::new(usize::try_from(pages).unwrap()),
            pages,
            present: Cell::new((1 << pages) - 1),
            read_only: Cell::new(0),
            generation: Cell::new(Generation::from_raw(2)),
            low_large: Cell::new(false),
            high: Cell::new(false),
            largest: Cell::new(1),
            log: Cell::new(DirtyLog::Off),
            at_hand: Cell::new(false),
            dirty: RefCell::new(BTreeSet::new()),
        };
        Self {
            mmu,
            ram: Rc::new(ram),
            tlb: Flushes::default(),
            host,
        }
    }

    /// What the CPU has in its registers while the guest's are `regs`: our root; WP and NX on.
    fn cpu(&mut self, vcpu: &mut ShadowVcpu<impl MmuObserver>, regs: &PagingRegs) -> HwCpu {
        let mut cpu = hw_cpu(regs);
        cpu.cr0 = PG | WP;
        cpu.efer |= NXE;
        if regs.cr0 & PG == 0 {
            // Not in force in the guest without paging, but here there is.
            cpu.cr4 &= !(SMEP | SMAP | PKE);
        }
        cpu.maxphyaddr = self.host.physical_bits;
        (cpu.page1gb, cpu.pse36, cpu.amd) = (self.ram.largest.get() == 3, false, true);
        match self.mmu.root(vcpu, &*self.ram, AddressSpaceId::Normal, &mut self.tlb) {
            ShadowRoot::Long { address, levels } => {
                assert_eq!(levels == 5, cpu.cr4 & LA57 != 0);
                cpu.cr3 = address;
            }
            ShadowRoot::Pae { pdptes } => {
                cpu.cr4 |= PAE;
                cpu.pdpte = pdptes;
            }
        }
        cpu
    }

    /// A vCPU's view of the slots.
    pub fn frames(&self) -> Frames {
        Frames(Rc::clone(&self.ram))
    }

    /// One access of a vCPU, as often as it takes.
    pub fn access(
        &mut self,
        vcpu: &mut ShadowVcpu<impl MmuObserver>,
        regs: &PagingRegs,
        gva: u64,
        access: Access,
    ) -> Seen {
        let mut trail = Vec::new();
        for _ in 0..16 {
            let cpu = self.cpu(vcpu, regs);
            let code = match hw_walk(&cpu, &Wired(self.mmu.space()), gva, hw_access(access)) {
                HwOutcome::Access(page) => return Seen::Ram(page.address - HOST_RAM),
                HwOutcome::GeneralProtection => return Seen::NonCanonical,
                HwOutcome::PageFault { code } => code,
            };
            let mut fault = ShadowFault::from_code(Gva::new(gva), PageFaultCode::new(code));
            assert_eq!(
                (fault.access.kind, fault.access.is_user()),
                (access.kind, access.is_user())
            );
            fault.access = access;
            let mut frames = Frames(Rc::clone(&self.ram));
            let outcome = self.mmu.page_fault(vcpu, &*self.ram, &mut frames, &mut self.tlb, fault);
            trail.push((code, outcome));
            match outcome {
                FaultOutcome::Retry | FaultOutcome::Fixed | FaultOutcome::Spurious => {}
                FaultOutcome::Emulate(mmio) => return Seen::Mmio(mmio.gpa.get()),
                FaultOutcome::ReadOnlyWrite(gpa, _) => return Seen::ReadOnly(gpa.get()),
                FaultOutcome::WriteTracked(gpa) => return Seen::Tracked(gpa.get()),
                FaultOutcome::Inject(fault) => return Seen::Fault(fault.code.raw()),
                FaultOutcome::NonCanonical(_) => return Seen::NonCanonical,
            }
        }
        unreachable!("{access:?} to {gva:#x} under {regs:x?} never comes to an end: {trail:x?}")
    }

    /// What the access would come to without any shadow: a walk of the guest's tables, then the slots.
    pub fn oracle(&self, regs: &PagingRegs, gva: u64, access: Access) -> Seen {
        match hw_walk(&hw_cpu(regs), &*self.ram, gva, hw_access(access)) {
            HwOutcome::PageFault { code } => Seen::Fault(code),
            HwOutcome::GeneralProtection => Seen::NonCanonical,
            HwOutcome::Access(page) => self.behind(page.address, access),
        }
    }

    /// What an access to physical memory reaches.
    pub fn behind(&self, gpa: u64, access: Access) -> Seen {
        if !self.ram.has(gpa >> 12) {
            Seen::Mmio(gpa)
        } else if hw_access(access).write && self.ram.is_read_only(gpa >> 12) {
            Seen::ReadOnly(gpa)
        } else {
            Seen::Ram(gpa)
        }
    }

    /// The slots change: `present` and `read_only` from now on. In the order in which a slot table would do it.
    pub fn set_slots(&mut self, present: u64, read_only: u64) {
        let gone = self.ram.present.get() & !present | (self.ram.read_only.get() ^ read_only);
        let next = self.ram.generation.get().begin_update().finish_update(2);
        let was_whole = self.ram.low_is_whole();
        self.ram.present.set(present);
        self.ram.read_only.set(read_only);
        if was_whole && !self.ram.low_is_whole() {
            self.mmu.zap_range(&mut NoObserver, &mut self.tlb, range(0, 512));
        }
        for page in 0..self.ram.pages {
            if gone >> page & 1 == 1 {
                let gfn = Gfn::new(page).unwrap();
                self.mmu
                    .zap_range(&mut NoObserver, &mut self.tlb, GfnRange::single(gfn));
            }
        }
        self.mmu
            .generation_changes(&mut NoObserver, &mut self.tlb, AddressSpaceId::Normal, next);
        self.ram.generation.set(next);
    }

    /// A device, or an emulated instruction, writes eight bytes.
    pub fn writes(&mut self, gpa: u64, value: u64) {
        self.ram.memory.set(gpa, value);
        self.mmu.guest_wrote(&mut NoObserver, &mut self.tlb, Gpa::new(gpa), 8);
    }

    /// The same, four bytes at a time.
    pub fn writes_halves(&mut self, gpa: u64, value: u64) {
        self.ram.memory.set(gpa, value);
        self.mmu.guest_wrote(&mut NoObserver, &mut self.tlb, Gpa::new(gpa), 4);
        self.mmu
            .guest_wrote(&mut NoObserver, &mut self.tlb, Gpa::new(gpa + 4), 4);
    }
}

/// `count` frames from `first` on.
pub fn range(first: u64, count: u64) -> GfnRange {
    GfnRange::new(Gfn::new(first).unwrap(), count).unwrap()
}

pub fn vcpu(regs: &PagingRegs) -> ShadowVcpu {
    ShadowVcpu::new(PagingState::new(regs))
}
