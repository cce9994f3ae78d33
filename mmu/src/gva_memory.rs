//! [`GvaMemory`]: guest memory by guest-virtual address, as a `vm_memory` guest memory behind the guest's own page tables.
//!
//! `vm_memory::Bytes` works on it, so a debugger, an emulator or a device that takes virtual addresses reads and writes
//! like anybody else. It stands where vm-memory's `IommuMemory` would, but isn't built on it: that caches translations
//! until it is told otherwise, which a guest doesn't tell, knows read and write but neither user nor supervisor, and logs
//! writes by virtual address instead of in the slots' dirty logs.

use crate::guest_walk::{GuestWalk, WalkFailure, look, walk};
use crate::x86::{Access, AccessKind, PagingState, Privilege};
use std::io;
use std::iter::FusedIterator;
use std::sync::Arc;
use umbra_memslots::ram::DeviceMemory;
use umbra_memslots::ram::view::DirtySlice;
use umbra_memslots::{Gpa, Gva, Memslots};
use vm_memory::guest_memory::{GuestMemoryBackendSliceIterator, GuestMemorySliceIterator};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryResult, Permissions};

/// On whose behalf memory is accessed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Behalf {
    /// The guest's, with this privilege: its permissions apply, accessed and dirty flags are set, read-only slots can't be
    /// written.
    Guest(Privilege),
    /// A debugger's: whatever is mapped can be read and written (a breakpoint goes into read-only code, and into a
    /// read-only slot), and no flag in the guest's tables changes.
    Debugger,
}

/// The memory that a vCPU sees through its page tables, at one moment: a snapshot of the slots and of the registers.
///
/// The tables are walked at each access. An access is checked in full before its first byte is touched, as an instruction
/// is: it happens or it fails. (Unless the guest changes its tables meanwhile: then it may stop at a page's end.)
/// Why it failed is a [`GvaFault`], to be had by [`GvaFault::of`].
///
/// Linear addresses don't wrap: an access past the top of the address space fails.
#[derive(Clone, Debug)]
pub struct GvaMemory {
    state: PagingState,
    memory: DeviceMemory,
    behalf: Behalf,
}

/// Why there are no bytes at a guest-virtual address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GvaFault {
    /// The guest's tables don't lead there, or forbid it.
    #[error(transparent)]
    Walk(#[from] WalkFailure),
    /// They lead to where there is no RAM.
    #[error("{gva} leads to {gpa}, which isn't RAM")]
    NoRam {
        /// The address.
        gva: Gva,
        /// What it leads to.
        gpa: Gpa,
    },
    /// They lead to a slot that the guest can't write.
    #[error("{gva} leads to {gpa}, in a read-only slot")]
    ReadOnly {
        /// The address.
        gva: Gva,
        /// What it leads to.
        gpa: Gpa,
    },
}

impl GvaFault {
    /// The fault that an access to a [`GvaMemory`] failed with.
    #[must_use]
    pub fn of(error: &GuestMemoryError) -> Option<&Self> {
        match error {
            GuestMemoryError::IOError(error) => error.get_ref()?.downcast_ref(),
            _ => None,
        }
    }
}

impl From<GvaFault> for GuestMemoryError {
    fn from(fault: GvaFault) -> Self {
        let kind = match fault {
            GvaFault::Walk(WalkFailure::Retry) => io::ErrorKind::WouldBlock,
            GvaFault::Walk(WalkFailure::NonCanonical(_)) => io::ErrorKind::InvalidInput,
            GvaFault::Walk(WalkFailure::Fault(_)) | GvaFault::NoRam { .. } => io::ErrorKind::NotFound,
            GvaFault::ReadOnly { .. } => io::ErrorKind::PermissionDenied,
        };
        Self::IOError(io::Error::new(kind, fault))
    }
}

/// Bytes that lie behind one another, virtually and physically.
#[derive(Clone, Copy)]
struct Run {
    gpa: Gpa,
    bytes: usize,
}

impl GvaMemory {
    /// The memory of `slots` as a vCPU in `state` sees it.
    #[must_use]
    pub fn new(slots: Arc<Memslots>, state: PagingState, behalf: Behalf) -> Self {
        let state = match behalf {
            Behalf::Guest(_) => state,
            // Nothing that is mapped is out of a supervisor's reach.
            Behalf::Debugger => PagingState {
                ac: true,
                keys: None,
                ..state
            },
        };
        Self {
            state,
            memory: DeviceMemory::new(slots),
            behalf,
        }
    }

    /// Where `gva` leads, without a trace in the guest's tables.
    ///
    /// # Errors
    /// [`WalkFailure`].
    pub fn translate(&self, gva: Gva, kind: AccessKind) -> Result<Gpa, WalkFailure> {
        self.walk(gva, kind, false).map(|walk| walk.gpa)
    }

    fn walk(&self, gva: Gva, kind: AccessKind, may_set_flags: bool) -> Result<GuestWalk, WalkFailure> {
        let slots: &Memslots = self.memory.slots();
        match self.behalf {
            Behalf::Guest(privilege) if may_set_flags => walk(&self.state, slots, gva, Access::new(kind, privilege)),
            Behalf::Guest(privilege) => look(&self.state, slots, gva, Access::new(kind, privilege)),
            Behalf::Debugger => {
                let read = Access::new(AccessKind::Read, Privilege::Supervisor);
                look(&self.state, slots, gva, read)
            }
        }
    }

    /// The first of at most `wanted` bytes from `gva` on that the entry which maps it also maps.
    fn run(&self, gva: Gva, wanted: usize, kind: AccessKind, may_set_flags: bool) -> Result<Run, GvaFault> {
        let walk = self.walk(gva, kind, may_set_flags)?;
        let page = 1u64 << walk.page_shift;
        let to_the_end = page - (gva.get() & (page - 1));
        let bytes = usize::try_from(to_the_end).map_or(wanted, |bytes| bytes.min(wanted));
        let gpa = walk.gpa;
        if !GuestMemoryBackend::check_range(&**self.memory.slots(), gpa.into(), bytes) {
            return Err(GvaFault::NoRam { gva, gpa });
        }
        let written_by_guest = kind == AccessKind::Write && self.behalf != Behalf::Debugger;
        if written_by_guest && !self.memory.check_range(gpa.into(), bytes, Permissions::Write) {
            return Err(GvaFault::ReadOnly { gva, gpa });
        }
        Ok(Run { gpa, bytes })
    }

    /// Whether all of it can be accessed; sets no flags.
    fn check(&self, first: Gva, count: usize, kind: AccessKind) -> GuestMemoryResult<()> {
        let last = count.checked_sub(1).map(|rest| first.checked_add(rest as u64));
        if last == Some(None) {
            return Err(GuestMemoryError::GuestAddressOverflow);
        }
        let mut done = 0;
        while done < count {
            let gva = first.wrapping_add(done as u64);
            done += self.run(gva, count - done, kind, false)?.bytes;
        }
        Ok(())
    }
}

/// Reading and writing at once is a write, as for the CPU.
fn kind_of(access: Permissions) -> AccessKind {
    if access.has_write() {
        AccessKind::Write
    } else {
        AccessKind::Read
    }
}

impl GuestMemory for GvaMemory {
    type PhysicalMemory = Memslots;
    type Bitmap = umbra_memslots::DirtyBitmap;

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        self.check(Gva::new(address.0), count, kind_of(access)).is_ok()
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, DirtySlice<'a>>> {
        let (gva, kind) = (Gva::new(address.0), kind_of(access));
        self.check(gva, count, kind)?;
        Ok(Slices {
            memory: self,
            gva,
            left: count,
            kind,
            run: None,
        })
    }
}

/// Walks the tables run by run, now for real.
struct Slices<'a> {
    memory: &'a GvaMemory,
    gva: Gva,
    left: usize,
    kind: AccessKind,
    run: Option<GuestMemoryBackendSliceIterator<'a, Memslots>>,
}

impl<'a> Iterator for Slices<'a> {
    type Item = GuestMemoryResult<vm_memory::VolatileSlice<'a, DirtySlice<'a>>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.run.as_mut().and_then(Iterator::next) {
                Some(Ok(slice)) => return Some(Ok(slice)),
                Some(Err(error)) => {
                    self.left = 0;
                    return Some(Err(error));
                }
                None => self.run = None,
            }
            if self.left == 0 {
                return None;
            }
            match self.memory.run(self.gva, self.left, self.kind, true) {
                Ok(Run { gpa, bytes }) => {
                    self.gva = self.gva.wrapping_add(bytes as u64);
                    self.left -= bytes;
                    let slots: &'a Memslots = self.memory.memory.slots();
                    self.run = Some(GuestMemoryBackend::get_slices(slots, gpa.into(), bytes));
                }
                Err(fault) => {
                    self.left = 0;
                    return Some(Err(fault.into()));
                }
            }
        }
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, DirtySlice<'a>> for Slices<'a> {}
