//! [`Event`]: what happened in an MMU, as KVM's `kvmmmu` tracepoints say it. Addresses and frames of the host are not kept.

use umbra_memslots::{Gfn, Gpa, Gva};
use umbra_mmu::AccessMask;
use umbra_mmu::shadow::PageRole;

/// One event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// `kvm_page_fault` (of the group `kvm`): the CPU reported a fault.
    PageFault {
        /// CR2.
        address: Gva,
        /// The error code.
        code: u32,
    },
    /// A walk of the guest's tables begins.
    PagetableWalk {
        /// What is to be translated.
        address: Gva,
        /// The error code of the fault, without RSVD; or what kind of access the emulator wants to make.
        code: u32,
    },
    /// The walk read an entry.
    PagingElement {
        /// The entry.
        pte: u64,
        /// Its level.
        level: u8,
    },
    /// The walk sets an accessed flag.
    SetAccessedBit {
        /// Where the entry is.
        gpa: Gpa,
    },
    /// The walk sets a dirty flag.
    SetDirtyBit {
        /// Where the entry is.
        gpa: Gpa,
    },
    /// The walk ended in a fault for the guest.
    WalkerError {
        /// Its error code.
        code: u32,
    },
    /// A shadow page was asked for.
    GetPage {
        /// Which.
        page: Page,
        /// There was none yet.
        created: bool,
    },
    /// A shadow page catches up with the guest's table, or goes while it is behind.
    SyncPage(Page),
    /// A shadow page may be behind from now on.
    UnsyncPage(Page),
    /// A shadow page goes.
    PrepareZapPage {
        /// Which.
        page: Page,
        /// It was out of use already: a root that is let go by the last vCPU.
        invalid: bool,
    },
    /// A leaf is to be made.
    SpteRequested {
        /// For which frame.
        gfn: Gfn,
        /// The frame has memory.
        memory: bool,
        /// Of which level.
        level: u8,
    },
    /// A leaf was made.
    SetSpte {
        /// The first frame that it maps.
        gfn: Gfn,
        /// Its level.
        level: u8,
        /// All its bits but the address.
        flags: u64,
    },
    /// An MMIO SPTE was made.
    MarkMmioSpte {
        /// The frame without a memslot.
        gfn: Gfn,
        /// The low three bits of the SPTE: the access as far as it is kept there, and the present bit.
        access: AccessMask,
        /// The generation in the SPTE.
        generation: u32,
    },
    /// An MMIO SPTE was found by a fault and compared with the memslots' generation.
    CheckMmioSpte {
        /// The SPTE itself.
        spte: u64,
        /// The cut of the memslots' generation.
        kvm_generation: u32,
        /// The generation in the SPTE.
        spte_generation: u32,
        /// Whether they are equal.
        valid: bool,
    },
    /// A fault was answered from a valid MMIO SPTE.
    HandleMmioPageFault {
        /// Faulting address: guest-virtual with shadow paging, guest-physical with nested.
        address: u64,
        /// What was decoded from the SPTE.
        gfn: Gfn,
        /// What was decoded from the SPTE.
        access: AccessMask,
    },
    /// A write that was forbidden was looked at without the lock.
    FastPageFault {
        /// The address.
        address: Gva,
        /// What was there, without the address.
        old: u64,
        /// What is there now.
        new: u64,
        /// The write was allowed already.
        spurious: bool,
        /// It is allowed now.
        fixed: bool,
    },
    /// All shadow pages go out of sight.
    ZapAllFast,
    /// An entry of the nested tables changed.
    TdpMmuSpteChanged {
        /// First frame the entry maps.
        gfn: Gfn,
        /// 1 for a 4 KiB entry.
        level: u8,
        /// The entry before.
        old: u64,
        /// The entry after.
        new: u64,
    },
    /// Anything else.
    Other {
        /// The tracepoint.
        name: String,
    },
}

/// A shadow page, as far as KVM's trace tells of its role.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    /// The frame of the guest's table, or the first that a direct page maps.
    pub gfn: Gfn,
    /// Level of its entries.
    pub level: u8,
    /// Bytes of the guest's entries.
    pub entry_bytes: u8,
    /// Which part of a table of 1024 entries.
    pub quadrant: u8,
    /// It shadows no table.
    pub direct: bool,
    /// What the tables above allow.
    pub access: AccessMask,
    /// No-execute is in force on the shadow tables.
    pub no_execute: bool,
}

impl Page {
    /// From our own role.
    #[must_use]
    pub fn new(gfn: Gfn, role: PageRole) -> Self {
        Self {
            gfn,
            level: role.level(),
            entry_bytes: if role.has_4_byte_gpte() { 4 } else { 8 },
            quadrant: role.quadrant(),
            direct: role.is_direct(),
            access: role.access(),
            no_execute: role.word() & EFER_NX != 0,
        }
    }
}

/// `efer_nx` of KVM's role word.
const EFER_NX: u32 = 1 << 12;

/// The bits of an x86 entry that hold an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// An entry without the address.
#[must_use]
pub const fn without_address(entry: u64) -> u64 {
    entry & !ADDRESS
}
