//! [`Watched`]: the guest's memory during a walk, telling the observer what the walk does, as KVM's `walk_addr_generic`
//! traces it. The walkers know nothing of it.

use crate::observer::MmuObserver;
use crate::x86::{GuestPte, PagingMode, PagingState};
use core::cell::{Cell, RefCell};
use umbra_memslots::{EntrySize, Exchange, Gpa, GuestMemory, Gva, MemoryFault};

/// A walk reads entries downwards from the root, then sets flags; if it reads again, it began anew.
pub(super) struct Watched<'a, M, O> {
    memory: &'a M,
    observer: RefCell<&'a mut O>,
    /// Level of the table that the walk begins with.
    root: u8,
    /// The PDPTE, which is read from a register.
    pdpte: Option<GuestPte>,
    /// Level of the next entry; 0 when the walk is about to begin.
    next: Cell<u8>,
}

impl<'a, M: GuestMemory, O: MmuObserver> Watched<'a, M, O> {
    pub(super) fn new(memory: &'a M, observer: &'a mut O, state: &PagingState, gva: Gva) -> Self {
        let pdpte =
            (state.mode == PagingMode::Pae).then(|| GuestPte::new(state.pdptes[(gva.get() >> 30 & 3) as usize]));
        let watched = Self {
            memory,
            observer: RefCell::new(observer),
            root: state.mode.levels() - u8::from(pdpte.is_some()),
            pdpte,
            next: Cell::new(0),
        };
        // Read even if nothing else will be.
        watched.begin();
        watched
    }

    fn begin(&self) {
        if let Some(pdpte) = self.pdpte {
            self.observer.borrow_mut().paging_element(pdpte, self.root + 1);
        }
        self.next.set(self.root);
    }
}

impl<M: GuestMemory, O: MmuObserver> GuestMemory for Watched<'_, M, O> {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), MemoryFault> {
        self.memory.read(gpa, buffer)
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryFault> {
        self.memory.write(gpa, data)
    }

    fn read_entry(&self, gpa: Gpa, size: EntrySize) -> Result<u64, MemoryFault> {
        let entry = self.memory.read_entry(gpa, size)?;
        if self.next.get() == 0 {
            self.begin();
        }
        let level = self.next.get();
        self.next.set(level.saturating_sub(1));
        self.observer.borrow_mut().paging_element(GuestPte::new(entry), level);
        Ok(entry)
    }

    fn compare_exchange_entry(&self, gpa: Gpa, size: EntrySize, old: u64, new: u64) -> Result<Exchange, MemoryFault> {
        self.next.set(0);
        let mut observer = self.observer.borrow_mut();
        if (new & !old) & GuestPte::ACCESSED != 0 {
            observer.set_accessed_bit(gpa);
        }
        if (new & !old) & GuestPte::DIRTY != 0 {
            observer.set_dirty_bit(gpa);
        }
        self.memory.compare_exchange_entry(gpa, size, old, new)
    }
}
