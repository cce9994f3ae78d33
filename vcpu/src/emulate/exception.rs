//! Exceptions as values, with their vectors (SDM vol. 3A section 6.3).

use umbra_memslots::Gva;

/// An exception that an instruction raised, or an event to be delivered through the IDT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Vector, 0..=31 for exceptions of the CPU.
    pub vector: u8,
    /// Error code, for the vectors that have one. Real mode does not push it.
    pub error_code: Option<u32>,
    /// The faulting linear address, for #PF only.
    pub cr2: Option<Gva>,
    /// For #DB only: its causes, bits of [`debug_cause`]. None for `int1`.
    pub debug: u64,
}

/// Divide error.
pub const DE: u8 = 0;
/// Debug.
pub const DB: u8 = 1;
/// Non-maskable interrupt.
pub const NMI: u8 = 2;
/// Breakpoint.
pub const BP: u8 = 3;
/// Overflow (`into`).
pub const OF: u8 = 4;
/// Bound range exceeded.
pub const BR: u8 = 5;
/// Invalid opcode.
pub const UD: u8 = 6;
/// Device not available.
pub const NM: u8 = 7;
/// Double fault.
pub const DF: u8 = 8;
/// Invalid TSS.
pub const TS: u8 = 10;
/// Segment not present.
pub const NP: u8 = 11;
/// Stack-segment fault.
pub const SS: u8 = 12;
/// General protection.
pub const GP: u8 = 13;
/// Page fault.
pub const PF: u8 = 14;
/// x87 error.
pub const MF: u8 = 16;
/// Alignment check.
pub const AC: u8 = 17;
/// Machine check.
pub const MC: u8 = 18;
/// SIMD floating-point error.
pub const XM: u8 = 19;

impl Exception {
    /// An exception without error code.
    pub const fn new(vector: u8) -> Self {
        Self {
            vector,
            error_code: None,
            cr2: None,
            debug: 0,
        }
    }

    /// An exception with error code.
    pub const fn with_code(vector: u8, code: u32) -> Self {
        Self {
            error_code: Some(code),
            ..Self::new(vector)
        }
    }

    /// #GP(`code`); most are #GP(0), the others carry a selector.
    pub const fn gp(code: u32) -> Self {
        Self::with_code(GP, code)
    }

    /// A page fault.
    pub const fn page_fault(code: u32, address: Gva) -> Self {
        Self {
            cr2: Some(address),
            ..Self::with_code(PF, code)
        }
    }

    /// #DB with its causes.
    pub const fn debug(causes: u64) -> Self {
        Self {
            debug: causes,
            ..Self::new(DB)
        }
    }

    /// Whether the instruction is begun anew afterwards, so that RFLAGS.RF is set in what is saved of it (SDM vol. 3B
    /// section 18.3.1.1). An instruction breakpoint's #DB is reported like a trap there, so that it is met again unless
    /// the handler sets RF.
    pub const fn is_fault(&self) -> bool {
        match self.vector {
            DB => self.debug & debug_cause::REGISTER_ACCESS != 0,
            NMI | BP | OF | DF | MC => false,
            vector => vector < 32,
        }
    }

    /// Invalid opcode.
    pub const UD: Self = Self::new(UD);
}

/// Bits of a page fault's error code (SDM vol. 3A section 4.7).
pub mod page_fault_code {
    /// The page was present: a protection violation.
    pub const PRESENT: u32 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// The access was made at CPL 3.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set.
    pub const RESERVED: u32 = 1 << 3;
    /// Instruction fetch.
    pub const FETCH: u32 = 1 << 4;
    /// Protection key.
    pub const KEY: u32 = 1 << 5;
}

/// Causes of #DB, as DR6 shows them (SDM vol. 3B section 18.2.3). Bits 0 to 3: breakpoints 0 to 3.
pub mod debug_cause {
    /// All breakpoints.
    pub const BREAKPOINTS: u64 = 15;
    /// BD: access to a debug register while DR7.GD was set.
    pub const REGISTER_ACCESS: u64 = 1 << 13;
    /// BS: single step.
    pub const SINGLE_STEP: u64 = 1 << 14;
    /// BT: switch to a task whose T bit is set.
    pub const TASK_SWITCH: u64 = 1 << 15;
}
