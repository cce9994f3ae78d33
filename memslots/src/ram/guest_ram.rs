//! [`GuestRam`]: slots over host mappings, changed from any thread while other threads use them.

use crate::addr::Gpa;
use crate::backing::Backing;
use crate::error::SlotError;
use crate::guest_memory::{EntrySize, Exchange, GuestMemory, MemoryFault};
use crate::limits::SlotLimits;
use crate::observer::SlotObserver;
use crate::publish::Published;
use crate::reader::SlotReader;
use crate::request::Applied;
use crate::slot::{AddressSpaceId, SlotFlags, SlotId};
use crate::snapshot::Memslots;
use crate::table::{NewSlot, SlotTable};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A handle to a virtual machine's memory; clones are handles to the same memory.
///
/// Changes (`add`, `remove`, `relocate`, `set_flags`) exclude each other and take effect as one new snapshot. Users
/// work on snapshots: [`GuestRam::reader`] for a thread that looks often, [`GuestRam::snapshot`] for the rest, or
/// `vm_memory::GuestAddressSpace::memory` for code written against vm-memory. Memory of a removed slot stays valid for
/// whoever still holds an older snapshot.
#[derive(Clone)]
pub struct GuestRam {
    shared: Arc<Shared>,
}

struct Shared {
    table: Mutex<SlotTable>,
    /// The normal address space, which has most of the readers.
    normal: Arc<Published<Memslots>>,
}

impl GuestRam {
    /// A machine without memory.
    pub fn new(limits: SlotLimits) -> Self {
        Self::from_table(SlotTable::new(limits))
    }

    /// Takes over a table, with its slots and observers.
    pub fn from_table(table: SlotTable) -> Self {
        // Every table has the normal space.
        let normal = match table.published(AddressSpaceId::Normal) {
            Some(published) => Arc::clone(published),
            None => Arc::new(Published::new(table.slots(AddressSpaceId::Normal))),
        };
        Self {
            shared: Arc::new(Shared {
                table: Mutex::new(table),
                normal,
            }),
        }
    }

    /// Works on the table with exclusive access: for several changes in a row, raw requests, dirty logs.
    ///
    /// Observers run in here: `work` must not wait for a thread that itself changes this memory.
    pub fn with_table<R>(&self, work: impl FnOnce(&mut SlotTable) -> R) -> R {
        // An update that panicked half way left `current` as it was; see the module documentation of the table.
        work(&mut self.shared.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// See [`SlotTable::add_observer`].
    pub fn add_observer(&self, observer: Box<dyn SlotObserver>) {
        self.with_table(|table| table.add_observer(observer));
    }

    /// Creates a slot; see [`SlotTable::add`].
    ///
    /// # Errors
    /// As there.
    pub fn add(&self, new: NewSlot) -> Result<SlotId, SlotError> {
        self.with_table(|table| table.add(new))
    }

    /// Creates a writable slot in the normal address space over all of `backing`.
    ///
    /// # Errors
    /// As [`SlotTable::add`].
    pub fn map(&self, at: Gpa, backing: Arc<dyn Backing>) -> Result<SlotId, SlotError> {
        self.add(NewSlot::whole(at, backing))
    }

    /// Deletes a slot; see [`SlotTable::remove`].
    ///
    /// # Errors
    /// As there.
    pub fn remove(&self, space: AddressSpaceId, id: SlotId) -> Result<Applied, SlotError> {
        self.with_table(|table| table.remove(space, id))
    }

    /// Moves a slot; see [`SlotTable::relocate`].
    ///
    /// # Errors
    /// As there.
    pub fn relocate(&self, space: AddressSpaceId, id: SlotId, to: Gpa) -> Result<Applied, SlotError> {
        self.with_table(|table| table.relocate(space, id, to))
    }

    /// Changes a slot's flags; see [`SlotTable::set_flags`].
    ///
    /// # Errors
    /// As there.
    pub fn set_flags(&self, space: AddressSpaceId, id: SlotId, flags: SlotFlags) -> Result<Applied, SlotError> {
        self.with_table(|table| table.set_flags(space, id, flags))
    }

    /// The present snapshot of the normal address space. It does not change; take a new one for each piece of work.
    pub fn snapshot(&self) -> Arc<Memslots> {
        self.shared.normal.load()
    }

    /// A reader of the normal address space, for one thread.
    pub fn reader(&self) -> SlotReader {
        SlotReader::new(Arc::clone(&self.shared.normal))
    }

    /// A reader of any address space; `None` if the machine does not have it.
    pub fn reader_of(&self, space: AddressSpaceId) -> Option<SlotReader> {
        self.with_table(|table| table.reader(space))
    }
}

impl fmt::Debug for GuestRam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestRam")
            .field("normal", &self.snapshot())
            .finish_non_exhaustive()
    }
}

/// Each access uses the snapshot of the moment (and takes a lock for the time of copying a pointer). Whoever makes many
/// accesses takes a snapshot.
impl GuestMemory for GuestRam {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), MemoryFault> {
        self.snapshot().read(gpa, buffer)
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryFault> {
        self.snapshot().write(gpa, data)
    }

    fn read_entry(&self, gpa: Gpa, size: EntrySize) -> Result<u64, MemoryFault> {
        self.snapshot().read_entry(gpa, size)
    }

    fn compare_exchange_entry(
        &self,
        gpa: Gpa,
        size: EntrySize,
        current: u64,
        new: u64,
    ) -> Result<Exchange, MemoryFault> {
        self.snapshot().compare_exchange_entry(gpa, size, current, new)
    }
}

impl vm_memory::GuestAddressSpace for GuestRam {
    type M = Memslots;
    type T = Arc<Memslots>;

    fn memory(&self) -> Arc<Memslots> {
        self.snapshot()
    }
}
