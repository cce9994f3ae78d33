//! [`Access`]: what an instruction wants, and the one place that says whether it may (SDM vol. 3A, 4.6).

use super::state::PagingState;
use crate::access_mask::AccessMask;

/// What is done to the memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AccessKind {
    /// Data read.
    Read,
    /// Data write (a read-modify-write is one from the beginning).
    Write,
    /// Instruction fetch.
    Fetch,
}

/// On whose behalf.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Privilege {
    /// CPL 3: a user-mode access.
    User,
    /// CPL below 3: an explicit supervisor-mode access.
    Supervisor,
    /// By the CPU itself to a system structure (GDT, IDT, LDT, TSS), at any CPL: EFLAGS.AC doesn't suspend SMAP for it.
    Implicit,
}

/// One access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Access {
    /// What.
    pub kind: AccessKind,
    /// For whom.
    pub privilege: Privilege,
}

impl Access {
    /// All kinds for everybody.
    pub const ALL: [Self; 9] = {
        use AccessKind::{Fetch, Read, Write};
        use Privilege::{Implicit, Supervisor, User};
        [
            Self::new(Read, User),
            Self::new(Write, User),
            Self::new(Fetch, User),
            Self::new(Read, Supervisor),
            Self::new(Write, Supervisor),
            Self::new(Fetch, Supervisor),
            Self::new(Read, Implicit),
            Self::new(Write, Implicit),
            Self::new(Fetch, Implicit),
        ]
    };

    /// An access.
    #[must_use]
    pub const fn new(kind: AccessKind, privilege: Privilege) -> Self {
        Self { kind, privilege }
    }

    /// Whether it is a user-mode access, as the U bit of an error code says.
    #[inline]
    #[must_use]
    pub const fn is_user(self) -> bool {
        matches!(self.privilege, Privilege::User)
    }

    /// Whether it writes.
    #[inline]
    #[must_use]
    pub const fn is_write(self) -> bool {
        matches!(self.kind, AccessKind::Write)
    }

    /// Whether it fetches an instruction.
    #[inline]
    #[must_use]
    pub const fn is_fetch(self) -> bool {
        matches!(self.kind, AccessKind::Fetch)
    }
}

/// The permissions that the entries of a translation have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Permissions {
    /// W: R/W is set in all entries. U: U/S is. X: NX is set in none.
    pub mask: AccessMask,
    /// The protection key of the entry that maps the page; 0 where there are none.
    pub key: u8,
}

/// The answer of the permission table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Verdict {
    /// Whether the access may happen.
    pub allowed: bool,
    /// Whether the protection key forbids it (then it isn't allowed, and the error code says PK).
    pub key_denied: bool,
}

impl Permissions {
    /// Whether `access` may happen to a page with these permissions.
    #[inline]
    #[must_use]
    pub const fn check(self, state: &PagingState, access: Access) -> Verdict {
        let user_page = self.mask.contains(AccessMask::USER);
        let writable = self.mask.contains(AccessMask::WRITE);
        let executable = self.mask.contains(AccessMask::EXEC);
        let rights = match (access.privilege, access.kind) {
            (Privilege::User, AccessKind::Read) => user_page,
            (Privilege::User, AccessKind::Write) => user_page && writable,
            (Privilege::User, AccessKind::Fetch) => user_page && executable,
            (_, AccessKind::Fetch) => executable && !(user_page && state.smep),
            (privilege, kind) => {
                let explicit = matches!(privilege, Privilege::Supervisor);
                let shut_out = user_page && state.smap && !(explicit && state.ac);
                let read_only = matches!(kind, AccessKind::Write) && state.wp && !writable;
                !shut_out && !read_only
            }
        };
        let key_denied = user_page && state.key_denies(self.key, access);
        Verdict {
            allowed: rights && !key_denied,
            key_denied,
        }
    }
}
