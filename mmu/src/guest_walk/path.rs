//! [`Path`]: a walk on its way down. The step that all walkers share: read an entry, is it present, is it well-formed,
//! what does it permit.

use super::result::{GuestWalk, MAX_LEVELS, WalkEntry, WalkFailure};
use crate::access_mask::AccessMask;
use crate::x86::access::Permissions;
use crate::x86::{Access, FaultCause, GuestPte, PageFault, PageFaultCode, PagingState};
use umbra_memslots::{EntrySize, Gpa, GuestMemory, Gva, MemoryFault, PAGE_SHIFT};

/// The entries so far and the permissions they have in common.
pub(super) struct Path<'a, M> {
    state: &'a PagingState,
    memory: &'a M,
    gva: Gva,
    access: Access,
    entry_size: EntrySize,
    entries: [WalkEntry; MAX_LEVELS],
    depth: usize,
    mask: AccessMask,
}

impl<'a, M: GuestMemory> Path<'a, M> {
    pub(super) fn new(state: &'a PagingState, memory: &'a M, gva: Gva, access: Access, entry_size: EntrySize) -> Self {
        let nothing = WalkEntry {
            level: 0,
            gpa: Gpa::new(0),
            pte: GuestPte::new(0),
        };
        let entries = [nothing; MAX_LEVELS];
        Self {
            state,
            memory,
            gva,
            access,
            entry_size,
            entries,
            depth: 0,
            mask: AccessMask::ALL,
        }
    }

    pub(super) fn state(&self) -> &'a PagingState {
        self.state
    }

    pub(super) fn gva(&self) -> Gva {
        self.gva
    }

    /// Reads entry `index` of the table at `table`, which is of `level`. `maps_page` says whether an entry maps a page
    /// at that level. Gives the entry and that answer.
    pub(super) fn step(
        &mut self,
        level: u8,
        table: Gpa,
        index: u64,
        maps_page: impl FnOnce(GuestPte) -> bool,
    ) -> Result<(GuestPte, bool), WalkFailure> {
        let gpa = table.wrapping_add(index * self.entry_size.bytes());
        let pte = match self.memory.read_entry(gpa, self.entry_size) {
            Ok(raw) => GuestPte::new(raw),
            Err(MemoryFault::BeingRemoved { .. }) => return Err(WalkFailure::Retry),
            Err(fault) => return Err(self.fault(level, 0, FaultCause::NoTable(fault))),
        };
        if !pte.has(GuestPte::PRESENT) {
            return Err(self.fault(level, 0, FaultCause::NotPresent));
        }
        let maps_page = maps_page(pte);
        if self.state.reserved.violated_by(level, maps_page, pte) {
            let bits = PageFaultCode::PRESENT | PageFaultCode::RESERVED;
            return Err(self.fault(level, bits, FaultCause::Reserved));
        }
        self.mask = self.mask & pte.permits();
        self.entries[self.depth] = WalkEntry { level, gpa, pte };
        self.depth += 1;
        Ok((pte, maps_page))
    }

    /// The page at `page`, of `1 << page_shift` bytes, is what the address leads to: may it be accessed?
    pub(super) fn arrive(self, page: Gpa, page_shift: u32) -> Result<GuestWalk, WalkFailure> {
        let last = self.entries[self.depth.saturating_sub(1)];
        let key = if self.state.keys.is_some() {
            last.pte.protection_key()
        } else {
            0
        };
        let permissions = Permissions { mask: self.mask, key };
        let verdict = permissions.check(self.state, self.access);
        if !verdict.allowed {
            let key = if verdict.key_denied { PageFaultCode::KEY } else { 0 };
            return Err(self.fault(last.level, PageFaultCode::PRESENT | key, FaultCause::Permission));
        }
        let offset = self.gva.get() & ((1 << page_shift) - 1);
        Ok(GuestWalk {
            gva: self.gva,
            gpa: page.wrapping_add(offset),
            page_shift,
            permissions,
            entries: self.entries,
            depth: self.depth,
            entry_size: self.entry_size,
        })
    }

    /// There is no paging: the address is physical, and nothing is forbidden.
    pub(super) fn identity(self) -> GuestWalk {
        GuestWalk {
            gva: self.gva,
            gpa: Gpa::new(self.gva.get()),
            page_shift: PAGE_SHIFT,
            permissions: Permissions {
                mask: AccessMask::ALL,
                key: 0,
            },
            entries: self.entries,
            depth: 0,
            entry_size: self.entry_size,
        }
    }

    /// The fault at an entry of `level`.
    pub(super) fn fault(&self, level: u8, bits: u32, cause: FaultCause) -> WalkFailure {
        let code = PageFaultCode::of_access(self.state, self.access).with(bits);
        WalkFailure::Fault(PageFault {
            gva: self.gva,
            code,
            level,
            cause,
        })
    }
}
