//! [`GuestWalk`] and [`WalkFailure`]: what comes out of a walk.

use crate::x86::access::Permissions;
use crate::x86::{GuestPte, PageFault};
use umbra_memslots::{EntrySize, Gpa, Gva};

/// Entries that a walk can read: one for each level.
pub(super) const MAX_LEVELS: usize = 5;

/// One entry that a walk went through.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WalkEntry {
    /// Its level: 1 for a PTE.
    pub level: u8,
    /// Where it is.
    pub gpa: Gpa,
    /// What it held, with the accessed and dirty flags that the walk set when it went through it at this level.
    pub pte: GuestPte,
}

/// A translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestWalk {
    /// What was translated.
    pub gva: Gva,
    /// To what, to the byte.
    pub gpa: Gpa,
    /// log2 of the size of the page: 12, 21, 22 or 30; without paging 12.
    pub page_shift: u32,
    /// What the entries have in common, and the key.
    pub permissions: Permissions,
    pub(super) entries: [WalkEntry; MAX_LEVELS],
    pub(super) depth: usize,
    pub(super) entry_size: EntrySize,
}

impl GuestWalk {
    /// The entries in memory that led there, root first; the last one maps the page. Empty without paging. The PDPTEs
    /// of PAE paging are registers and aren't among them.
    #[must_use]
    pub fn entries(&self) -> &[WalkEntry] {
        &self.entries[..self.depth]
    }

    /// Size of each of them.
    #[must_use]
    pub fn entry_size(&self) -> EntrySize {
        self.entry_size
    }
}

/// Why there is no translation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum WalkFailure {
    /// The guest gets a page fault.
    #[error(transparent)]
    Fault(#[from] PageFault),
    /// The address isn't canonical: #GP(0), or #SS(0) through the stack segment; the CPU doesn't even walk. In modes
    /// with 32-bit linear addresses: an address that the caller should have cut to 32 bits.
    #[error("{0} is not canonical")]
    NonCanonical(Gva),
    /// Memory or slots were changing under the walk for too long. Let the guest run its instruction again.
    #[error("memory was changing all the time")]
    Retry,
}
