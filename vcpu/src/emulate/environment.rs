//! What the core needs of the world: linear memory ([`Memory`]) and everything else outside the CPU ([`Platform`]).
//!
//! Both answer with values. An implementation may execute an access at once, or say [`Stop::Pending`]: the instruction
//! then leaves no trace, and whoever drives the core gets the answer from outside, remembers it, and steps again – this
//! time the access is answered from memory ("replay"). No half-executed instruction exists anywhere.

use super::exception::Exception;
use super::state::CpuState;
use crate::regs::SystemRegs;
use umbra_devices::{IoOp, IoSize};
use umbra_memslots::{Gpa, Gva};

/// Why an instruction did not complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It raised an exception, which was not delivered yet.
    Fault(Exception),
    /// The world outside must answer first.
    Pending(Request),
    /// The core does not know this instruction, or this form of it.
    Unsupported,
    /// A locked access lost against other CPUs too often; nothing happened, step again.
    Contended,
    /// The CPU waits for an interrupt before it begins the instruction; nothing happened, step again.
    Frozen,
    /// An exception arose while delivering a double fault: the CPU shuts down.
    TripleFault,
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Fault(exception)
    }
}

/// An access that somebody outside has to make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Memory that is not RAM. Never crosses a page.
    Mmio {
        /// First byte.
        gpa: Gpa,
        /// Width.
        size: IoSize,
        /// Direction and value.
        op: IoOp,
    },
    /// A port.
    Pio {
        /// Port number.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: IoSize,
        /// Direction and value.
        op: IoOp,
    },
    /// `rdmsr` of a register that the platform does not have.
    ReadMsr {
        /// MSR number.
        index: u32,
    },
    /// `wrmsr` of a register that the platform does not have.
    WriteMsr {
        /// MSR number.
        index: u32,
        /// Value.
        value: u64,
    },
}

/// What an access to memory is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessKind {
    /// Data is read.
    Read,
    /// Data is written, or read by an instruction that will write it.
    Write,
    /// Instruction bytes.
    Fetch,
}

/// An access to memory as the paging unit sees it (SDM vol. 3A section 4.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// What for.
    pub kind: AccessKind,
    /// Made with CPL 3 rights (false for descriptor tables and task state even at CPL 3).
    pub user: bool,
    /// Made by the CPU itself to a system structure: EFLAGS.AC does not let it through SMAP.
    pub implicit: bool,
    /// EFLAGS.AC is set: an explicit access with supervisor rights passes SMAP.
    pub alignment_flag: bool,
}

/// Linear memory. A method either does all it was asked or nothing, whatever pages its bytes lie in.
pub trait Memory {
    /// Reads `bytes.len()` bytes (1..=4096).
    ///
    /// # Errors
    /// A page fault, or an access to be made outside. With [`AccessKind::Write`] the access is checked as a write.
    fn read(&mut self, at: Gva, bytes: &mut [u8], access: Access) -> Result<(), Stop>;

    /// Writes `bytes` (1..=4096 of them).
    ///
    /// # Errors
    /// As [`Memory::read`].
    fn write(&mut self, at: Gva, bytes: &[u8], access: Access) -> Result<(), Stop>;

    /// Writes `words` (1..=512 of them), one behind the other.
    ///
    /// # Errors
    /// As [`Memory::read`].
    #[inline]
    fn write_words<const N: usize>(&mut self, at: Gva, words: [u64; N], access: Access) -> Result<(), Stop> {
        self.write(at, words.map(u64::to_le_bytes).as_flattened(), access)
    }

    /// Checks that `length` bytes could be accessed, without accessing them.
    ///
    /// # Errors
    /// A page fault.
    fn probe(&mut self, at: Gva, length: usize, access: Access) -> Result<(), Stop>;

    /// Atomically replaces `old` by `new` (1, 2, 4, 8 or 16 bytes of each). Says whether it did.
    ///
    /// # Errors
    /// As [`Memory::read`].
    fn compare_exchange(&mut self, at: Gva, old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop>;
}

/// What an instruction did to address translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Translation {
    /// `invlpg`, or `invpcid` of one address.
    InvalidateAddress(Gva),
    /// Everything, also global pages.
    InvalidateAll,
    /// CR0, CR3, CR4 or EFER was written; look at the state again. Entries that the architecture drops with it (a CR3
    /// load without bit 63, for example) are stale, also if the value is the same as before.
    ControlsChanged,
    /// CPL or EFLAGS.AC changed. Each [`Access`] says so itself; what is kept by privilege may have to be looked up anew.
    PrivilegeChanged,
}

/// The rest of the world: ports, MSRs, CPUID, time, the TLB.
pub trait Platform {
    /// `in`.
    ///
    /// # Errors
    /// An access to be made outside.
    fn port_in(&mut self, port: u16, size: IoSize) -> Result<u32, Stop>;

    /// `out`.
    ///
    /// # Errors
    /// An access to be made outside.
    fn port_out(&mut self, port: u16, size: IoSize, value: u32) -> Result<(), Stop>;

    /// Reads an MSR that [`CpuState`] does not hold.
    ///
    /// # Errors
    /// #GP, or an access to be made outside.
    fn read_msr(&mut self, index: u32) -> Result<u64, Stop>;

    /// Writes an MSR that [`CpuState`] does not hold.
    ///
    /// # Errors
    /// #GP, or an access to be made outside.
    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Stop>;

    /// `cpuid`: EAX, EBX, ECX, EDX. Bits that mirror control registers (OSXSAVE) are filled in by the core.
    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> [u32; 4];

    /// The time-stamp counter.
    fn tsc(&mut self) -> u64;

    /// `mfence`: accesses before it are seen by others before those behind it are made.
    fn fence(&mut self) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// `pause`: the guest waits for another CPU.
    fn pause(&mut self) {}

    /// CR8, if a local APIC keeps it; `None`: the core does.
    fn task_priority(&mut self) -> Option<u64> {
        None
    }

    /// CR8 becomes this, 0 to 15.
    fn set_task_priority(&mut self, _value: u64) {}

    /// An x87 instruction that waits is about to begin, and CR0.NE is clear: FERR# says whether an exception is pending.
    /// Whether the CPU goes on with a pending one, as IGNNE# decides. Without anybody at these pins it does.
    fn fpu_error(&mut self, _pending: bool) -> bool {
        true
    }

    /// `iret` has returned from a handler.
    fn handler_returned(&mut self) {}

    /// The four entries at CR3 for the PDPTE registers, when `sys`, with PAE paging, is about to take effect.
    ///
    /// # Errors
    /// #GP(0) if one of them has reserved bits (SDM vol. 3A section 4.4.1): nothing takes effect then.
    fn load_pdptes(&mut self, _sys: &SystemRegs) -> Result<[u64; 4], Stop> {
        Ok([0; 4])
    }

    /// Address translation changed.
    fn translation(&mut self, change: Translation, state: &CpuState);

    /// Physical address width in bits, 32..=52.
    fn physical_width(&self) -> u32;
}

/// A world in which nothing exists: every access is refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nowhere;

impl Memory for Nowhere {
    fn read(&mut self, _at: Gva, _bytes: &mut [u8], _access: Access) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }

    fn write(&mut self, _at: Gva, _bytes: &[u8], _access: Access) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }

    fn probe(&mut self, _at: Gva, _length: usize, _access: Access) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }

    fn compare_exchange(&mut self, _at: Gva, _old: &[u8], _new: &[u8], _access: Access) -> Result<bool, Stop> {
        Err(Stop::Unsupported)
    }
}

impl Platform for Nowhere {
    fn port_in(&mut self, _port: u16, _size: IoSize) -> Result<u32, Stop> {
        Err(Stop::Unsupported)
    }

    fn port_out(&mut self, _port: u16, _size: IoSize, _value: u32) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }

    fn read_msr(&mut self, _index: u32) -> Result<u64, Stop> {
        Err(Stop::Unsupported)
    }

    fn write_msr(&mut self, _index: u32, _value: u64) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }

    fn cpuid(&mut self, _leaf: u32, _subleaf: u32) -> [u32; 4] {
        [0; 4]
    }

    fn tsc(&mut self) -> u64 {
        0
    }

    fn translation(&mut self, _change: Translation, _state: &CpuState) {}

    fn physical_width(&self) -> u32 {
        36
    }
}
