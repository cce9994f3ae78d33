//! What a vCPU stops for ([`VmExit`]) and what it is told when it goes on ([`VmEntry`]): plain values, so that a test
//! can be a list of them and a backend can be anything.

use std::fmt;
use umbra_devices::{IoOp, IoSize};
use umbra_memslots::Gpa;

/// Why a vCPU came back from running the guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VmExit {
    /// An access to guest-physical memory that no slot backs, or a write to a read-only slot.
    /// A read is answered by [`VmEntry::Value`], a write by [`VmEntry::Resume`].
    ///
    /// A guest access that is wider than 8 bytes, crosses a page or is of an odd width in one of its pages arrives as
    /// several of these, in ascending order, and nothing else comes between.
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
        /// The instruction, as far as the backend could fetch it; empty if it could not.
        bytes: InsnBytes,
    },
    /// The backend refused to enter the guest or met a condition it has no answer for. The guest can't go on.
    Fatal(FatalExit),
}

/// Up to 15 instruction bytes (the architecture's limit, SDM vol. 2 section 2.3.11), held in place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct InsnBytes {
    length: u8,
    bytes: [u8; Self::MAX],
}

impl InsnBytes {
    /// The longest instruction.
    pub const MAX: usize = 15;

    /// The first 15 of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let mut held = Self::default();
        for (slot, byte) in held.bytes.iter_mut().zip(bytes) {
            *slot = *byte;
            held.length += 1;
        }
        held
    }

    /// The bytes, 0 to 15 of them.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl std::ops::Deref for InsnBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl fmt::Debug for InsnBytes {
    /// `0f b8 c1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.iter().enumerate() {
            let gap = if index == 0 { "" } else { " " };
            write!(f, "{gap}{byte:02x}")?;
        }
        Ok(())
    }
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
    /// Finish the instruction of the last exit with this value (ignored by a write) but do not run the guest further:
    /// the next exit is [`VmExit::Interrupted`], and then the registers are whole (an MMIO instruction is half done
    /// until re-entry). If the instruction has more pieces to transfer they come first; answer each the same way.
    Complete(u64),
}

impl VmEntry {
    /// The answer to an access: the value of a read, and anything for a write. `None` says that it faults.
    pub(crate) const fn answer(self) -> Option<u64> {
        match self {
            Self::Value(value) | Self::Complete(value) => Some(value),
            Self::Resume => Some(0),
            Self::Fault => None,
        }
    }
}

impl VmExit {
    /// Whether the exit wants a value: only then is [`VmEntry::Value`] an answer to it.
    pub const fn wants_value(&self) -> bool {
        matches!(
            self,
            Self::Mmio { op: IoOp::Read, .. } | Self::Pio { op: IoOp::Read, .. } | Self::ReadMsr { .. }
        )
    }

    /// Whether `entry` answers this exit; if not, says what would.
    ///
    /// # Errors
    /// The entry that was expected, in words.
    pub const fn accepts(&self, entry: VmEntry) -> Result<(), &'static str> {
        match (entry, self) {
            (VmEntry::Complete(_), _) => Ok(()),
            (VmEntry::Value(_), exit) if exit.wants_value() => Ok(()),
            (VmEntry::Fault, Self::ReadMsr { .. } | Self::WriteMsr { .. }) => Ok(()),
            (VmEntry::Resume, exit) if !exit.wants_value() => Ok(()),
            (_, Self::ReadMsr { .. }) => Err("Value, Complete or Fault"),
            (_, Self::WriteMsr { .. }) => Err("Resume, Complete or Fault"),
            (_, exit) if exit.wants_value() => Err("Value or Complete"),
            _ => Err("Resume or Complete"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insn_bytes_keeps_fifteen_at_most() {
        assert_eq!(InsnBytes::new(&[0x90; 20]).len(), 15);
        assert_eq!(format!("{:?}", InsnBytes::new(&[0x0f, 0x05])), "0f 05");
        assert!(InsnBytes::new(&[]).is_empty());
    }

    #[test]
    fn read_exit_accepts_only_a_value() {
        let read = VmExit::Pio {
            port: 0x60,
            size: IoSize::B1,
            op: IoOp::Read,
        };
        assert_eq!(read.accepts(VmEntry::Value(1)), Ok(()));
        assert_eq!(read.accepts(VmEntry::Complete(1)), Ok(()));
        assert_eq!(read.accepts(VmEntry::Resume), Err("Value or Complete"));
        assert_eq!(VmExit::Hlt.accepts(VmEntry::Value(0)), Err("Resume or Complete"));
        assert_eq!(VmExit::ReadMsr { index: 0x1b }.accepts(VmEntry::Fault), Ok(()));
    }
}
