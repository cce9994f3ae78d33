//! [`Arena`]: memory inside the KVM VM that is ours and not the guest's: the monitor and the shadow tables.

use super::layout::{MONITOR_BYTES, TABLE_BYTES};
use crate::kvm::{KvmError, KvmVm};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use umbra_memslots::ram::{HostMapping, MappingError};
use umbra_memslots::{Backing, Gpa};

/// Why there is no arena.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// The host has no memory for it.
    #[error("no memory for the shadow tables: {0}")]
    Memory(#[from] MappingError),
    /// KVM refused the slot.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// More tables than the monitor can reach.
    #[error("{tables} shadow tables asked for, {max} at most")]
    TooManyTables {
        /// How many were asked for.
        tables: u32,
        /// The limit.
        max: u32,
    },
}

/// As many tables as fit into the window (1 GiB) beside the monitor.
pub const MAX_TABLES: u32 = ((1 << 30) / TABLE_BYTES - MONITOR_BYTES / TABLE_BYTES) as u32;

/// The memory. Words are named by their byte offset, which must be a multiple of 8 and within the arena: anything else is
/// a bug of this folder and panics.
pub(super) struct Arena {
    at: Gpa,
    bytes: u64,
    first: *mut u64,
    /// Entries that were present and have been changed, and of which the walker may not know yet.
    edited: Mutex<BTreeSet<u64>>,
    /// Keeps `first` mapped.
    _mapping: Arc<dyn Backing>,
}

// SAFETY: `first` points into a mapping that lives as long as the arena and is only accessed atomically.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Makes an arena for the monitor and `tables` tables, and a slot of the VM out of it.
    pub fn new(vm: &mut KvmVm, tables: u32) -> Result<Self, ArenaError> {
        if tables > MAX_TABLES {
            return Err(ArenaError::TooManyTables {
                tables,
                max: MAX_TABLES,
            });
        }
        // The upper half of what the CPU can address, or of 46 bits: no guest of ours is that large.
        let at = Gpa::new(1 << (vm.physical_bits().clamp(32, 46) - 1));
        let bytes = (MONITOR_BYTES + u64::from(tables) * TABLE_BYTES).next_multiple_of(2 << 20);
        let mapping = HostMapping::anonymous(bytes)?;
        let first = std::ptr::with_exposed_provenance_mut(usize::try_from(mapping.start().get()).unwrap_or_default());
        let mapping: Arc<dyn Backing> = Arc::new(mapping);
        vm.add_private_memory(at, &mapping)?;
        Ok(Self {
            at,
            bytes,
            first,
            edited: Mutex::default(),
            _mapping: mapping,
        })
    }

    /// Where a byte lies in the VM.
    pub fn gpa(&self, offset: u64) -> Gpa {
        self.at.wrapping_add(offset)
    }

    /// Which byte of the arena lies there, if any.
    pub fn offset(&self, gpa: u64) -> Option<u64> {
        gpa.checked_sub(self.at.get()).filter(|&offset| offset < self.bytes)
    }

    /// Length in bytes, a multiple of 2 MiB.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset < self.bytes, "word {offset:#x}");
        let index = (offset / 8) as usize;
        // SAFETY: aligned and within the mapping (just checked), which lives as long as `self`, is zero or written as
        // whole words by us, and into which there are no other Rust references than to atomics.
        unsafe { AtomicU64::from_ptr(self.first.wrapping_add(index)) }
    }

    pub fn load(&self, offset: u64) -> u64 {
        self.word(offset).load(Ordering::Acquire)
    }

    /// Writes a word that no walker reads as an entry.
    pub fn put(&self, offset: u64, value: u64) {
        self.word(offset).store(value, Ordering::Release);
    }

    /// Writes a table entry.
    pub fn store_entry(&self, offset: u64, entry: u64) {
        let old = self.word(offset).swap(entry, Ordering::AcqRel);
        self.note(offset, old, entry);
    }

    /// Replaces a table entry if it is `current`.
    pub fn exchange_entry(&self, offset: u64, current: u64, new: u64) -> Result<(), u64> {
        self.word(offset)
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)?;
        self.note(offset, current, new);
        Ok(())
    }

    /// An entry that wasn't present is in no TLB, nor in what a hypervisor below us derived from it.
    fn note(&self, offset: u64, old: u64, new: u64) {
        if old & 1 != 0 && old != new {
            self.edits().insert(offset);
        }
    }

    /// At most `most` of the edited entries' offsets, which from now on are somebody else's business.
    pub fn take_edited(&self, most: usize) -> Vec<u64> {
        let mut edited = self.edits();
        let taken: Vec<u64> = edited.iter().take(most).copied().collect();
        for offset in &taken {
            edited.remove(offset);
        }
        taken
    }

    fn edits(&self) -> std::sync::MutexGuard<'_, BTreeSet<u64>> {
        self.edited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
