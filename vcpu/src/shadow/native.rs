//! [`NativeCpu`]: runs CPL 3 code on tables of ours until it faults.
//!
//! The CPU is a KVM vCPU whose CR3 is a root of ours. User code runs as it is; whatever exception it raises takes the CPU
//! through the monitor's IDT to a stub at CPL 0, which halts, and the halt is an exit. Back into user code it goes with
//! `KVM_SYNC_REGS`: no register costs a system call of its own.

use super::arena::{Arena, ArenaError};
use super::layout::{EDITS, HOME_ROOT, MAX_EDITS, MONITOR_ENTRY, ROUTINE, STACK, STACK_TOP, STUB_BYTES, STUBS, linear};
use super::monitor;
use super::tables::SharedTables;
use super::tlb::ShadowTlb;
use crate::backend::{BackendError, Kick, VcpuBackend};
use crate::emulate::state::{cr0, cr4, efer};
use crate::emulate::{Exception, flags};
use crate::exit::{FatalExit, VmEntry, VmExit};
use crate::fallback::EmulationHost;
use crate::kvm::{KvmError, KvmVcpu, KvmVm};
use crate::regs::{Regs, Segment, SystemRegs};
use std::sync::Arc;
use umbra_memslots::Gva;
use umbra_mmu::shadow::ShadowRoot;

/// Why there is no vCPU.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// No memory for monitor and tables.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// KVM refused registers.
    #[error("cannot set up the vCPU: {0}")]
    Vcpu(#[from] BackendError),
}

/// What ended a run of user code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NativeExit {
    /// It raised this exception, with its error code and CR2; RIP is at the instruction.
    Exception(Exception),
    /// Anything else, to be answered by the argument of the next [`NativeCpu::go_on`].
    Exit(VmExit),
}

/// A vCPU and its monitor.
pub struct NativeCpu {
    vcpu: KvmVcpu,
    arena: Arc<Arena>,
    tlb: ShadowTlb,
    /// Registers that all contexts have in common.
    common: SystemRegs,
    /// CR4 bits that user code may have as the guest wants them.
    cr4_mask: u64,
    umip: u64,
    /// User code's registers, while it isn't running.
    regs: Regs,
    system: SystemRegs,
    /// The CPU still has user code's registers: an exit waits for its answer.
    live: bool,
}

/// CR4 bits that user code notices.
const USER_CR4: u64 = cr4::TSD | cr4::DE | cr4::PCE | cr4::OSFXSR | cr4::OSXMMEXCPT;
/// CR0 bits that user code notices.
const USER_CR0: u64 = cr0::MP | cr0::EM | cr0::TS | cr0::NE | cr0::AM;

impl NativeCpu {
    /// Makes vCPU 0 of a VM that has no vCPU yet and no interrupt controller, and tables for it to walk.
    ///
    /// # Errors
    /// [`NativeError`].
    pub fn new(vm: &mut KvmVm, tables: u32) -> Result<(Self, SharedTables), NativeError> {
        let arena = Arc::new(Arena::new(vm, tables)?);
        monitor::install(&arena);
        let mut vcpu = vm.create_vcpu(0)?;
        let common = monitor::system_regs(&vcpu.system_regs()?);
        let [_, seven_b, seven_c, _] = vcpu.cpuid(7, 0)?;
        let [_, _, one_c, _] = vcpu.cpuid(1, 0)?;
        let has = |register: u32, bit: u32, control: u64| if register >> bit & 1 == 1 { control } else { 0 };
        let cr4_mask =
            USER_CR4 | has(seven_b, 0, cr4::FSGSBASE) | has(seven_c, 3, cr4::PKE) | has(one_c, 26, cr4::OSXSAVE);
        let tlb = ShadowTlb::new(Arc::from(vcpu.kick_handle()));
        let space = SharedTables::new(Arc::clone(&arena), tables);
        let cpu = Self {
            vcpu,
            arena,
            tlb,
            common,
            cr4_mask,
            umip: has(seven_c, 2, cr4::UMIP),
            regs: Regs::default(),
            system: SystemRegs::default(),
            live: false,
        };
        Ok((cpu, space))
    }

    /// A handle for whoever changes the tables.
    pub fn tlb(&self) -> ShadowTlb {
        self.tlb.clone()
    }

    /// Gets the vCPU out of the guest.
    pub(super) fn kick_handle(&self) -> Box<dyn Kick> {
        self.vcpu.kick_handle()
    }

    /// The KVM vCPU, for what isn't ordinary registers.
    pub(super) fn vcpu(&mut self) -> &mut KvmVcpu {
        &mut self.vcpu
    }

    /// The value of CR3 for a root, which the monitor is put into. `None` if no CPU of ours can walk it.
    pub fn enter_root(&self, root: ShadowRoot) -> Option<u64> {
        let entry = monitor::root_entry(&self.arena);
        let (at, cr3) = match root {
            ShadowRoot::Long { address, levels: 4 } => (self.arena.offset(address)?, address),
            ShadowRoot::Long { .. } => return None,
            ShadowRoot::Pae { pdptes } => {
                monitor::set_pdptes(&self.arena, pdptes);
                (HOME_ROOT, self.arena.gpa(HOME_ROOT).get())
            }
        };
        if self.arena.load(at + MONITOR_ENTRY) != entry {
            self.arena.store_entry(at + MONITOR_ENTRY, entry);
        }
        Some(cr3)
    }

    /// User code's general-purpose registers.
    ///
    /// # Errors
    /// The host failed.
    pub fn regs(&mut self) -> Result<Regs, BackendError> {
        if self.live { self.vcpu.regs() } else { Ok(self.regs) }
    }

    /// Replaces them.
    ///
    /// # Errors
    /// The host failed.
    pub fn set_regs(&mut self, regs: &Regs) -> Result<(), BackendError> {
        self.regs = *regs;
        if self.live { self.vcpu.set_regs(regs) } else { Ok(()) }
    }

    /// User code's segments; of the other registers only CR2 means anything.
    pub fn system(&self) -> &SystemRegs {
        &self.system
    }

    /// Whether an exit waits for its answer: the next step must be [`NativeCpu::go_on`].
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Runs user code with its present registers, and these segments, on the root at `cr3`, and with the guest's CR0 and
    /// CR4 as far as user code notices them.
    ///
    /// If there is a wish that translations be forgotten, that is done instead of running, and the answer is `None`: the
    /// root may have become another.
    ///
    /// # Errors
    /// The host failed.
    pub fn run(&mut self, guest: &SystemRegs, cr3: u64) -> Result<Option<NativeExit>, BackendError> {
        if !self.tlb.enter() {
            self.tlb.take_wish();
            self.forget(cr3)?;
            return Ok(None);
        }
        // Keys and 64-bit code are for guests in long mode; ours always is in it.
        let long = guest.efer & efer::LMA != 0;
        let without_keys = if long { 0 } else { cr4::PKE };
        let system = SystemRegs {
            cs: Segment {
                long: guest.cs.long && long,
                ..guest.cs
            },
            ds: guest.ds,
            es: guest.es,
            fs: guest.fs,
            gs: guest.gs,
            ss: guest.ss,
            cr2: guest.cr2,
            cr0: cr0::PE | cr0::PG | cr0::WP | cr0::ET | guest.cr0 & USER_CR0,
            cr4: cr4::PAE | self.umip | guest.cr4 & self.cr4_mask & !without_keys,
            ..self.context(cr3)
        };
        self.system = system;
        let result = self.enter(&system);
        self.tlb.leave();
        result.map(Some)
    }

    /// Answers the exit that waits.
    ///
    /// # Errors
    /// The host failed, or `entry` is no answer.
    pub fn go_on(&mut self, entry: VmEntry) -> Result<NativeExit, BackendError> {
        // Whatever was forgotten meanwhile: this only finishes an instruction, unless the kernel has nothing to finish.
        let entry = match entry {
            VmEntry::Value(value) => VmEntry::Complete(value),
            VmEntry::Resume => VmEntry::Complete(0),
            other => other,
        };
        let exit = self.vcpu.run(entry)?;
        self.classify(exit)
    }

    fn context(&self, cr3: u64) -> SystemRegs {
        SystemRegs {
            cr3,
            efer: efer::LME | efer::LMA | efer::NXE,
            ..self.common
        }
    }

    fn enter(&mut self, system: &SystemRegs) -> Result<NativeExit, BackendError> {
        self.vcpu.switch_to(&self.regs, system)?;
        let exit = self.vcpu.run(VmEntry::Resume)?;
        self.classify(exit)
    }

    fn classify(&mut self, mut exit: VmExit) -> Result<NativeExit, BackendError> {
        self.live = false;
        loop {
            let regs = self.vcpu.regs()?;
            let system = self.vcpu.system_regs()?;
            let at_cpl_0 = system.ss.dpl == 0;
            match exit {
                VmExit::Hlt if at_cpl_0 => return Ok(self.exception(&regs, &system)),
                // Between the exception and the halt.
                VmExit::Interrupted if at_cpl_0 => {
                    exit = self.vcpu.run(VmEntry::Resume)?;
                    if !matches!(exit, VmExit::Interrupted) {
                        // Who kicked is answered by the next run.
                        self.vcpu.kick_handle().kick();
                    }
                }
                exit => {
                    let rflags = self.user_flags(regs.rflags);
                    (self.regs, self.system) = (Regs { rflags, ..regs }, system);
                    self.live = exit.wants_value() || matches!(exit, VmExit::Pio { .. } | VmExit::Mmio { .. });
                    return Ok(NativeExit::Exit(exit));
                }
            }
        }
    }

    /// User code's flags, seen after it ran. Those that it can't change are what they were: not every KVM keeps them.
    fn user_flags(&self, seen: u64) -> u64 {
        let fixed = if self.regs.rflags & flags::IOPL == flags::IOPL {
            flags::IOPL
        } else {
            flags::IOPL | flags::IF
        };
        (seen & !fixed) | (self.regs.rflags & fixed)
    }

    /// Reads what the stub left: the frame that the CPU pushed.
    fn exception(&mut self, regs: &Regs, system: &SystemRegs) -> NativeExit {
        let stub = regs.rip.wrapping_sub(linear(STUBS)) / STUB_BYTES;
        let (Ok(vector), Some(frame)) = (u8::try_from(stub), frame(regs.rsp)) else {
            return broken("the monitor halted elsewhere than in a stub");
        };
        let has_code = matches!(vector, 8 | 10..=14 | 17 | 21);
        let code = has_code.then(|| self.arena.load(frame) as u32);
        let frame = if has_code { frame + 8 } else { frame };
        if frame + 40 != STACK_TOP {
            return broken("the monitor's stack holds no exception from user code");
        }
        let word = |index: u64| self.arena.load(frame + 8 * index);
        self.regs = Regs {
            rip: word(0),
            // Set by the CPU for a fault, cleared when the instruction is done.
            rflags: self.user_flags(word(2)) & !flags::RF,
            rsp: word(3),
            ..*regs
        };
        self.system = SystemRegs {
            ds: system.ds,
            es: system.es,
            fs: system.fs,
            gs: system.gs,
            cr2: system.cr2,
            ..self.system
        };
        NativeExit::Exception(Exception {
            error_code: code,
            cr2: (vector == 14).then(|| Gva::new(system.cr2)),
            ..Exception::new(vector)
        })
    }

    /// Has the CPU apply the edits made so far and forget all translations.
    fn forget(&mut self, cr3: u64) -> Result<(), BackendError> {
        let (cs, ss) = monitor::supervisor_segments();
        let system = SystemRegs {
            cs,
            ss,
            ds: ss,
            es: ss,
            fs: ss,
            gs: ss,
            cr0: cr0::PE | cr0::PG | cr0::WP | cr0::ET | cr0::NE | cr0::MP,
            cr4: cr4::PAE,
            ..self.context(cr3)
        };
        loop {
            let edits = self.arena.take_edited(MAX_EDITS);
            for (slot, &offset) in (0u64..).zip(&edits) {
                self.arena.put(EDITS + 16 * slot, linear(offset));
                self.arena.put(EDITS + 16 * slot + 8, self.arena.load(offset));
            }
            let regs = Regs {
                rip: linear(ROUTINE),
                rcx: edits.len() as u64,
                rsi: monitor::edits(),
                rsp: linear(STACK_TOP),
                rflags: flags::FIXED,
                ..Regs::default()
            };
            self.vcpu.switch_to(&regs, &system)?;
            let mut kicked = false;
            loop {
                match self.vcpu.run(VmEntry::Resume)? {
                    VmExit::Hlt => break,
                    VmExit::Interrupted => kicked = true,
                    other => {
                        return Err(BackendError::Host {
                            operation: "applying page-table edits in the VM",
                            source: std::io::Error::other(format!("unexpected exit {other:?}")),
                        });
                    }
                }
            }
            if kicked {
                self.vcpu.kick_handle().kick();
            }
            if edits.len() < MAX_EDITS {
                return Ok(());
            }
        }
    }
}

/// Offset in the arena of the frame at this stack pointer.
fn frame(rsp: u64) -> Option<u64> {
    let offset = rsp.checked_sub(linear(0))?;
    (offset.is_multiple_of(8) && (STACK..STACK_TOP).contains(&offset)).then_some(offset)
}

fn broken(name: &'static str) -> NativeExit {
    NativeExit::Exit(VmExit::Fatal(FatalExit::Unknown { reason: 0, name }))
}
