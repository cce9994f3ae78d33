//! 32-bit paging (SDM vol. 3A, 4.3): two levels of 1024 four-byte entries, and 4 MiB pages.

use super::path::Path;
use super::result::{GuestWalk, WalkFailure};
use crate::x86::GuestPte;
use umbra_memslots::GuestMemory;

/// Walks down from the page directory.
pub(super) fn walk<M: GuestMemory>(mut path: Path<'_, M>) -> Result<GuestWalk, WalkFailure> {
    let (directory, pse) = (path.state().root, path.state().pse);
    let index = |gva: u64, shift: u32| gva >> shift & 0x3ff;
    let gva = path.gva().get();
    // Without CR4.PSE the size bit is ignored.
    let (pde, large) = path.step(2, directory, index(gva, 22), |pde| pse && pde.has(GuestPte::SIZE))?;
    if large {
        return path.arrive(pde.address_4m(), 22);
    }
    let (pte, _) = path.step(1, pde.address32(), index(gva, 12), |_| true)?;
    path.arrive(pte.address32(), 12)
}
