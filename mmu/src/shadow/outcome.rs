//! [`FaultOutcome`]: what is to happen after a fault on shadow tables (KVM's `RET_PF_*`).

use crate::access_mask::AccessMask;
use crate::direct::MmioSource;
use crate::x86::{Access, AccessKind, PageFault, PageFaultCode, Privilege};
use umbra_memslots::{Gpa, Gva, SlotId};

/// A fault that the walker of the shadow tables reported.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ShadowFault {
    /// The address (CR2).
    pub gva: Gva,
    /// What was tried.
    pub access: Access,
    /// The walk found an entry at each level, and an access that it forbids (or a reserved bit).
    pub present: bool,
    /// The walk met a reserved bit.
    pub reserved: bool,
}

impl ShadowFault {
    /// From CR2 and the error code. That a supervisor-mode access was implicit, the code doesn't say: who knows (it
    /// happened at CPL 3) corrects [`ShadowFault::access`].
    #[must_use]
    pub const fn from_code(gva: Gva, code: PageFaultCode) -> Self {
        let kind = if code.has(PageFaultCode::FETCH) {
            AccessKind::Fetch
        } else if code.has(PageFaultCode::WRITE) {
            AccessKind::Write
        } else {
            AccessKind::Read
        };
        let privilege = if code.has(PageFaultCode::USER) {
            Privilege::User
        } else {
            Privilege::Supervisor
        };
        Self {
            gva,
            access: Access::new(kind, privilege),
            present: code.has(PageFaultCode::PRESENT),
            reserved: code.has(PageFaultCode::RESERVED),
        }
    }

    /// The error code, without RSVD: with what the walk of the guest's tables begins.
    pub(super) fn code(&self) -> PageFaultCode {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        PageFaultCode::new(
            bit(self.present, PageFaultCode::PRESENT)
                | bit(self.access.is_write(), PageFaultCode::WRITE)
                | bit(self.access.is_user(), PageFaultCode::USER)
                | bit(self.access.is_fetch(), PageFaultCode::FETCH),
        )
    }
}

/// An access to be emulated as MMIO.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MmioAccess {
    /// Its address.
    pub gpa: Gpa,
    /// What the guest's tables allow there; X is not known where the MMIO SPTE was the source.
    pub access: AccessMask,
    /// How it came to be known as MMIO.
    pub source: MmioSource,
}

/// What is to happen after a fault.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FaultOutcome {
    /// Run the instruction again: something changed meanwhile. If the root became obsolete, there is a new one.
    Retry,
    /// Run the instruction again: the page is mapped now.
    Fixed,
    /// Run the instruction again: the page was mapped already.
    Spurious,
    /// Emulate the access on the bus.
    Emulate(MmioAccess),
    /// A write to a read-only slot: emulate it on the bus. Never cached.
    ReadOnlyWrite(Gpa, SlotId),
    /// A write to a guest table that has a shadow: emulate it on memory, then tell
    /// [`ShadowMmu::guest_wrote`](super::ShadowMmu::guest_wrote).
    WriteTracked(Gpa),
    /// The guest gets this fault.
    Inject(PageFault),
    /// The guest gets #GP(0).
    NonCanonical(Gva),
}
