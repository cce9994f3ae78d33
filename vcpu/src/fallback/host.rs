//! [`EmulationHost`]: what the fallback needs of a backend besides ordinary registers.

use super::Parts;
use crate::backend::{BackendError, VcpuBackend};
use crate::emulate::{CpuState, Exception};
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
