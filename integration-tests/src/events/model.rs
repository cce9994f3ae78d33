//! [`run`]: a guest program on our instruction core, whose paging unit is the model of the hardware walking the tables of
//! our shadow MMU. There is no TLB: each access is a walk.

use super::assemble::{ACTION_PORT, AssembleError, assemble};
use super::image::{ENTRY, STACK, system_regs};
use super::memory::{Action, HUGE, Large, Memory, MemoryError};
use super::program::Program;
use super::recorder::Recorder;
use crate::trace::Event;
use std::sync::Arc;
use umbra_devices::IoSize;
use umbra_memslots::{AddressSpaceId, Gfn, Gpa, GuestMemory, Gva, Memslots};
use umbra_mmu::direct::{FoundSlot, SlotSet};
use umbra_mmu::guest_walk::{PdpteLoad, load_pdptes};
use umbra_mmu::hw_model::{HwAccess, HwCpu, HwOutcome, Wired, hw_walk};
use umbra_mmu::shadow::{
    DirtyLog, FaultOutcome, FoundFrame, FrameSource, HostParams, LayoutError, ShadowError, ShadowFault, ShadowMmu,
    ShadowRoot, ShadowVcpu, SpteLayout, TlbControl,
};
use umbra_mmu::tables::{HeapTables, TableSpaceError};
use umbra_mmu::x86::control::{cr0, cr4, efer};
use umbra_mmu::x86::{GuestCpu, PageFaultCode, PagingMode, PagingRegs, PagingState, Privilege};
use umbra_vcpu::emulate::{
    Access, AccessKind, Cpu, CpuState, Event as Interrupt, Exception, Memory as LinearMemory, Platform, Source, Step,
    Stop, Translation,
};
use umbra_vcpu::regs::Regs;

/// Physical address bits, of the guest and of the host: those of the lab's CPU.
const PHYSICAL_BITS: u32 = 40;
/// Where the walker finds the tables: above the guest's memory.
const TABLES_AT: u64 = 1 << 39;
/// 4 KiB tables; more than any program needs.
const TABLES: u32 = 1024;
/// Steps after which a program must have ended.
const LIMIT: u32 = 100_000;
/// Faults that one access may take.
const ATTEMPTS: u32 = 16;

/// The program didn't come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// It can't be assembled.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The layout of the entries.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The tables.
    #[error(transparent)]
    Tables(#[from] TableSpaceError),
    /// The shadow MMU.
    #[error(transparent)]
    Shadow(#[from] ShadowError),
    /// It went astray.
    #[error("at {rip:#x}: {step:?}")]
    Stopped {
        /// Where.
        rip: u64,
        /// How.
        step: Step,
    },
    /// An exception could not be delivered.
    #[error("at {rip:#x}: {stop:?} on the way to the handler")]
    Undelivered {
        /// Where.
        rip: u64,
        /// Why.
        stop: Stop,
    },
    /// It runs on.
    #[error("it runs on after {LIMIT} instructions")]
    Endless,
}

/// Runs a program to its end, and gives what happened.
///
/// # Errors
/// [`ModelError`]: a program of ours that is wrong, or a mistake in the instruction core or the MMU.
pub fn run(program: &Program) -> Result<Vec<Event>, ModelError> {
    let memory = Memory::new(&assemble(program)?, Large::Pretended, None)?;
    let layout = SpteLayout::new(HostParams::x86(PHYSICAL_BITS))?;
    let sys = system_regs(program.paging, program.cr3);
    let regs = Regs {
        rip: ENTRY,
        rsp: STACK,
        rflags: 2,
        ..Regs::default()
    };
    let state = CpuState::new(&regs, &sys);
    let slots = memory.ram().snapshot();
    let paging = paging_regs(&state, &slots);
    let world = World {
        mmu: ShadowMmu::new(layout, HeapTables::new(TABLES_AT, TABLES)?)?,
        vcpu: ShadowVcpu::with_observer(PagingState::new(&paging), Recorder::default()),
        regs: paging,
        memory,
        slots,
        actions: program.actions.clone().into_iter(),
        failed: None,
    };
    let mut cpu = Cpu::new(state, world);
    // As KVM does before it first enters the guest.
    cpu.env.hardware();
    for _ in 0..LIMIT {
        let rip = cpu.state.rip;
        let step = cpu.step();
        if let Some(error) = cpu.env.failed.take() {
            return Err(error.into());
        }
        match step {
            Step::Done { trap: false } | Step::Repeat => {}
            Step::Halt => return Ok(std::mem::take(&mut cpu.env.vcpu.observer_mut().0)),
            Step::Fault(exception) => {
                let source = Source::Exception;
                cpu.deliver(Interrupt { exception, source })
                    .map_err(|stop| ModelError::Undelivered { rip, stop })?;
            }
            step => return Err(ModelError::Stopped { rip, step }),
        }
    }
    Err(ModelError::Endless)
}

/// Everything outside the CPU.
struct World {
    mmu: ShadowMmu<HeapTables>,
    vcpu: ShadowVcpu<Recorder>,
    regs: PagingRegs,
    memory: Memory,
    slots: Arc<Memslots>,
    actions: std::vec::IntoIter<Action>,
    failed: Option<MemoryError>,
}

/// Where an access goes.
enum Target {
    Memory(Gpa),
    /// A guest's table: the MMU is to be told of writes.
    Table(Gpa),
    /// Reads as zeros.
    Device,
}

impl World {
    fn act(&mut self, action: Action) -> Result<(), MemoryError> {
        if let Action::Remove(_) = action {
            self.mmu.zap_all(self.vcpu.observer_mut(), &mut NoTlb);
        }
        self.memory.act(action)?;
        let slots = self.memory.ram().snapshot();
        let next = slots.generation();
        self.mmu
            .generation_changes(self.vcpu.observer_mut(), &mut NoTlb, AddressSpaceId::Normal, next);
        if let Action::Log(at, on) = action
            && let Some(slot) = slots.find_gpa(Gpa::new(at))
        {
            let log = if on { DirtyLog::WriteProtection } else { DirtyLog::Off };
            self.mmu.start_logging(&mut NoTlb, slot.range(), log);
        }
        self.slots = slots;
        Ok(())
    }

    fn translate(&mut self, at: Gva, access: Access) -> Result<Target, Stop> {
        let wires = HwAccess {
            write: access.kind == AccessKind::Write,
            fetch: access.kind == AccessKind::Fetch,
            cpl3: access.user,
            implicit: access.implicit,
        };
        for _ in 0..ATTEMPTS {
            let cpu = self.hardware();
            let code = match hw_walk(&cpu, &Wired(self.mmu.space()), at.get(), wires) {
                HwOutcome::Access(page) => return Ok(Target::Memory(Gpa::new(page.address))),
                HwOutcome::GeneralProtection => return Err(Exception::gp(0).into()),
                HwOutcome::PageFault { code } => code,
            };
            self.vcpu.observer_mut().0.push(Event::PageFault { address: at, code });
            let mut fault = ShadowFault::from_code(at, PageFaultCode::new(code));
            if access.implicit {
                fault.access.privilege = Privilege::Implicit;
            }
            let mut frames = Frames(&self.slots);
            let outcome = self
                .mmu
                .page_fault(&mut self.vcpu, &*self.slots, &mut frames, &mut NoTlb, fault);
            match outcome {
                FaultOutcome::Retry | FaultOutcome::Fixed | FaultOutcome::Spurious => {}
                FaultOutcome::Emulate(_) | FaultOutcome::ReadOnlyWrite(..) => return Ok(Target::Device),
                FaultOutcome::WriteTracked(gpa) => return Ok(Target::Table(gpa)),
                FaultOutcome::Inject(fault) => {
                    return Err(Exception::page_fault(fault.code.raw(), fault.gva).into());
                }
                FaultOutcome::NonCanonical(_) => return Err(Exception::gp(0).into()),
            }
        }
        Err(Stop::Unsupported)
    }

    /// What the hardware has in its registers: the root of the shadow tables, with WP and NX on.
    fn hardware(&mut self) -> HwCpu {
        let regs = self.regs;
        let mut cpu = HwCpu {
            cr0: cr0::PG | cr0::WP,
            cr3: 0,
            cr4: regs.cr4,
            efer: regs.efer | efer::NXE,
            rflags: regs.rflags,
            pkru: 0,
            pdpte: [0; 4],
            maxphyaddr: PHYSICAL_BITS,
            page1gb: true,
            pse36: true,
            amd: true,
        };
        if regs.cr0 & cr0::PG == 0 {
            cpu.cr4 &= !(cr4::SMEP | cr4::SMAP);
        }
        match self
            .mmu
            .root(&mut self.vcpu, &*self.slots, AddressSpaceId::Normal, &mut NoTlb)
        {
            ShadowRoot::Long { address, .. } => cpu.cr3 = address,
            ShadowRoot::Pae { pdptes } => {
                cpu.cr4 |= cr4::PAE;
                cpu.pdpte = pdptes;
            }
        }
        cpu
    }
}

/// The registers that address translation depends on.
fn paging_regs(state: &CpuState, memory: &Memslots) -> PagingRegs {
    let mut regs = PagingRegs {
        cr0: state.sys.cr0,
        cr3: state.sys.cr3,
        cr4: state.sys.cr4,
        efer: state.sys.efer,
        rflags: state.rflags,
        pkru: 0,
        pdptes: [0; 4],
        cpu: GuestCpu {
            physical_bits: PHYSICAL_BITS,
            gigabyte_pages: true,
            pse36: true,
            upper_global_reserved: true,
        },
    };
    if PagingMode::of(&regs) == PagingMode::Pae
        && let PdpteLoad::Loaded(entries) = load_pdptes(&regs, memory)
    {
        regs.pdptes = entries;
    }
    regs
}

impl LinearMemory for World {
    fn read(&mut self, at: Gva, bytes: &mut [u8], access: Access) -> Result<(), Stop> {
        match self.translate(at, access)? {
            Target::Memory(gpa) | Target::Table(gpa) => self.slots.read(gpa, bytes).map_err(|_| Stop::Unsupported),
            Target::Device => {
                bytes.fill(0);
                Ok(())
            }
        }
    }

    fn write(&mut self, at: Gva, bytes: &[u8], access: Access) -> Result<(), Stop> {
        match self.translate(at, access)? {
            Target::Memory(gpa) => self.slots.write(gpa, bytes).map_err(|_| Stop::Unsupported),
            Target::Table(gpa) => {
                self.slots.write(gpa, bytes).map_err(|_| Stop::Unsupported)?;
                let length = u16::try_from(bytes.len()).map_err(|_| Stop::Unsupported)?;
                self.mmu.guest_wrote(self.vcpu.observer_mut(), &mut NoTlb, gpa, length);
                Ok(())
            }
            Target::Device => Ok(()),
        }
    }

    fn probe(&mut self, at: Gva, _length: usize, access: Access) -> Result<(), Stop> {
        self.translate(at, access).map(drop)
    }

    /// The programs have no use for it.
    fn compare_exchange(&mut self, _at: Gva, _old: &[u8], _new: &[u8], _access: Access) -> Result<bool, Stop> {
        Err(Stop::Unsupported)
    }
}

impl Platform for World {
    fn port_in(&mut self, _port: u16, _size: IoSize) -> Result<u32, Stop> {
        Err(Stop::Unsupported)
    }

    fn port_out(&mut self, port: u16, _size: IoSize, _value: u32) -> Result<(), Stop> {
        let action = self.actions.next().filter(|_| port == u16::from(ACTION_PORT));
        let action = action.ok_or(Stop::Unsupported)?;
        self.act(action).map_err(|error| {
            self.failed = Some(error);
            Stop::Unsupported
        })
    }

    fn read_msr(&mut self, _index: u32) -> Result<u64, Stop> {
        Err(Stop::Unsupported)
    }

    fn write_msr(&mut self, _index: u32, _value: u64) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }

    /// It has every feature that a bit of CR4 belongs to.
    fn cpuid(&mut self, _leaf: u32, _subleaf: u32) -> [u32; 4] {
        [u32::MAX; 4]
    }

    fn tsc(&mut self) -> u64 {
        0
    }

    fn translation(&mut self, change: Translation, state: &CpuState) {
        match change {
            Translation::InvalidateAddress(at) => {
                let mut frames = Frames(&self.slots);
                self.mmu
                    .invlpg(&mut self.vcpu, &*self.slots, &mut frames, &mut NoTlb, at);
            }
            Translation::InvalidateAll | Translation::ControlsChanged => {
                self.regs = paging_regs(state, &self.slots);
                self.vcpu.set_state(PagingState::new(&self.regs));
                // KVM loads the root before it enters the guest again.
                self.hardware();
            }
            Translation::PrivilegeChanged => {}
        }
    }

    fn physical_width(&self) -> u32 {
        PHYSICAL_BITS
    }
}

/// There is none.
struct NoTlb;

impl TlbControl for NoTlb {
    fn flush_all(&mut self) {}

    fn flush_gva(&mut self, _gva: Gva) {}
}

/// Frames are known to the walker by their guest-physical addresses.
struct Frames<'a>(&'a Memslots);

impl FrameSource for Frames<'_> {
    fn current(&mut self) -> SlotSet {
        SlotSet {
            generation: self.0.generation(),
            address_space: self.0.space(),
        }
    }

    fn frame(&mut self, gfn: Gfn) -> (SlotSet, Option<FoundFrame>) {
        let found = self.0.find(gfn).map(|slot| {
            let found = FoundSlot {
                id: slot.id(),
                read_only: slot.is_read_only(),
                invalid: slot.is_invalid(),
            };
            let log = if slot.dirty().is_some() {
                DirtyLog::WriteProtection
            } else {
                DirtyLog::Off
            };
            FoundFrame::page(found, gfn.base().get())
                .with_largest(if HUGE.contains(&gfn.base().get()) { 2 } else { 1 })
                .with_log(log)
        });
        (self.current(), found)
    }

    /// All of it was written to.
    fn at_hand(&mut self, _gfn: Gfn) -> bool {
        true
    }
}
