//! [`TableReset`]: makes KVM forget its shadows of the guest's page tables.
//!
//! A KVM without second-level paging keeps shadows of guest page tables and learns of changes by the guest's own writes. The
//! instruction core writes through our mapping of guest RAM, which KVM doesn't see, and no ioctl says so. But KVM drops all
//! shadows when a memory slot is moved (`KVM_SET_USER_MEMORY_REGION`; in the kernel `kvm_arch_flush_shadow_memslot`). So one
//! slot of one page, above all memory that a guest can have, goes back and forth.

use super::memory::VmMemory;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use umbra_memslots::{Backing, Gfn, Gpa, HostMapping, PAGE_SIZE, SlotFlags, SlotRequest};

/// Frames that it takes at the top of the guest's address space.
pub(super) const FRAMES: u64 = 2;

/// A slot of ours.
pub(super) struct TableReset {
    memory: Arc<VmMemory>,
    slot: u32,
    /// The lower of its places.
    at: Gpa,
    page: Mutex<Option<Page>>,
}

/// The page in it, once it was needed.
struct Page {
    backing: Arc<dyn Backing>,
    is_up: bool,
}

impl TableReset {
    /// Uses slot number `slot` and the two frames that end with `last`.
    pub fn new(memory: Arc<VmMemory>, slot: u32, last: Gfn) -> Self {
        Self {
            memory,
            slot,
            at: Gfn::from_masked(last.get().saturating_sub(FRAMES - 1)).base(),
            page: Mutex::new(None),
        }
    }

    /// Makes KVM forget what it has derived from page tables, for all vCPUs.
    ///
    /// # Errors
    /// The kernel refused, or there is no memory.
    pub fn reset(&self) -> io::Result<()> {
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        if page.is_none() {
            let mapping = HostMapping::anonymous(PAGE_SIZE).map_err(io::Error::other)?;
            let new = Page {
                backing: Arc::new(mapping),
                is_up: false,
            };
            self.put(&new)?;
            *page = Some(new);
        }
        if let Some(page) = &mut *page {
            page.is_up = !page.is_up;
            self.put(page)?;
        }
        Ok(())
    }

    fn put(&self, page: &Page) -> io::Result<()> {
        let at = self.at.wrapping_add(u64::from(page.is_up) * PAGE_SIZE);
        let request = SlotRequest::set(self.slot, SlotFlags::empty(), at, PAGE_SIZE, page.backing.start());
        self.memory.set(&request, &page.backing)
    }
}
