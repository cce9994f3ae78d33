//! [`GuestMemory`]: reading and writing guest memory by guest-physical address.
//!
//! Never a Rust reference into guest memory: the guest changes it at any time, so values are copied in and out. What an
//! access can meet is [`MemoryFault`], a plain value, because which address is used is usually the guest's choice.

use crate::addr::Gpa;
use core::fmt;

/// The width of a guest page-table entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EntrySize {
    /// 32 bits: two-level paging without PAE.
    B4,
    /// 64 bits: every other paging mode.
    B8,
}

impl EntrySize {
    /// 4 or 8.
    #[inline]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::B4 => 4,
            Self::B8 => 8,
        }
    }
}

/// Why an access did not happen. Nothing was read or written, not even in part.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum MemoryFault {
    /// No slot at the first byte: for the guest this is MMIO.
    #[error("no memory slot at {gpa}")]
    NoSlot {
        /// The address of the first byte.
        gpa: Gpa,
    },
    /// The access starts in a slot and ends where none follows.
    #[error("{bytes} bytes at {gpa} run past the end of a slot at {end}, where none follows")]
    CrossesSlotEnd {
        /// The address of the first byte.
        gpa: Gpa,
        /// The length in bytes.
        bytes: u64,
        /// The first address that is in no slot.
        end: Gpa,
    },
    /// A write (or exchange) met a read-only slot.
    #[error("the slot at {gpa} is read-only")]
    ReadOnly {
        /// The first address that cannot be written.
        gpa: Gpa,
    },
    /// The slot is just being deleted or moved: look again with a newer snapshot.
    #[error("the slot at {gpa} is being deleted or moved")]
    BeingRemoved {
        /// The first address in that slot.
        gpa: Gpa,
    },
    /// The slot is known by numbers only: this process may not follow its host address.
    #[error("the slot at {gpa} has no mapping in this process")]
    NotMapped {
        /// The first address in that slot.
        gpa: Gpa,
    },
    /// A page-table entry's address is not a multiple of its size.
    #[error("entry address {gpa} is not a multiple of {}", .size.bytes())]
    Unaligned {
        /// The address.
        gpa: Gpa,
        /// The entry's size.
        size: EntrySize,
    },
}

/// The result of [`GuestMemory::compare_exchange_entry`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Exchange {
    /// The entry had the expected value and has the new one now.
    Done,
    /// The entry had this other value, and has it still.
    Differs(u64),
}

/// Guest-physical memory, as a page walker or an instruction emulator needs it.
///
/// Implemented by [`crate::Memslots`] (real memory through slots), by `GuestRam` (the same, of the present moment) and by
/// `testing::VecMemory`. Addresses are those of the address space that the implementation stands for.
pub trait GuestMemory {
    /// Copies `buffer.len()` bytes from `gpa` on. May span adjacent slots. The bytes are not read in one instant.
    ///
    /// # Errors
    /// [`MemoryFault`], with `buffer` unchanged.
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), MemoryFault>;

    /// Copies `data` to `gpa`. May span adjacent slots; logs the pages as dirty where they are logged.
    ///
    /// # Errors
    /// [`MemoryFault`], with nothing written.
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryFault>;

    /// Reads one page-table entry, atomically, zero-extended. With acquire ordering.
    ///
    /// # Errors
    /// [`MemoryFault`]; `gpa` must be a multiple of the size.
    fn read_entry(&self, gpa: Gpa, size: EntrySize) -> Result<u64, MemoryFault>;

    /// Replaces one page-table entry by `new` if it is `current`, atomically and with sequentially consistent ordering.
    /// For 4-byte entries the upper halves of both values are ignored. Logs the page as dirty if it was written.
    ///
    /// # Errors
    /// [`MemoryFault`]; `gpa` must be a multiple of the size.
    fn compare_exchange_entry(
        &self,
        gpa: Gpa,
        size: EntrySize,
        current: u64,
        new: u64,
    ) -> Result<Exchange, MemoryFault>;
}

impl<T: GuestMemory + ?Sized> GuestMemory for &T {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), MemoryFault> {
        (**self).read(gpa, buffer)
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryFault> {
        (**self).write(gpa, data)
    }

    fn read_entry(&self, gpa: Gpa, size: EntrySize) -> Result<u64, MemoryFault> {
        (**self).read_entry(gpa, size)
    }

    fn compare_exchange_entry(
        &self,
        gpa: Gpa,
        size: EntrySize,
        current: u64,
        new: u64,
    ) -> Result<Exchange, MemoryFault> {
        (**self).compare_exchange_entry(gpa, size, current, new)
    }
}

impl fmt::Display for EntrySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes())
    }
}
