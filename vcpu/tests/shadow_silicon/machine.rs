//! A guest with random page tables, shadowed, and the real CPU that runs on the shadow.

use std::sync::Arc;
use umbra_memslots::ram::{GuestRam, HostMapping};
use umbra_memslots::{
    AddressSpaceId, Backing, EntrySize, Gfn, GfnRange, Gpa, GuestMemory, Gva, NewSlot, SlotFlags, SlotReader, SlotTable,
};
use umbra_mmu::NoObserver;
use umbra_mmu::guest_walk::{PdpteLoad, WalkFailure, load_pdptes, translate, walk};
use umbra_mmu::hw_model::{HwCpu, HwMemory, HwOutcome, hw_walk};
use umbra_mmu::shadow::{FaultOutcome, HostParams, ShadowFault, ShadowMmu, ShadowRoot, ShadowVcpu, SpteLayout};
use umbra_mmu::tables::{EntryLocation, TableSpace};
use umbra_mmu::testing::{hw_access, hw_cpu};
use umbra_mmu::x86::{Access, AccessKind, PageFaultCode, PagingMode, PagingRegs, PagingState};
use umbra_vcpu::emulate::{Exception, exception};
use umbra_vcpu::kvm::{Irqchip, KvmHost, KvmVm, VmOptions};
use umbra_vcpu::regs::{Regs, Segment, SystemRegs};
use umbra_vcpu::shadow::{NativeCpu, NativeExit, ShadowTlb, SharedTables, SlotFrames};

/// Pages that random entries point to: tables, data, read-only data, nothing.
pub const PAGES: u64 = 16;
/// Pages that hold tables.
pub const TABLE_PAGES: u64 = 8;
const READ_ONLY: u64 = 12;
const HOLE: u64 = 14;
/// The page with the accesses' code, and the tables that map it.
const CODE_PAGE: u64 = PAGES;
const CODE_TABLES: u64 = PAGES + 1;
const ALL_PAGES: u64 = PAGES + 4;
/// Memory for large pages.
pub const LARGE: std::ops::Range<u64> = 512..1024;
/// Where the code is in modes with 64-bit and with 32-bit linear addresses.
const CODE_64: u64 = 5 << 39;
const CODE_32: u64 = 0xc000_0000;
/// Offsets of `mov eax, [rdi]` and `mov [rdi], esi`, each followed by `ud2`.
const READ: u64 = 0;
const WRITE: u64 = 0x10;
const UD2: [u8; 2] = [0x0f, 0x0b];
/// What is written.
pub const WRITTEN: u32 = 0x5eed_0b0f;
/// Shadow tables: few enough that they run out now and then.
const TABLES: u32 = 48;

/// What came of an access.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Seen {
    /// Memory was accessed.
    Ram(u64),
    /// A write to a guest table: memory, but by emulation.
    Tracked(u64),
    /// A write to a read-only slot: the bus.
    ReadOnly(u64),
    /// The bus.
    Mmio(u64),
    /// The guest gets #PF with this code; CR2 is the address.
    Fault(u32),
}

pub struct Machine {
    cpu: NativeCpu,
    mmu: ShadowMmu<SharedTables>,
    tlb: ShadowTlb,
    pub ram: GuestRam,
    reader: SlotReader,
    amd: bool,
    physical_bits: u32,
    /// Exits of the real CPU.
    pub exits: u64,
    _vm: KvmVm,
}

impl Machine {
    pub fn new() -> Result<Self, String> {
        let host = KvmHost::open().map_err(|error| error.to_string())?;
        let options = VmOptions {
            irqchip: Irqchip::None,
            ..VmOptions::default()
        };
        let mut vm = KvmVm::new(&host, options).map_err(|error| error.to_string())?;
        let (cpu, space) = NativeCpu::new(&mut vm, TABLES).map_err(|error| error.to_string())?;
        let layout = SpteLayout::new(HostParams::x86(vm.physical_bits())).unwrap();
        let mmu = ShadowMmu::new(layout, space).unwrap();
        let mut table = SlotTable::new(vm.slot_limits());
        table.add_observer(Box::new(vm.slot_mirror()));
        let ram = GuestRam::from_table(table);
        for (first, pages, flags) in [
            (0, READ_ONLY, SlotFlags::empty()),
            (READ_ONLY, HOLE - READ_ONLY, SlotFlags::READ_ONLY),
            (CODE_PAGE, ALL_PAGES - CODE_PAGE, SlotFlags::empty()),
            (LARGE.start, LARGE.end - LARGE.start, SlotFlags::empty()),
        ] {
            let backing: Arc<dyn Backing> = Arc::new(HostMapping::anonymous(pages << 12).unwrap());
            ram.add(NewSlot::whole(Gpa::new(first << 12), backing).with_flags(flags))
                .map_err(|error| error.to_string())?;
        }
        let brand = core::arch::x86_64::__cpuid(0);
        let machine = Self {
            tlb: cpu.tlb(),
            cpu,
            mmu,
            reader: ram.reader(),
            ram,
            amd: brand.ebx == u32::from_le_bytes(*b"Auth"),
            physical_bits: vm.physical_bits(),
            exits: 0,
            _vm: vm,
        };
        for page in LARGE {
            machine.put_data(page);
        }
        machine.put(CODE_PAGE << 12 | READ, &[0x8b, 0x07, 0x0f, 0x0b]);
        machine.put(CODE_PAGE << 12 | WRITE, &[0x89, 0x37, 0x0f, 0x0b]);
        Ok(machine)
    }

    /// What guests could use at CPL 3 and these can't, because no CPU here has it.
    pub fn lacking(&self) -> Vec<&'static str> {
        // Nothing is offered to a VM that isn't there: CPUID 7.0 ECX.
        let ecx = core::arch::x86_64::__cpuid_count(7, 0).ecx;
        let features = [(3, "protection keys (PKU)"), (16, "five levels (LA57)")];
        let lacking = features.into_iter().filter(|(bit, _)| ecx >> bit & 1 == 0);
        lacking.map(|(_, name)| name).collect()
    }

    /// The size of the page that the guest's tables map there.
    pub fn page_bytes(&self, regs: &PagingRegs, gva: u64, access: Access) -> u64 {
        walk(&PagingState::new(regs), &self.ram, Gva::new(gva), access).map_or(0, |walk| 1 << walk.page_shift)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.write(Gpa::new(at), bytes).unwrap();
    }

    /// Fills a page: its first half is executable, its second tells where it is.
    fn put_data(&self, page: u64) {
        let mut bytes: Vec<u8> = UD2.iter().copied().cycle().take(0x800).collect();
        bytes.extend((0..0x200u32).flat_map(|word| ((page as u32) << 16 | word).to_le_bytes()));
        self.put(page << 12, &bytes);
    }

    pub fn put64(&self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    fn get32(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.ram.read(Gpa::new(at), &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    /// Empties the tables, refills the data, and maps the
    /// code in tables of its own.
    pub fn new_world(&mut self, mode: PagingMode, root: u64) {
        self.mmu.zap_all(&mut NoObserver, &mut self.tlb);
        self.put(0, &vec![0; (TABLE_PAGES << 12) as usize]);
        for page in TABLE_PAGES..READ_ONLY {
            self.put_data(page);
        }
        let [a, b, c] = [0, 1, 2].map(|index| (CODE_TABLES + index) << 12);
        self.put(a, &[0; 3 << 12]);
        let code = CODE_PAGE << 12 | 0x65;
        match mode {
            PagingMode::Level4 => {
                self.put64(root + 8 * 5, a | 0x67);
                self.put64(a, b | 0x67);
                self.put64(b, c | 0x67);
                self.put64(c, code);
            }
            PagingMode::Pae => {
                self.put64(root + 8 * 3, a | 1);
                self.put64(a, b | 0x67);
                self.put64(b, code);
            }
            PagingMode::Bits32 => {
                self.put(root + 4 * 0x300, &(a as u32 | 0x67).to_le_bytes());
                self.put(a, &(code as u32).to_le_bytes());
            }
            PagingMode::None | PagingMode::Level5 => unreachable!("not among the modes that are tested"),
        }
    }

    /// Whether there is code that may be run: data that nobody has taken for a table, whose flags are set then.
    pub fn holds_code(&self, gpa: u64) -> bool {
        let data = (TABLE_PAGES..READ_ONLY).contains(&(gpa >> 12)) || LARGE.contains(&(gpa >> 12));
        data && self.get32(gpa).to_le_bytes() == [UD2[0], UD2[1], UD2[0], UD2[1]]
    }

    /// Loads the PDPTE registers, if that mode has them.
    pub fn load_pdptes(&self, regs: &mut PagingRegs) -> bool {
        if PagingMode::of(regs) != PagingMode::Pae {
            return true;
        }
        match load_pdptes(regs, &self.ram) {
            PdpteLoad::Loaded(pdptes) => {
                regs.pdptes = pdptes;
                true
            }
            _ => false,
        }
    }

    /// A device writes an entry of a guest table.
    pub fn device_writes(&mut self, at: u64, value: u64, bytes: u16) {
        self.put(at, &value.to_le_bytes()[..usize::from(bytes)]);
        self.mmu
            .guest_wrote(&mut NoObserver, &mut self.tlb, Gpa::new(at), bytes);
    }

    pub fn invlpg(&mut self, vcpu: &mut ShadowVcpu, gva: u64) {
        let memory = self.ram.snapshot();
        let mut frames = SlotFrames(&mut self.reader);
        self.mmu
            .invlpg(vcpu, &*memory, &mut frames, &mut self.tlb, Gva::new(gva));
    }

    pub fn zap_page(&mut self, page: u64) {
        let range = GfnRange::single(Gfn::new(page).unwrap());
        self.mmu.zap_range(&mut NoObserver, &mut self.tlb, range);
    }

    /// What the access must come to: the guest walker and the model of the hardware, both on the guest's own tables.
    pub fn expected(&self, regs: &PagingRegs, gva: u64, access: Access) -> Result<Seen, String> {
        let walker = match translate(&PagingState::new(regs), &self.ram, Gva::new(gva), access) {
            Ok(gpa) => Ok(gpa.get()),
            Err(WalkFailure::Fault(fault)) => Err(fault.code.raw()),
            Err(other) => return Err(format!("the guest walker says {other:?}")),
        };
        let model = match hw_walk(&hw_cpu(regs), &Guest(&self.ram), gva, hw_access(access)) {
            HwOutcome::Access(page) => Ok(page.address),
            HwOutcome::PageFault { code } => Err(code),
            HwOutcome::GeneralProtection => return Err("the model says #GP".to_owned()),
        };
        if walker != model {
            return Err(format!("the guest walker says {walker:x?}, the model {model:x?}"));
        }
        Ok(match walker {
            Err(code) => Seen::Fault(code),
            Ok(gpa) => {
                let slots = self.ram.snapshot();
                match slots.find(Gpa::new(gpa).gfn()) {
                    None => Seen::Mmio(gpa),
                    Some(slot) if slot.is_read_only() && access.is_write() => Seen::ReadOnly(gpa),
                    Some(_) => Seen::Ram(gpa),
                }
            }
        })
    }

    /// Makes the access on the real CPU, as often as it takes, and has the model of the hardware walk the shadow tables
    /// each time.
    pub fn access(
        &mut self,
        vcpu: &mut ShadowVcpu,
        regs: &PagingRegs,
        gva: u64,
        access: Access,
    ) -> Result<Seen, String> {
        let long = PagingMode::of(regs).is_long();
        let code = if long { CODE_64 } else { CODE_32 };
        let (begin, end) = match access.kind {
            AccessKind::Read => (code | READ, code | READ | 2),
            AccessKind::Write => (code | WRITE, code | WRITE | 2),
            AccessKind::Fetch => (gva, gva),
        };
        let mut trail = Vec::new();
        for _ in 0..24 {
            let memory = self.ram.snapshot();
            let root = self.mmu.root(vcpu, &*memory, AddressSpaceId::Normal, &mut self.tlb);
            let cr3 = self.cpu.enter_root(root).ok_or("a root that can't be walked")?;
            let user = Regs {
                rip: begin,
                rdi: gva,
                rsi: WRITTEN.into(),
                rflags: 0x202,
                ..Regs::default()
            };
            self.cpu.set_regs(&user).map_err(|error| error.to_string())?;
            let exit = self.cpu.run(&segments(long), cr3).map_err(|error| error.to_string())?;
            self.exits += 1;
            let exception = match exit {
                // Translations were forgotten, nothing was run.
                None => continue,
                Some(NativeExit::Exception(exception)) => exception,
                Some(NativeExit::Exit(other)) => return Err(format!("unexpected exit {other:?}, {trail:x?}")),
            };
            let after = self.cpu.regs().map_err(|error| error.to_string())?;
            // Faults of the code itself are for the shadow MMU only.
            let own_fetch = exception.cr2 == Some(Gva::new(begin)) && access.kind != AccessKind::Fetch;
            if !own_fetch {
                let model = self.model(regs, root, cr3, gva, access);
                let silicon = outcome(&exception, after.rip == end);
                if silicon != model.map(drop) || exception.cr2.is_some_and(|cr2| cr2.get() != gva) {
                    return Err(format!(
                        "the silicon says {exception:x?} at {:#x}, the model on the shadow tables {model:x?} ({trail:x?})",
                        after.rip
                    ));
                }
                if let Ok(address) = model {
                    return self.check_effect(access, address, after.rax as u32);
                }
            }
            let (Some(gva), Some(code)) = (exception.cr2, exception.error_code) else {
                return Err(format!("unexpected {exception:x?} at {:#x}", after.rip));
            };
            let fault = ShadowFault::from_code(gva, PageFaultCode::new(code));
            let memory = self.ram.snapshot();
            let mut frames = SlotFrames(&mut self.reader);
            let outcome = self.mmu.page_fault(vcpu, &*memory, &mut frames, &mut self.tlb, fault);
            trail.push((code, outcome));
            match outcome {
                FaultOutcome::Emulate(mmio) => return Ok(Seen::Mmio(mmio.gpa.get())),
                FaultOutcome::ReadOnlyWrite(gpa, _) => return Ok(Seen::ReadOnly(gpa.get())),
                FaultOutcome::WriteTracked(gpa) => return Ok(Seen::Tracked(gpa.get())),
                FaultOutcome::Inject(fault) => return Ok(Seen::Fault(fault.code.raw())),
                FaultOutcome::NonCanonical(gva) => return Err(format!("{gva} is not canonical")),
                _ => {}
            }
        }
        Err(format!("never comes to an end: {trail:x?}"))
    }

    /// Whether the access did to memory what it should have, at the address that the model found.
    fn check_effect(&self, access: Access, address: u64, read: u32) -> Result<Seen, String> {
        let there = self.get32(address);
        let right = match access.kind {
            AccessKind::Read => there == read,
            AccessKind::Write => there == WRITTEN,
            AccessKind::Fetch => true,
        };
        if !right {
            return Err(format!("read {read:#x}, memory at {address:#x} holds {there:#x}"));
        }
        Ok(Seen::Ram(address))
    }

    /// The model's walk of the shadow tables: the address, or the error code.
    fn model(&self, regs: &PagingRegs, root: ShadowRoot, cr3: u64, gva: u64, access: Access) -> Result<u64, u32> {
        let long = matches!(root, ShadowRoot::Long { .. });
        let cpu = HwCpu {
            cr0: 1 << 31 | 1 << 16,
            cr3,
            cr4: 1 << 5,
            efer: 1 << 11 | if long { 1 << 10 } else { 0 },
            pdpte: match root {
                ShadowRoot::Pae { pdptes } => pdptes,
                ShadowRoot::Long { .. } => [0; 4],
            },
            maxphyaddr: self.physical_bits,
            page1gb: false,
            pse36: false,
            amd: self.amd,
            ..hw_cpu(regs)
        };
        match hw_walk(&cpu, &Wired(self.mmu.space()), gva, hw_access(access)) {
            HwOutcome::Access(page) => Ok(page.address),
            HwOutcome::PageFault { code } => Err(code),
            HwOutcome::GeneralProtection => unreachable!("only canonical addresses are tested"),
        }
    }
}

/// What the CPU said: success, or the page fault's code.
fn outcome(exception: &Exception, at_the_end: bool) -> Result<(), u32> {
    match (exception.vector, exception.error_code) {
        (exception::UD, _) if at_the_end => Ok(()),
        (exception::PF, Some(code)) => Err(code),
        // No page fault has this code.
        _ => Err(u32::MAX),
    }
}

fn segments(long: bool) -> SystemRegs {
    let data = Segment {
        selector: 0x2b,
        limit: u32::MAX,
        kind: 3,
        dpl: 3,
        present: true,
        non_system: true,
        db: true,
        granularity: true,
        ..Segment::default()
    };
    let code = Segment {
        selector: if long { 0x33 } else { 0x23 },
        kind: 11,
        long,
        db: !long,
        ..data
    };
    SystemRegs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        efer: if long { 1 << 10 } else { 0 },
        ..SystemRegs::default()
    }
}

/// The guest's memory as its hardware would see it, without flags being set.
struct Guest<'a>(&'a GuestRam);

impl HwMemory for Guest<'_> {
    fn load(&self, address: u64, bytes: u64) -> u64 {
        let size = if bytes == 4 { EntrySize::B4 } else { EntrySize::B8 };
        self.0.read_entry(Gpa::new(address), size).unwrap_or(0)
    }

    fn set_bits(&self, _address: u64, _bytes: u64, _expected: u64, _bits: u64) -> bool {
        true
    }
}

/// The shadow tables as the hardware sees them.
struct Wired<'a>(&'a SharedTables);

impl HwMemory for Wired<'_> {
    fn load(&self, address: u64, _bytes: u64) -> u64 {
        let index = u16::try_from(address % 4096 / 8).unwrap();
        self.0
            .table_at(address)
            .map_or(u64::MAX, |table| self.0.load(EntryLocation { table, index }))
    }

    fn set_bits(&self, address: u64, _bytes: u64, expected: u64, bits: u64) -> bool {
        const ACCESSED: u64 = 1 << 5;
        // The CPU has done it already, where a leaf was made ahead of its use.
        assert_eq!(bits, ACCESSED, "{expected:#x} at {address:#x} lacks {bits:#x}");
        true
    }
}
