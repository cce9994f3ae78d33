//! The seam between the run loop and whatever executes the guest.

use crate::exit::{VmEntry, VmExit};
use crate::regs::{Regs, SystemRegs};
use std::fmt;
use std::sync::Arc;
use umbra_mmu::inspect::TableSource;
use umbra_mmu::shadow::ShadowRoot;

/// One virtual CPU. Owned by the thread that runs it.
pub trait VcpuBackend: Send {
    /// Runs the guest until something needs the VMM. `entry` answers the previous exit ([`VmEntry::Resume`] at first).
    ///
    /// # Errors
    /// The host failed or the caller broke the contract; what a guest can cause is a [`VmExit`].
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, BackendError>;

    /// General-purpose registers, RIP and RFLAGS.
    ///
    /// # Errors
    /// As [`VcpuBackend::run`].
    fn regs(&mut self) -> Result<Regs, BackendError>;

    /// Replaces the general-purpose registers, RIP and RFLAGS.
    ///
    /// # Errors
    /// As [`VcpuBackend::run`].
    fn set_regs(&mut self, regs: &Regs) -> Result<(), BackendError>;

    /// Segments, descriptor tables, control registers, EFER, APIC base.
    ///
    /// # Errors
    /// As [`VcpuBackend::run`].
    fn system_regs(&mut self) -> Result<SystemRegs, BackendError>;

    /// Replaces segments, descriptor tables, control registers, EFER, APIC base.
    ///
    /// # Errors
    /// As [`VcpuBackend::run`]; also a state that no CPU can be in.
    fn set_system_regs(&mut self, regs: &SystemRegs) -> Result<(), BackendError>;

    /// A sentence on what this backend can't do on this host, for the report on a guest that can't go on.
    fn limits(&self) -> Option<&'static str> {
        None
    }

    /// The tables that this vCPU runs on in the place of its guest's, to be shown beside those; `None` for a backend that
    /// has none of ours.
    fn shadow_tables(&self) -> Option<ShadowTables> {
        None
    }

    /// A handle with which other threads can get this vCPU out of the guest.
    fn kick_handle(&self) -> Box<dyn Kick>;
}

impl<B: VcpuBackend + ?Sized> VcpuBackend for Box<B> {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, BackendError> {
        (**self).run(entry)
    }

    fn regs(&mut self) -> Result<Regs, BackendError> {
        (**self).regs()
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<(), BackendError> {
        (**self).set_regs(regs)
    }

    fn system_regs(&mut self) -> Result<SystemRegs, BackendError> {
        (**self).system_regs()
    }

    fn set_system_regs(&mut self, regs: &SystemRegs) -> Result<(), BackendError> {
        (**self).set_system_regs(regs)
    }

    fn limits(&self) -> Option<&'static str> {
        (**self).limits()
    }

    fn shadow_tables(&self) -> Option<ShadowTables> {
        (**self).shadow_tables()
    }

    fn kick_handle(&self) -> Box<dyn Kick> {
        (**self).kick_handle()
    }
}

/// The tables that a vCPU runs on.
#[derive(Clone)]
pub struct ShadowTables {
    /// Who has them.
    pub source: Arc<dyn TableSource>,
    /// Where this vCPU's walk of them begins.
    pub root: ShadowRoot,
}

impl fmt::Debug for ShadowTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShadowTables")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// Gets a vCPU out of the guest, from any thread.
///
/// Race-free: a kick made before, during or after [`VcpuBackend::run`] is always seen, as [`VmExit::Interrupted`] of
/// the run in progress or of the next one (if an access is being handed out in pieces: of the run after the last
/// piece). Several kicks may be seen as one, and one may be seen twice.
pub trait Kick: Send + Sync {
    /// Requests an exit. Never blocks.
    fn kick(&self);
}

/// The host failed, or a contract was broken. Never caused by a guest.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A system call or ioctl failed.
    #[error("{operation} failed: {source}")]
    Host {
        /// What was being done, e.g. `KVM_RUN`.
        operation: &'static str,
        /// The host's reason.
        source: std::io::Error,
    },
    /// The entry does not answer the last exit.
    #[error("entry {entry:?} does not answer the last exit ({expected} expected)")]
    WrongEntry {
        /// What was passed.
        entry: VmEntry,
        /// What would have been right.
        expected: &'static str,
    },
    /// A scripted backend has nothing more to say.
    #[error("the script ended")]
    ScriptEnded,
}
