//! [`ShadowCpu`]: a guest's vCPU whose CPL 3 code runs natively on shadow tables.
//!
//! It keeps the guest's own registers; the real CPU has those of the monitor and sees the guest's general-purpose
//! registers and segments only. Page faults go to the shadow MMU. Whatever the CPU can't do on shadow tables (MMIO, writes
//! to guest page tables, exceptions, everything above CPL 3) is reported as [`VmExit::EmulationFailure`], for a
//! [`Fallback`](crate::fallback::Fallback) to execute on the guest's own tables and descriptors.

use super::frames::SlotFrames;
use super::layout::is_monitors;
use super::native::{NativeCpu, NativeExit};
use super::tables::SharedTables;
use super::tlb::ShadowTlb;
use crate::backend::{BackendError, Kick, ShadowTables, VcpuBackend};
use crate::emulate::state::{CoreMsrs, cr0, cr4};
use crate::emulate::{CpuState, Exception, flags};
use crate::exit::{InsnBytes, VmEntry, VmExit};
use crate::fallback::{EmulationHost, NotKnown, Parts, describe};
use crate::paging;
use crate::regs::{Regs, SystemRegs};
use crate::shadow_counts::ShadowCounts;
use std::sync::Arc;
use umbra_memslots::{AddressSpaceId, Gfn, GfnRange, Gpa, Gva, SlotReader};
use umbra_mmu::NoObserver;
use umbra_mmu::direct::MmioSource;
use umbra_mmu::shadow::{FaultOutcome, ShadowFault, ShadowMmu, ShadowRoot, ShadowVcpu};
use umbra_mmu::x86::{GuestCpu, PageFaultCode, PagingState};

/// A vCPU. To be wrapped in a [`Fallback`](crate::fallback::Fallback).
pub struct ShadowCpu {
    native: NativeCpu,
    mmu: Arc<ShadowMmu<SharedTables>>,
    own: ShadowVcpu,
    tlb: ShadowTlb,
    slots: SlotReader,
    frames: SlotReader,
    /// What the guest's CPUID says about paging.
    cpu: GuestCpu,
    /// The guest's registers that the real CPU hasn't got.
    system: SystemRegs,
    msrs: CoreMsrs,
    debug: [u64; 8],
    pdptes: [u64; 4],
    /// Registers on which translation depends were written.
    paging_changed: bool,
    /// Where user code was last run.
    root: Option<ShadowRoot>,
    /// Why the instruction at RIP could not be executed natively.
    reason: Reason,
    /// Registers before a table lost its shadow so that the instruction could be tried again.
    tried: Option<Regs>,
    counts: ShadowCounts,
}

/// Why an instruction is for software.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reason {
    /// It isn't user code, or needs memory of another kind.
    Other,
    /// It raised an exception.
    Raised(Exception),
    /// It writes to a guest page table that has a shadow.
    Tracked(Gfn),
}

/// What to do after a fault.
enum After {
    RunAgain,
    Software(Reason),
}

impl ShadowCpu {
    /// A vCPU that runs on `native` with the tables of `mmu`, whose guest has the memory of two readers' slots: one for
    /// what the guest's tables hold, one for where its memory is. Its registers are zero.
    ///
    /// # Errors
    /// The host failed.
    pub fn new(
        mut native: NativeCpu,
        mmu: Arc<ShadowMmu<SharedTables>>,
        slots: SlotReader,
        frames: SlotReader,
    ) -> Result<Self, BackendError> {
        let cpu = describe(native.vcpu())?;
        let system = SystemRegs::default();
        let state = PagingState::new(&paging::registers(&system, [0; 4], flags::FIXED, 0, cpu));
        Ok(Self {
            tlb: native.tlb(),
            native,
            mmu,
            own: ShadowVcpu::new(state),
            slots,
            frames,
            cpu,
            system,
            msrs: CoreMsrs::default(),
            debug: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            pdptes: [0; 4],
            paging_changed: true,
            root: None,
            reason: Reason::Other,
            tried: None,
            counts: ShadowCounts::default(),
        })
    }

    /// What the shadow MMU did so far; stays current.
    pub fn counts(&self) -> ShadowCounts {
        self.counts.clone()
    }

    /// Whether the real CPU can run what the guest is to run now.
    fn is_user_code(&self, regs: &Regs) -> bool {
        let protected = self.system.cr0 & cr0::PE != 0 && regs.rflags & flags::VM == 0;
        // Single steps and breakpoints are the instruction core's.
        protected && self.system.ss.dpl == 3 && regs.rflags & flags::TF == 0 && self.debug[7] & 0xff == 0
    }

    /// Brings what translation depends on up to date.
    fn update_paging(&mut self, rflags: u64) -> Result<(), BackendError> {
        let keys = self.system.cr4 & cr4::PKE != 0;
        if !self.paging_changed && !keys {
            return Ok(());
        }
        let pkru = if keys { self.pkru()? } else { 0 };
        let regs = paging::registers(&self.system, self.pdptes, rflags, pkru, self.cpu);
        let state = PagingState::new(&regs);
        if self.paging_changed || state.keys != self.own.state().keys {
            self.own.set_state(state);
        }
        self.paging_changed = false;
        Ok(())
    }

    fn pkru(&mut self) -> Result<u32, BackendError> {
        let mut state = CpuState::default();
        let parts = Parts {
            fpu: true,
            ..Parts::default()
        };
        self.native.vcpu().load_parts(&mut state, parts)?;
        Ok(state.fpu.pkru())
    }

    /// Runs user code until something is for somebody else.
    fn run_natively(&mut self) -> Result<VmExit, BackendError> {
        loop {
            if self.native.vcpu().take_kick() {
                return Ok(VmExit::Interrupted);
            }
            let regs = self.native.regs()?;
            if !self.is_user_code(&regs) {
                return Ok(self.software(Reason::Other));
            }
            self.update_paging(regs.rflags)?;
            let root = self.mmu.root(
                &mut self.own,
                self.slots.snapshot(),
                AddressSpaceId::Normal,
                &mut self.tlb,
            );
            self.root = Some(root);
            let Some(cr3) = self.native.enter_root(root) else {
                return Ok(self.software(Reason::Other));
            };
            let Some(exit) = self.native.run(&self.system, cr3)? else {
                continue;
            };
            self.counts.update(|counts| counts.entries += 1);
            self.take_segments();
            let raised = match exit {
                NativeExit::Exit(exit) => return Ok(exit),
                NativeExit::Exception(raised) => raised,
            };
            let after = match (raised.cr2, raised.error_code) {
                (Some(gva), Some(code)) if !is_monitors(gva) => self.page_fault(gva, code)?,
                (Some(_), _) => After::Software(Reason::Other),
                _ => After::Software(Reason::Raised(raised)),
            };
            if let After::Software(reason) = after {
                return Ok(self.software(reason));
            }
        }
    }

    fn page_fault(&mut self, gva: Gva, code: u32) -> Result<After, BackendError> {
        // PKRU may have changed since.
        let rflags = self.native.regs()?.rflags;
        self.update_paging(rflags)?;
        let fault = ShadowFault::from_code(gva, PageFaultCode::new(code));
        let outcome = self.mmu.page_fault(
            &mut self.own,
            self.slots.snapshot(),
            &mut SlotFrames(&mut self.frames),
            &mut self.tlb,
            fault,
        );
        let mmu = *self.own.stats();
        self.counts.update(|counts| {
            counts.mmu = mmu;
            let searched = matches!(outcome, FaultOutcome::Emulate(mmio) if mmio.source == MmioSource::Search);
            counts.searches += u64::from(searched);
        });
        Ok(match outcome {
            FaultOutcome::Retry | FaultOutcome::Fixed | FaultOutcome::Spurious => After::RunAgain,
            FaultOutcome::Emulate(_) => {
                self.counts.set_recognised(true);
                After::Software(Reason::Other)
            }
            FaultOutcome::ReadOnlyWrite(..) => After::Software(Reason::Other),
            FaultOutcome::WriteTracked(gpa) => After::Software(Reason::Tracked(gpa.gfn())),
            FaultOutcome::Inject(fault) => {
                After::Software(Reason::Raised(Exception::page_fault(fault.code.raw(), fault.gva)))
            }
            FaultOutcome::NonCanonical(_) => After::Software(Reason::Raised(Exception::gp(0))),
        })
    }

    fn software(&mut self, reason: Reason) -> VmExit {
        self.reason = reason;
        VmExit::EmulationFailure {
            bytes: InsnBytes::default(),
        }
    }

    /// User code can change these without anybody's help: null selectors, `wrfsbase`.
    fn take_segments(&mut self) {
        let seen = self.native.system();
        (self.system.ds, self.system.es) = (seen.ds, seen.es);
        (self.system.fs, self.system.gs) = (seen.fs, seen.gs);
    }
}

impl VcpuBackend for ShadowCpu {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, BackendError> {
        self.counts.set_recognised(false);
        if self.native.is_live() {
            return match self.native.go_on(entry)? {
                NativeExit::Exit(exit) => {
                    self.take_segments();
                    Ok(exit)
                }
                NativeExit::Exception(raised) => Ok(self.software(Reason::Raised(raised))),
            };
        }
        match entry {
            VmEntry::Resume => self.run_natively(),
            VmEntry::Complete(_) => Ok(VmExit::Interrupted),
            VmEntry::Value(_) | VmEntry::Fault => Err(BackendError::WrongEntry {
                entry,
                expected: "Resume or Complete",
            }),
        }
    }

    fn regs(&mut self) -> Result<Regs, BackendError> {
        self.native.regs()
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<(), BackendError> {
        self.native.set_regs(regs)
    }

    fn system_regs(&mut self) -> Result<SystemRegs, BackendError> {
        Ok(self.system)
    }

    fn set_system_regs(&mut self, regs: &SystemRegs) -> Result<(), BackendError> {
        let deciding = |regs: &SystemRegs| [regs.cr0, regs.cr3, regs.cr4, regs.efer];
        self.paging_changed |= deciding(regs) != deciding(&self.system);
        self.system = *regs;
        self.pdptes = paging::pdptes_of(regs, self.cpu, &self.slots.snapshot());
        Ok(())
    }

    fn limits(&self) -> Option<&'static str> {
        Some(
            "the shadow backend has no interrupt controller, and executes all but privilege level 3 in software, which \
             does not know every instruction",
        )
    }

    fn shadow_tables(&self) -> Option<ShadowTables> {
        Some(ShadowTables {
            source: self.mmu.clone(),
            root: self.root?,
        })
    }

    fn kick_handle(&self) -> Box<dyn Kick> {
        self.native.kick_handle()
    }
}

impl EmulationHost for ShadowCpu {
    fn load_parts(&mut self, state: &mut CpuState, parts: Parts) -> Result<(), BackendError> {
        if parts.msrs {
            state.msrs = self.msrs;
        }
        if parts.debug {
            state.debug = self.debug;
        }
        self.native.vcpu().load_parts(state, only_fpu(parts))
    }

    fn store_parts(&mut self, before: &CpuState, after: &CpuState, parts: Parts) -> Result<(), BackendError> {
        if parts.msrs {
            self.msrs = after.msrs;
        }
        if parts.debug {
            self.debug = after.debug;
        }
        self.native.vcpu().store_parts(before, after, only_fpu(parts))
    }

    fn pdptes(&mut self) -> Option<[u64; 4]> {
        Some(self.pdptes)
    }

    fn set_pdptes(&mut self, pdptes: [u64; 4]) {
        self.paging_changed |= pdptes != self.pdptes;
        self.pdptes = pdptes;
    }

    fn read_msr(&mut self, index: u32) -> Result<Option<u64>, BackendError> {
        self.native.vcpu().read_msr(index)
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Result<bool, BackendError> {
        self.native.vcpu().write_msr(index, value)
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> Result<[u32; 4], BackendError> {
        self.native.vcpu().cpuid(leaf, subleaf)
    }

    fn interrupt_shadow(&mut self) -> Result<bool, BackendError> {
        Ok(false)
    }

    fn set_interrupt_shadow(&mut self, _shadow: bool) -> Result<(), BackendError> {
        // There are no interrupts to hold off.
        Ok(())
    }

    fn flush_translations(&mut self) -> Result<(), BackendError> {
        self.paging_changed = true;
        Ok(())
    }

    fn wrote_memory(&mut self, gpa: Gpa, bytes: usize) {
        let bytes = u16::try_from(bytes).unwrap_or(u16::MAX);
        self.mmu.guest_wrote(&mut NoObserver, &mut self.tlb, gpa, bytes);
    }

    fn not_known(&mut self) -> Result<NotKnown, BackendError> {
        Ok(match self.reason {
            Reason::Raised(exception) => NotKnown::Deliver(exception),
            // Without its shadow the table is ordinary memory, until it is walked again: at once, if it maps itself.
            Reason::Tracked(gfn) => {
                let regs = Some(self.native.regs()?);
                if self.tried == regs {
                    return Ok(NotKnown::GiveUp);
                }
                self.tried = regs;
                self.mmu
                    .zap_range(&mut NoObserver, &mut self.tlb, GfnRange::single(gfn));
                NotKnown::RunAgain
            }
            Reason::Other => NotKnown::GiveUp,
        })
    }
}

/// The real CPU has x87, SSE and the extended state.
fn only_fpu(parts: Parts) -> Parts {
    Parts {
        fpu: parts.fpu,
        ..Parts::default()
    }
}
