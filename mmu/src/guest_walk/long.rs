//! Four- and five-level paging (SDM vol. 3A, 4.5).

use super::path::Path;
use super::result::{GuestWalk, WalkFailure};
use crate::x86::GuestPte;
use umbra_memslots::{Gpa, GuestMemory};

const INDEX_BITS: u32 = 9;
const PAGE_BITS: u32 = 12;

/// Walks down from the root, which is of `levels` (4 or 5).
pub(super) fn walk<M: GuestMemory>(mut path: Path<'_, M>, levels: u8) -> Result<GuestWalk, WalkFailure> {
    let mut table = path.state().root;
    let mut level = levels;
    loop {
        let shift = PAGE_BITS + INDEX_BITS * (u32::from(level) - 1);
        let index = path.gva().get() >> shift & 0x1ff;
        // Bit 7 of a PML4E or PML5E is reserved, whatever it would mean.
        let maps_page = |pte: GuestPte| level == 1 || (level <= 3 && pte.has(GuestPte::SIZE));
        let (pte, page) = path.step(level, table, index, maps_page)?;
        let address = pte.address();
        if page {
            let base = address.get() >> shift << shift;
            return path.arrive(Gpa::new(base), shift);
        }
        table = address;
        level -= 1;
    }
}
