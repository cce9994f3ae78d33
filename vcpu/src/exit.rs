//! What a vCPU stops for ([`VmExit`]) and what it is told when it goes on ([`VmEntry`]): plain values, so that a test
//! can be a list of them and a backend can be anything.

use umbra_devices::{IoOp, IoSize};
use umbra_memslots::Gpa;

/// Why a vCPU came back from running the guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VmExit {
    /// An access to guest-physical memory that no slot backs, or a write to a read-only slot.
    /// A read is answered by [`VmEntry::Value`], a write by [`VmEntry::Resume`].
    Mmio {
        /// First byte.
        gpa: Gpa,
        /// Width; the access never crosses a page.
        size: IoSize,
        /// Direction and value.
        op: IoOp,
    },
    /// An `in` or `out`, one element at a time (a `rep outsb` is many of these).
    /// A read is answered by [`VmEntry::Value`], a write by [`VmEntry::Resume`].
    Pio {
        /// Port number.
        port: u16,
        /// Width: 1, 2 or 4 bytes.
        size: IoSize,
        /// Direction and value.
        op: IoOp,
    },
    /// The guest executed `hlt` and nobody but us can wake it (no in-kernel interrupt controller).
    Hlt,
    /// Triple fault, or another state from which an x86 CPU only comes back by reset.
    Shutdown,
    /// The guest asked for power off, reset, or reported a crash through a paravirtual interface of the backend.
    SystemEvent(SystemEvent),
    /// A kick was seen: [`crate::backend::Kick::kick`] was called, or a signal arrived.
    Interrupted,
    /// The guest can take an interrupt now, as was asked for.
    IrqWindowOpen,
    /// A debug event (single step, breakpoint) that the debugger, not the guest, asked for.
    Debug {
        /// Linear address of the instruction.
        rip: u64,
        /// DR6 as the hardware would report it.
        dr6: u64,
        /// DR7 in force.
        dr7: u64,
    },
    /// `rdmsr` of a register that the backend passes up. Answered by [`VmEntry::Value`] or [`VmEntry::Fault`].
    ReadMsr {
        /// MSR number.
        index: u32,
    },
    /// `wrmsr` of a register that the backend passes up. Answered by [`VmEntry::Resume`] or [`VmEntry::Fault`].
    WriteMsr {
        /// MSR number.
        index: u32,
        /// Value the guest wrote.
        value: u64,
    },
    /// End of interrupt for an I/O APIC vector (split irqchip only).
    IoapicEoi {
        /// The vector.
        vector: u8,
    },
    /// The backend could not execute an instruction.
    EmulationFailure {
        /// Instruction bytes, if the backend could fetch them (1..=15); empty otherwise.
        bytes: Vec<u8>,
    },
    /// The backend refused to enter the guest or met a condition it has no answer for. The guest can't go on.
    Fatal(FatalExit),
}

/// Paravirtual machine-wide events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SystemEvent {
    /// Power off.
    PowerOff,
    /// Reset.
    Reset,
    /// The guest kernel reported that it crashed.
    Crash,
    /// An event this version doesn't know, by number.
    Other(u32),
}

/// The exits that end a guest and need explaining to a person.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FatalExit {
    /// The hardware refused the guest state (`KVM_EXIT_FAIL_ENTRY`).
    FailEntry {
        /// Hardware-specific reason.
        reason: u64,
        /// Host CPU it happened on.
        cpu: u32,
    },
    /// `KVM_EXIT_INTERNAL_ERROR` other than an emulation failure.
    Internal {
        /// The suberror number.
        suberror: u32,
        /// Suberror-specific words.
        data: Vec<u64>,
    },
    /// A memory access that the host could not satisfy (`KVM_EXIT_MEMORY_FAULT`, or -EFAULT/-EHWPOISON from run).
    MemoryFault {
        /// Guest-physical address, if known.
        gpa: Option<Gpa>,
        /// Explanation: errno text or flags.
        detail: String,
    },
    /// An exit reason this version doesn't know, by the backend's own number.
    Unknown {
        /// The number.
        reason: u32,
        /// Its name, if it has one.
        name: &'static str,
    },
}

/// The answer to the last exit: the argument of the next run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmEntry {
    /// Go on. The answer to every exit that needs no value.
    Resume,
    /// The value read by the MMIO, PIO or MSR access that caused the last exit.
    Value(u64),
    /// The MSR access of the last exit faults with #GP(0).
    Fault,
    /// Finish the instruction of the last exit with this value but do not run the guest further: the next exit is
    /// [`VmExit::Interrupted`], and then the registers are whole (an MMIO instruction is half done until re-entry).
    Complete(u64),
}
