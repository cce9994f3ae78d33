//! The paging unit: walks the shadow tables as hardware does, and takes the faults to the shadow MMU.

use super::gate::{Alone, Gates, Pass};
use super::recognition::Recognition;
use super::tlb::Tlb;
use super::vm::Shared;
use crate::backend::ShadowTables;
use crate::emulate::{Access, AccessKind, CpuState, Exception, Stop};
use crate::paging;
use std::sync::Arc;
use umbra_memslots::{AddressSpaceId, Gfn, GfnRange, Gpa, Gva, Memslots, SlotReader};
use umbra_mmu::NoObserver;
use umbra_mmu::direct::{FoundSlot, SlotSet};
use umbra_mmu::hw_model::{HwAccess, HwCpu, HwOutcome, Wired, hw_walk};
use umbra_mmu::shadow::{
    FaultOutcome, FoundFrame, FrameSource, ShadowFault, ShadowRoot, ShadowStats, ShadowVcpu, TlbControl,
};
use umbra_mmu::x86::control::{cr0, cr4, efer, rflags};
use umbra_mmu::x86::{self, GuestCpu, PageFaultCode, PagingRegs, PagingState, Privilege};

/// What the guest's CPUID says about paging.
pub(super) const GUEST_CPU: GuestCpu = GuestCpu::intel(super::cpuid::PHYSICAL_BITS);

/// Faults that one access may take before the vCPU looks at the world again. Each either makes progress or lost against
/// another vCPU.
const ATTEMPTS: usize = 64;

/// Where an access goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// Memory.
    Ram(Gpa),
    /// The bus.
    Device(Gpa),
    /// Memory with a guest page table that has a shadow: the MMU is to be told of the write.
    Table(Gpa),
}

/// The paging unit of one vCPU.
pub(super) struct Walker {
    shared: Arc<Shared>,
    vcpu: ShadowVcpu,
    regs: PagingRegs,
    root: Option<ShadowRoot>,
    /// The newest memory slots, which may be newer than those in which the TLB finds memory.
    slots: SlotReader,
    /// Inside only while guest code is executed, and not while the MMU is asked.
    pass: Pass,
    /// Moves with each flush that others asked for: what was translated before does not count any more.
    flushes: u64,
    /// `flushes` when the root was asked for, while the registers are the same.
    rooted: Option<u64>,
    /// Accesses to devices.
    pub devices: Recognition,
}

impl Walker {
    /// With the registers that `state` has.
    pub fn new(shared: Arc<Shared>, state: &CpuState, slots: SlotReader) -> Self {
        let regs = registers(state);
        let pass = shared.gates.add();
        Self {
            shared,
            vcpu: ShadowVcpu::new(PagingState::new(&regs)),
            regs,
            root: None,
            slots,
            pass,
            flushes: 0,
            rooted: None,
            devices: Recognition::default(),
        }
    }

    /// How often others had this TLB flushed.
    pub fn flushes(&self) -> u64 {
        self.flushes
    }

    /// Guest code is about to be executed.
    pub fn enter(&mut self, tlb: &mut Tlb) {
        if self.pass.enter(&self.shared.gates) {
            tlb.flush();
            self.flushes += 1;
        }
    }

    /// No guest code is executed for now, and others need not wait for this vCPU.
    pub fn leave(&self) {
        self.pass.leave();
    }

    /// Whether nobody asks for anything that [`Walker::look_up`] would take note of.
    #[inline]
    pub fn is_current(&self) -> bool {
        self.pass.is_current(&self.shared.gates)
    }

    /// Between two blocks: takes note of what others ask for.
    #[inline]
    pub fn look_up(&mut self, tlb: &mut Tlb) {
        if !self.pass.is_current(&self.shared.gates) {
            self.pass.leave();
            self.enter(tlb);
        }
    }

    /// No other vCPU's TLB knows anything any more. This vCPU's does, unless [`Walker::flushes`] has moved.
    pub fn flush_others(&mut self, tlb: &mut Tlb) {
        self.pass.leave();
        self.pass.flush_others(&self.shared.gates);
        self.enter(tlb);
    }

    /// Waits until no other vCPU is in guest code, and keeps them out until [`Walker::rejoin`].
    pub fn be_alone<'g>(&mut self, gates: &'g Gates, tlb: &mut Tlb) -> Alone<'g> {
        self.pass.leave();
        let alone = self.pass.be_alone(gates);
        self.enter(tlb);
        alone
    }

    /// Ends what [`Walker::be_alone`] began.
    pub fn rejoin(&mut self, alone: Alone<'_>, tlb: &mut Tlb) {
        self.pass.leave();
        self.pass.rejoin(alone);
        self.enter(tlb);
    }

    /// Asks the MMU, from outside.
    fn ask<R>(&mut self, tlb: &mut Tlb, f: impl FnOnce(&mut Self, &Arc<Memslots>, &mut Flush<'_>) -> R) -> R {
        let shared = Arc::clone(&self.shared);
        let slots = Arc::clone(tlb.slots());
        let mut flush = Flush {
            gates: &shared.gates,
            own: None,
        };
        self.pass.leave();
        let result = f(self, &slots, &mut flush);
        flush.carry_out(tlb);
        self.enter(tlb);
        result
    }

    /// The tables, if they were walked already.
    pub fn tables(&self) -> Option<ShadowTables> {
        let source = Arc::clone(&self.shared.mmu) as _;
        self.root.map(|root| ShadowTables { source, root })
    }

    /// Counts of the shadow MMU.
    pub fn stats(&self) -> &ShadowStats {
        self.vcpu.stats()
    }

    /// A control register or EFER was written.
    pub fn set_state(&mut self, state: &CpuState, tlb: &mut Tlb) {
        self.regs = registers(state);
        self.vcpu.set_state(PagingState::new(&self.regs));
        self.rooted = None;
        self.devices.forget();
        tlb.flush();
    }

    /// INVLPG.
    pub fn invalidate(&mut self, tlb: &mut Tlb, at: Gva) {
        self.ask(tlb, |own, slots, flush| {
            let mut frames = Frames(&mut own.slots);
            own.shared.mmu.invlpg(&mut own.vcpu, &**slots, &mut frames, flush, at);
        });
        self.devices.forget();
        tlb.flush_page(at);
    }

    /// The guest wrote to a page table.
    pub fn wrote_table(&mut self, tlb: &mut Tlb, gpa: Gpa, bytes: u16) {
        self.ask(tlb, |own, _, flush| {
            own.shared.mmu.guest_wrote(&mut NoObserver, flush, gpa, bytes);
        });
    }

    /// A frame's translations are to be made anew.
    pub fn forget(&mut self, tlb: &mut Tlb, gpa: Gpa) {
        self.ask(tlb, |own, _, flush| {
            own.shared
                .mmu
                .zap_range(&mut NoObserver, flush, GfnRange::single(gpa.gfn()));
        });
    }

    /// Translates one address; what it may be accessed for afterwards is remembered in `tlb`.
    pub fn translate(&mut self, tlb: &mut Tlb, at: Gva, access: Access) -> Result<Target, Stop> {
        let wires = HwAccess {
            write: access.kind == AccessKind::Write,
            fetch: access.kind == AccessKind::Fetch,
            cpl3: access.user,
            implicit: access.implicit,
        };
        for _ in 0..ATTEMPTS {
            let flushes = self.flushes;
            let cpu = self.cpu(tlb, access);
            // The root may be gone already.
            if self.flushes != flushes {
                continue;
            }
            let code = match hw_walk(&cpu, &Wired(self.shared.mmu.space()), at.get(), wires) {
                HwOutcome::Access(page) => return Ok(Target::Ram(Gpa::new(page.address))),
                HwOutcome::GeneralProtection => return Err(Exception::gp(0).into()),
                HwOutcome::PageFault { code } => code,
            };
            let mut fault = ShadowFault::from_code(at, PageFaultCode::new(code));
            fault.access = described(access);
            let began = self.devices.begin();
            match self.fault(tlb, fault) {
                FaultOutcome::Fixed | FaultOutcome::Spurious => {}
                FaultOutcome::Retry => self.rooted = None,
                FaultOutcome::Emulate(mmio) => {
                    self.devices.recognised(mmio.source, began);
                    self.devices.note(at, access, mmio.gpa);
                    return Ok(Target::Device(mmio.gpa));
                }
                FaultOutcome::ReadOnlyWrite(gpa, _) => {
                    self.devices.is_mmio = false;
                    self.devices.note(at, access, gpa);
                    return Ok(Target::Device(gpa));
                }
                FaultOutcome::WriteTracked(gpa) => return Ok(Target::Table(gpa)),
                FaultOutcome::Inject(fault) => {
                    return Err(Exception::page_fault(fault.code.raw(), fault.gva).into());
                }
                FaultOutcome::NonCanonical(_) => return Err(Exception::gp(0).into()),
            }
        }
        Err(Stop::Contended)
    }

    fn fault(&mut self, tlb: &mut Tlb, fault: ShadowFault) -> FaultOutcome {
        let mut frames = Frames(&mut self.slots);
        let known = self
            .shared
            .mmu
            .known_mmio(&mut self.vcpu, &**tlb.slots(), &mut frames, fault);
        let unfinished = match known {
            Ok(outcome) => return outcome,
            Err(unfinished) => unfinished,
        };
        self.ask(tlb, |own, slots, flush| {
            let mut frames = Frames(&mut own.slots);
            own.shared
                .mmu
                .finish_fault(&mut own.vcpu, &**slots, &mut frames, flush, fault, unfinished)
        })
    }

    /// What the hardware has in its registers: the root of the shadow tables, with WP and NX on, the rest as the guest
    /// has it.
    fn cpu(&mut self, tlb: &mut Tlb, access: Access) -> HwCpu {
        let regs = &mut self.regs;
        let ac = if access.alignment_flag { rflags::AC } else { 0 };
        if regs.cr4 & cr4::SMAP != 0 && regs.rflags & rflags::AC != ac {
            regs.rflags = regs.rflags & !rflags::AC | ac;
            self.vcpu.set_alignment_flag(access.alignment_flag);
        }
        let mut cpu = HwCpu {
            cr0: cr0::PG | cr0::WP,
            cr3: 0,
            cr4: regs.cr4,
            efer: regs.efer | efer::NXE,
            rflags: regs.rflags,
            pkru: regs.pkru,
            pdpte: [0; 4],
            maxphyaddr: self.shared.mmu.layout().host().physical_bits,
            page1gb: true,
            pse36: false,
            amd: false,
        };
        if regs.cr0 & cr0::PG == 0 {
            // Not in force in the guest without paging; but here there is paging.
            cpu.cr4 &= !(cr4::SMEP | cr4::SMAP | cr4::PKE);
        }
        let root = match self.root {
            Some(root) if self.rooted == Some(self.flushes) => root,
            _ => self.load_root(tlb),
        };
        match root {
            ShadowRoot::Long { address, .. } => cpu.cr3 = address,
            ShadowRoot::Pae { pdptes } => {
                cpu.cr4 |= cr4::PAE;
                cpu.pdpte = pdptes;
            }
        }
        cpu
    }

    fn load_root(&mut self, tlb: &mut Tlb) -> ShadowRoot {
        let flushes = self.flushes;
        let root = self.ask(tlb, |own, slots, flush| {
            own.shared
                .mmu
                .root(&mut own.vcpu, &**slots, AddressSpaceId::Normal, flush)
        });
        self.root = Some(root);
        self.rooted = Some(flushes);
        root
    }
}

/// The access in the MMU's words.
fn described(access: Access) -> x86::Access {
    let kind = match access.kind {
        AccessKind::Read => x86::AccessKind::Read,
        AccessKind::Write => x86::AccessKind::Write,
        AccessKind::Fetch => x86::AccessKind::Fetch,
    };
    let privilege = match (access.user, access.implicit) {
        (true, _) => Privilege::User,
        (false, false) => Privilege::Supervisor,
        (false, true) => Privilege::Implicit,
    };
    x86::Access::new(kind, privilege)
}

/// The registers that address translation depends on.
fn registers(state: &CpuState) -> PagingRegs {
    paging::registers(&state.sys, state.pdptes, state.rflags, state.fpu.pkru(), GUEST_CPU)
}

/// What the MMU wants forgotten: by all vCPUs at once, by this one before it goes inside again.
struct Flush<'a> {
    gates: &'a Gates,
    own: Option<Own>,
}

/// What only this vCPU is to forget.
enum Own {
    All,
    Page(Gva),
}

impl Flush<'_> {
    fn carry_out(self, tlb: &mut Tlb) {
        match self.own {
            Some(Own::All) => tlb.flush(),
            Some(Own::Page(at)) => tlb.flush_page(at),
            None => {}
        }
    }
}

impl TlbControl for Flush<'_> {
    fn flush_all(&mut self) {
        // This vCPU learns of it as it goes in.
        self.gates.flush();
    }

    fn flush_vcpu(&mut self) {
        self.own = Some(Own::All);
    }

    fn flush_gva(&mut self, gva: Gva) {
        self.own = Some(match self.own {
            None => Own::Page(gva),
            Some(_) => Own::All,
        });
    }
}

/// Guest frames are known to the walker by their guest-physical addresses: the TLB finds the memory in its own snapshot.
///
/// Each is looked for in the newest slots, after the MMU has noted the number of invalidations: were they older than that,
/// what an invalidation had just removed could come back.
struct Frames<'a>(&'a mut SlotReader);

impl FrameSource for Frames<'_> {
    fn current(&mut self) -> SlotSet {
        set_of(self.0.snapshot_arc())
    }

    fn frame(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundFrame>) {
        let slots = self.0.snapshot_arc();
        let found = slots.find(gfn).map(|slot| {
            let found = FoundSlot {
                id: slot.id(),
                read_only: slot.is_read_only(),
                invalid: slot.is_invalid(),
            };
            FoundFrame::page(found, gfn.base().get()).with_largest(largest_leaf(slot.range(), gfn))
        });
        (set_of(slots), found)
    }
}

fn set_of(slots: &Memslots) -> SlotSet {
    SlotSet {
        generation: slots.generation(),
        address_space: slots.space(),
    }
}

/// The level of the largest leaf around `gfn` that lies within the slot: addresses are aligned as the frames are.
fn largest_leaf(slot: GfnRange, gfn: Gfn) -> u8 {
    let fits = |level: &u8| {
        let pages = 1u64 << (9 * (level - 1));
        let first = gfn.get() & !(pages - 1);
        slot.start().get() <= first && first + pages <= slot.end_raw()
    };
    [3, 2].into_iter().find(fits).unwrap_or(1)
}
