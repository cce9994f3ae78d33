//! [`PageFault`]: what to inject as vector 14, and why.

use super::access::Access;
use super::state::PagingState;
use core::fmt;
use umbra_memslots::{Gva, MemoryFault};

/// The error code of a page fault (SDM vol. 3A, 4.7; KVM's `PFERR_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageFaultCode(u32);

impl PageFaultCode {
    /// Bit 0: the entries were present (protection violation or reserved bit).
    pub const PRESENT: u32 = 1;
    /// Bit 1: a write.
    pub const WRITE: u32 = 1 << 1;
    /// Bit 2: a user-mode access.
    pub const USER: u32 = 1 << 2;
    /// Bit 3: a reserved bit was set.
    pub const RESERVED: u32 = 1 << 3;
    /// Bit 4: an instruction fetch (only reported with NX or SMEP).
    pub const FETCH: u32 = 1 << 4;
    /// Bit 5: the protection key forbids it.
    pub const KEY: u32 = 1 << 5;

    /// Wraps raw bits.
    #[must_use]
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The raw bits.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Whether all bits of `mask` are set.
    #[must_use]
    pub const fn has(self, mask: u32) -> bool {
        self.0 & mask == mask
    }

    /// The bits that say what was tried, without those that say what went wrong.
    #[must_use]
    pub(crate) const fn of_access(state: &PagingState, access: Access) -> Self {
        let mut raw = 0;
        if access.is_write() {
            raw |= Self::WRITE;
        }
        if access.is_user() {
            raw |= Self::USER;
        }
        if access.is_fetch() && (state.nx || state.smep) {
            raw |= Self::FETCH;
        }
        Self(raw)
    }

    #[must_use]
    pub(crate) const fn with(self, bits: u32) -> Self {
        Self(self.0 | bits)
    }
}

impl fmt::Debug for PageFaultCode {
    /// `PageFaultCode(0xd P U RSVD)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageFaultCode({:#x}", self.0)?;
        let names = ["P", "W", "U", "RSVD", "I", "PK"];
        for (bit, name) in names.iter().enumerate() {
            if self.0 >> bit & 1 == 1 {
                write!(f, " {name}")?;
            }
        }
        f.write_str(")")
    }
}

/// Why a walk faulted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum FaultCause {
    /// An entry isn't present.
    #[error("not present")]
    NotPresent,
    /// An entry has a reserved bit set.
    #[error("a reserved bit is set")]
    Reserved,
    /// The permissions forbid it.
    #[error("not permitted")]
    Permission,
    /// A table lies where there is no memory. KVM injects this as "not present"; the error code is that.
    #[error("no table: {0}")]
    NoTable(MemoryFault),
}

/// A page fault that the guest has coming.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[error("page fault at {gva}, error code {:#x}, at level {level}: {cause}", .code.raw())]
pub struct PageFault {
    /// For CR2.
    pub gva: Gva,
    /// The error code.
    pub code: PageFaultCode,
    /// The level of the entry at which the walk ended: for a permission fault, of the one that maps the page.
    pub level: u8,
    /// Why.
    pub cause: FaultCause,
}
