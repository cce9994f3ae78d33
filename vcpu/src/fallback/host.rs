//! [`EmulationHost`]: what the fallback needs of a backend besides ordinary registers.

use super::Parts;
use crate::backend::{BackendError, VcpuBackend};
use crate::emulate::{CpuState, Exception, Request};
use umbra_memslots::Gpa;

/// A backend that lets the state of its vCPU be read and written in every detail.
pub trait EmulationHost: VcpuBackend {
    /// Reads the named parts of the state into `state`, whose other parts stay.
    ///
    /// # Errors
    /// The host failed.
    fn load_parts(&mut self, state: &mut CpuState, parts: Parts) -> Result<(), BackendError>;

    /// Writes those of the named parts that `after` has different from `before`.
    ///
    /// # Errors
    /// The host failed.
    fn store_parts(&mut self, before: &CpuState, after: &CpuState, parts: Parts) -> Result<(), BackendError>;

    /// An MSR; `None` if the guest is to get #GP for it.
    ///
    /// # Errors
    /// The host failed.
    fn read_msr(&mut self, index: u32) -> Result<Option<u64>, BackendError>;

    /// Writes an MSR; `false` if the guest is to get #GP for it.
    ///
    /// # Errors
    /// The host failed.
    fn write_msr(&mut self, index: u32, value: u64) -> Result<bool, BackendError>;

    /// What `cpuid` says: EAX, EBX, ECX, EDX; zero for a leaf that isn't there.
    ///
    /// # Errors
    /// The host failed.
    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> Result<[u32; 4], BackendError>;

    /// Whether interrupts are held off for the next instruction.
    ///
    /// # Errors
    /// The host failed.
    fn interrupt_shadow(&mut self) -> Result<bool, BackendError>;

    /// Whether interrupts are held off for one instruction from now on. Also forgets an exception that the backend had
    /// in store for the instruction it could not execute.
    ///
    /// # Errors
    /// The host failed.
    fn set_interrupt_shadow(&mut self, shadow: bool) -> Result<(), BackendError>;

    /// Makes the vCPU forget every translation.
    ///
    /// # Errors
    /// The host failed.
    fn flush_translations(&mut self) -> Result<(), BackendError>;

    /// The PDPTE registers of PAE paging, if the backend keeps them. Otherwise they are taken to be what CR3 leads to.
    fn pdptes(&mut self) -> Option<[u64; 4]> {
        None
    }

    /// The PDPTE registers are these, whatever memory holds by now. Called after system registers were written.
    fn set_pdptes(&mut self, _pdptes: [u64; 4]) {}

    /// Whether a `syscall` that the backend executes may come to the entry point of the guest's kernel with the rights of
    /// user code. The fallback then mends it as soon as it sees it.
    fn leaves_syscalls_half_done(&self) -> bool {
        false
    }

    /// Whether the core may execute more than the one instruction: nothing is about to be delivered to the guest.
    ///
    /// # Errors
    /// The host failed.
    fn may_stay_in_software(&mut self) -> Result<bool, BackendError> {
        Ok(true)
    }

    /// Whether the backend emulates the guest's kernel mode, and is slower at it than the core.
    fn emulates_kernel_mode(&self) -> bool {
        false
    }

    /// From now on, runs come out as [`crate::exit::VmExit::Debug`] after one instruction, whatever else they come out for
    /// before; or not any more. Asked only of a backend that emulates kernel mode.
    ///
    /// # Errors
    /// The host failed.
    fn single_step(&mut self, _on: bool) -> Result<(), BackendError> {
        Ok(())
    }

    /// Whether an interrupt may wait in the backend that it would deliver now. Rather too often yes than not at all.
    ///
    /// # Errors
    /// The host failed.
    fn interrupt_waits(&mut self) -> Result<bool, BackendError> {
        Ok(true)
    }

    /// Whether the backend itself has the device for this request of a guest in this state, so that nobody outside can
    /// answer it.
    fn has_device(&self, _request: &Request, _state: &CpuState) -> bool {
        false
    }

    /// Whether the backend has derived something from the guest's page tables and doesn't notice what the core writes to
    /// them: then it is told by [`EmulationHost::forget_tables`].
    fn derives_from_tables(&self) -> bool {
        false
    }

    /// The core may have written to page tables: what was derived from them is void, also for other vCPUs.
    ///
    /// # Errors
    /// The host failed.
    fn forget_tables(&mut self) -> Result<(), BackendError> {
        self.flush_translations()
    }

    /// Guest memory was written on behalf of an instruction: `bytes` bytes at `gpa`, not across a page. For backends that
    /// have derived something from it.
    fn wrote_memory(&mut self, _gpa: Gpa, _bytes: usize) {}

    /// The core doesn't know the instruction either. What now?
    ///
    /// # Errors
    /// The host failed.
    fn not_known(&mut self) -> Result<NotKnown, BackendError> {
        Ok(NotKnown::GiveUp)
    }
}

/// What to do about an instruction that nobody can execute in software.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotKnown {
    /// The guest can't go on.
    GiveUp,
    /// It raised this exception when the hardware tried it.
    Deliver(Exception),
    /// The backend has removed what kept the hardware from executing it.
    RunAgain,
}
