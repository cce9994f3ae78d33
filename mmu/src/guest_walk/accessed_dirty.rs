//! Accessed and dirty flags, set as the CPU sets them: atomically, and only in an entry that is still what the walk read
//! (SDM vol. 3A, 4.8; KVM's `update_accessed_dirty_bits`).

use super::result::{GuestWalk, WalkFailure};
use crate::x86::GuestPte;
use umbra_memslots::{Exchange, GuestMemory, MemoryFault};

/// Whether the entries are settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Settled {
    /// All flags are set.
    Yes,
    /// An entry was changed by another CPU since it was read: the walk is void.
    Changed,
}

/// Sets A in all entries of the walk, and D in the last if `write`.
///
/// Entries in a read-only slot stay as they are: page tables in ROM work, without flags.
pub(super) fn settle<M: GuestMemory>(walk: &mut GuestWalk, memory: &M, write: bool) -> Result<Settled, WalkFailure> {
    let size = walk.entry_size;
    let depth = walk.depth;
    for (index, entry) in walk.entries[..depth].iter_mut().enumerate() {
        let dirty = if write && index + 1 == depth {
            GuestPte::DIRTY
        } else {
            0
        };
        let old = entry.pte.raw();
        let new = old | GuestPte::ACCESSED | dirty;
        if new == old {
            continue;
        }
        match memory.compare_exchange_entry(entry.gpa, size, old, new) {
            Ok(Exchange::Done) => entry.pte = GuestPte::new(new),
            Ok(Exchange::Differs(_)) => return Ok(Settled::Changed),
            Err(MemoryFault::ReadOnly { .. }) => {}
            // It was read a moment ago: its slot has changed since.
            Err(_) => return Err(WalkFailure::Retry),
        }
    }
    Ok(Settled::Yes)
}
