//! [`MmuObserver`]: what happens in the MMU, named and numbered like KVM's `kvmmmu` tracepoints, so that one can be
//! compared with the other line for line.

use crate::access_mask::AccessMask;
use crate::mmio::{MmioGen, MmioSpte};
use crate::tables::EntryLocation;
use umbra_memslots::{AddressSpaceId, Generation, Gfn, Gva};

/// Takes note of events. All methods do nothing by default; calls are static, so that not observing costs nothing.
///
/// Some are made with the MMU's lock held: an observer must not call back into the MMU.
pub trait MmuObserver {
    /// An MMIO SPTE was made.
    #[inline]
    fn mark_mmio_spte(&mut self, _at: EntryLocation, _gfn: Gfn, _access: AccessMask, _generation: MmioGen) {}

    /// An MMIO SPTE was compared with the current generation.
    #[inline]
    fn check_mmio_spte(&mut self, _spte: MmioSpte, _current: Generation, _made: MmioGen, _valid: bool) {}

    /// An access was recognised as MMIO by a fresh MMIO SPTE. `gva` is `None` on direct tables, where KVM prints 0.
    #[inline]
    fn handle_mmio_page_fault(&mut self, _gva: Option<Gva>, _gfn: Gfn, _access: AccessMask) {}

    /// A leaf was installed.
    #[inline]
    fn set_spte(&mut self, _at: EntryLocation, _gfn: Gfn, _level: u8, _spte: u64) {}

    /// Everything that an address space's tables knew was thrown away.
    #[inline]
    fn zap_all_fast(&mut self, _address_space: AddressSpaceId, _tables_in_use: u32) {}
}

/// Observes nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NoObserver;

impl MmuObserver for NoObserver {}

impl<O: MmuObserver> MmuObserver for &mut O {
    fn mark_mmio_spte(&mut self, at: EntryLocation, gfn: Gfn, access: AccessMask, generation: MmioGen) {
        (**self).mark_mmio_spte(at, gfn, access, generation);
    }

    fn check_mmio_spte(&mut self, spte: MmioSpte, current: Generation, made: MmioGen, valid: bool) {
        (**self).check_mmio_spte(spte, current, made, valid);
    }

    fn handle_mmio_page_fault(&mut self, gva: Option<Gva>, gfn: Gfn, access: AccessMask) {
        (**self).handle_mmio_page_fault(gva, gfn, access);
    }

    fn set_spte(&mut self, at: EntryLocation, gfn: Gfn, level: u8, spte: u64) {
        (**self).set_spte(at, gfn, level, spte);
    }

    fn zap_all_fast(&mut self, address_space: AddressSpaceId, tables_in_use: u32) {
        (**self).zap_all_fast(address_space, tables_in_use);
    }
}
