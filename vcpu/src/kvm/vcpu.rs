//! One KVM vCPU as a [`VcpuBackend`].

use super::caps::KvmKind;
use super::emulation::EmulationSide;
use super::exits::{self, Pending};
use super::external::External;
use super::kick::{self, KickState, KvmKick};
use super::memory::VmMemory;
use super::registers::{regs_from_kvm, regs_to_kvm, system_regs_from_kvm, system_regs_to_kvm};
use super::run_page::RunPage;
use crate::backend::{BackendError, Kick, VcpuBackend};
use crate::exit::{VmEntry, VmExit};
use crate::regs::{Regs, SystemRegs};
use kvm_bindings::{KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS};
use kvm_ioctls::VcpuFd;
use std::io;
use std::sync::Arc;
use umbra_devices::IntrSource;
use umbra_memslots::{Gpa, Gva};
use vmm_sys_util::errno;

const SYNC_REGS: u64 = KVM_SYNC_X86_REGS as u64;
const SYNC_SREGS: u64 = KVM_SYNC_X86_SREGS as u64;

/// A vCPU of a [`super::KvmVm`].
///
/// # Registers through shared memory
/// With `KVM_CAP_SYNC_REGS` the kernel can copy registers into the run page at each exit, which is cheaper than an
/// ioctl but not free, and most exits (a device access) need no register at all. So the copy follows demand: an exit
/// whose registers were asked for makes the next exit bring them along, an exit whose registers nobody looked at ends
/// that. A debugger or an instruction emulator that looks at each exit makes no ioctl but `KVM_RUN`.
pub struct KvmVcpu {
    page: RunPage,
    pending: Pending,
    /// An exit that waits until the writes before it are delivered.
    held: Option<(VmExit, Pending)>,
    kick: Arc<KickState>,
    /// Kernel id of the thread that kicks are sent to, 0 before the first run.
    bound: i32,
    sync: Sync,
    id: u32,
    /// Where interrupts come from that are not the kernel's.
    external: Option<External>,
    /// For the fallback to the instruction core.
    pub(super) emulation: EmulationSide,
    /// Keeps what the guest can reach alive. Declared after `page`: dropped after the vCPU.
    memory: Arc<VmMemory>,
}

/// The state of the demand-driven register copy; sets are `KVM_SYNC_X86_*`.
#[derive(Default)]
struct Sync {
    /// What the kernel can do.
    supported: u64,
    /// What the page holds since the last exit.
    present: u64,
    /// What was asked for since the last exit.
    wanted: u64,
}

impl KvmVcpu {
    pub(super) fn new(page: RunPage, memory: Arc<VmMemory>, id: u32, sync_supported: u64) -> Self {
        let sync = Sync {
            supported: sync_supported & (SYNC_REGS | SYNC_SREGS),
            ..Sync::default()
        };
        Self {
            page,
            pending: Pending::Nothing,
            held: None,
            kick: Arc::default(),
            bound: 0,
            sync,
            id,
            external: None,
            emulation: EmulationSide::default(),
            memory,
        }
    }

    /// The number it was created with, which is its local APIC id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// For state that has its own ioctls.
    pub(super) fn fd(&self) -> &VcpuFd {
        self.page.fd()
    }

    /// What it shares with the VM.
    pub(super) fn memory(&self) -> &VmMemory {
        &self.memory
    }

    /// Has the kernel take over now what registers wait in the page for the next run.
    ///
    /// # Errors
    /// The host failed.
    pub(super) fn write_synced_registers(&mut self) -> Result<(), BackendError> {
        if self.sync.present & SYNC_REGS == 0 {
            return Ok(());
        }
        let regs = self.page.synced_regs();
        self.page.set_dirty_regs(0);
        self.page.fd().set_regs(&regs).map_err(host("KVM_SET_REGS"))
    }

    /// Registers were changed by ioctl: copies from before are void.
    pub(super) fn forget_synced_registers(&mut self) {
        self.sync.present &= !SYNC_SREGS;
    }

    /// Replaces all registers for the next entry, through shared memory if the last exit brought them: for who runs
    /// another context at each entry. A state that no CPU can be in is refused by that run.
    ///
    /// # Errors
    /// The host failed.
    pub(crate) fn switch_to(&mut self, regs: &Regs, system: &SystemRegs) -> Result<(), BackendError> {
        self.sync.wanted |= (SYNC_REGS | SYNC_SREGS) & self.sync.supported;
        if self.sync.present & (SYNC_REGS | SYNC_SREGS) != SYNC_REGS | SYNC_SREGS {
            self.set_system_regs(system)?;
            return self.set_regs(regs);
        }
        let sregs = system_regs_to_kvm(system, &self.page.synced_sregs());
        self.page.set_synced_regs(regs_to_kvm(regs));
        self.page.set_synced_sregs(sregs);
        self.page.set_dirty_regs(SYNC_REGS | SYNC_SREGS);
        Ok(())
    }

    /// Takes interrupts from 8259s of ours: with [`super::Irqchip::Split`], for vCPU number 0. An exit when the vCPU can take
    /// one ([`VmExit::IrqWindowOpen`]) is not seen outside any more.
    pub fn set_external_interrupts(&mut self, source: Arc<dyn IntrSource>) {
        let kick = KvmKick(Arc::clone(&self.kick));
        source.set_waker(Box::new(move || kick.kick()));
        self.external = Some(External::new(source));
    }

    /// Whether an interrupt of 8259s of ours waits.
    pub(super) fn external_waits(&self) -> bool {
        self.external.as_ref().is_some_and(External::waits)
    }

    /// Takes note of a kick without entering the guest. Says whether there was one.
    pub(crate) fn take_kick(&mut self) -> bool {
        let requested = self.kick.is_requested();
        if requested {
            self.kick.acknowledge();
        }
        requested
    }

    /// Where the guest's page tables, as KVM walks them, put a linear address; `None` if they do not map it.
    ///
    /// # Errors
    /// `KVM_TRANSLATE` failed.
    pub fn translate(&mut self, gva: Gva) -> Result<Option<Gpa>, BackendError> {
        let translation = self.page.fd().translate_gva(gva.get()).map_err(host("KVM_TRANSLATE"))?;
        Ok((translation.valid != 0).then(|| Gpa::new(translation.physical_address)))
    }

    /// The x87 control word and MXCSR: bytes 0 and 24 of the FXSAVE area (SDM vol. 1 section 10.5.1).
    #[cfg(test)]
    pub(super) fn fpu(&self) -> Result<(u16, u32), BackendError> {
        let area = self.page.fd().get_xsave().map_err(host("KVM_GET_XSAVE"))?.region;
        Ok(((area[0] & 0xffff) as u16, area[6]))
    }

    /// Gives the last exit its answer. Returns the next piece of the same transfer if there is one.
    fn answer(&mut self, entry: VmEntry) -> Result<Option<VmExit>, BackendError> {
        let wrong = |expected| Err(BackendError::WrongEntry { entry, expected });
        match (entry, self.pending.wants_value()) {
            (VmEntry::Value(value), true) | (VmEntry::Complete(value), _) => self.pending.answer(&mut self.page, value),
            (VmEntry::Resume, false) => self.pending.answer(&mut self.page, 0),
            (VmEntry::Fault, _) if self.pending.may_fault() => self.page.answer_msr(0, true),
            (_, true) => return wrong("Value or Complete"),
            (_, false) => return wrong("Resume or Complete"),
        }
        Ok(self.pending.next_exit(&self.page))
    }

    /// The next of the writes that the kernel kept back, or `exit` when there is none. Has the turn, and ends it then.
    fn after_kept_writes(&mut self, exit: VmExit, pending: Pending) -> VmExit {
        while let Some(write) = self.page.take_kept_write() {
            if let Some((kept, kept_pending)) = exits::kept_write(&self.page, write) {
                self.held = Some((exit, pending));
                self.pending = kept_pending;
                return kept;
            }
        }
        self.memory.turns().give_up(self.id);
        self.pending = pending;
        exit
    }

    /// Enters the guest. `finish_only` completes the last instruction and comes back.
    fn enter(&mut self, finish_only: bool) -> Result<VmExit, BackendError> {
        self.pending = Pending::Nothing;
        kick::bind(&self.kick, &mut self.bound).map_err(|source| BackendError::Host {
            operation: "kick set-up",
            source,
        })?;
        if self.sync.supported != 0 {
            self.page.set_valid_regs(self.sync.wanted);
            self.sync.present = self.sync.wanted;
            self.sync.wanted = 0;
        }
        loop {
            if let Some(external) = self.external.as_mut().filter(|_| !finish_only) {
                external.offer(&mut self.page).map_err(|source| BackendError::Host {
                    operation: "KVM_INTERRUPT",
                    source,
                })?;
            }
            match self.page.run(&self.kick, finish_only) {
                Ok(()) => {
                    if let Some((exit, pending)) = exits::decode(&mut self.page) {
                        if exit == VmExit::IrqWindowOpen && self.external.is_some() {
                            continue;
                        }
                        self.pending = pending;
                        return Ok(exit);
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {
                        self.kick.acknowledge();
                        // It may not have run at all, see `set_regs`.
                        self.sync.present = 0;
                        return Ok(VmExit::Interrupted);
                    }
                    // A vCPU that waited for its start-up interrupt got it: now it can run.
                    Some(libc::EAGAIN) => {}
                    Some(libc::EFAULT | libc::EHWPOISON) => return Ok(exits::memory_fault(&self.page, &error)),
                    _ => {
                        return Err(BackendError::Host {
                            operation: "KVM_RUN",
                            source: error,
                        });
                    }
                },
            }
        }
    }
}

impl VcpuBackend for KvmVcpu {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, BackendError> {
        if let Some(piece) = self.answer(entry)? {
            return Ok(piece);
        }
        if let Some((exit, pending)) = self.held.take() {
            return Ok(self.after_kept_writes(exit, pending));
        }
        let exit = self.enter(matches!(entry, VmEntry::Complete(_)))?;
        if self.memory.turns().are_in_use() {
            self.memory.turns().take(self.id);
            return Ok(self.after_kept_writes(exit, self.pending));
        }
        Ok(exit)
    }

    fn regs(&mut self) -> Result<Regs, BackendError> {
        self.sync.wanted |= SYNC_REGS & self.sync.supported;
        if self.sync.present & SYNC_REGS != 0 {
            return Ok(regs_from_kvm(&self.page.synced_regs()));
        }
        self.page
            .fd()
            .get_regs()
            .map(|regs| regs_from_kvm(&regs))
            .map_err(host("KVM_GET_REGS"))
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<(), BackendError> {
        self.external.as_mut().into_iter().for_each(External::registers_change);
        let regs = regs_to_kvm(regs);
        // Only if the page holds this exit's registers: a vCPU that never ran may yet be started by another one, and
        // registers that wait in the page would then overwrite where that start put it.
        if self.sync.present & SYNC_REGS != 0 {
            self.page.set_synced_regs(regs);
            self.page.set_dirty_regs(SYNC_REGS);
            return Ok(());
        }
        self.page.fd().set_regs(&regs).map_err(host("KVM_SET_REGS"))
    }

    fn system_regs(&mut self) -> Result<SystemRegs, BackendError> {
        self.sync.wanted |= SYNC_SREGS & self.sync.supported;
        if self.sync.present & SYNC_SREGS != 0 {
            return Ok(system_regs_from_kvm(&self.page.synced_sregs()));
        }
        self.page
            .fd()
            .get_sregs()
            .map(|sregs| system_regs_from_kvm(&sregs))
            .map_err(host("KVM_GET_SREGS"))
    }

    fn set_system_regs(&mut self, regs: &SystemRegs) -> Result<(), BackendError> {
        self.external.as_mut().into_iter().for_each(External::registers_change);
        // By ioctl, always: a state that no CPU can be in is refused here and not by the next run.
        let present = self.page.fd().get_sregs().map_err(host("KVM_GET_SREGS"))?;
        let sregs = system_regs_to_kvm(regs, &present);
        self.page.fd().set_sregs(&sregs).map_err(host("KVM_SET_SREGS"))?;
        self.sync.present &= !SYNC_SREGS;
        Ok(())
    }

    fn limits(&self) -> Option<&'static str> {
        match KvmKind::detect() {
            KvmKind::Pagetable => Some(
                "this host's KVM has no hardware virtualisation under it: real mode and everything at privilege level \
                 0 is emulated by the host's kernel, which does not know every instruction. A host with VT-x or AMD-V \
                 runs this guest; the software CPU (`--backend soft`) may",
            ),
            KvmKind::Vmx | KvmKind::Svm | KvmKind::Unknown => None,
        }
    }

    fn kick_handle(&self) -> Box<dyn Kick> {
        Box::new(KvmKick(Arc::clone(&self.kick)))
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        // A vCPU that ends in the middle of a turn must not keep the others waiting.
        self.memory.turns().give_up(self.id);
    }
}

/// Turns an ioctl's errno into our error.
pub(super) fn host(operation: &'static str) -> impl Fn(errno::Error) -> BackendError {
    move |error| BackendError::Host {
        operation,
        source: io::Error::from_raw_os_error(error.errno()),
    }
}
