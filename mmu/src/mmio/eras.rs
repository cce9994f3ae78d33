//! [`Eras`]: to which era the MMIO SPTEs of each address space belong.

use super::generation::MmioEra;
use crate::sync::{AtomicU64, Ordering};
use umbra_memslots::AddressSpaceId;

/// The era of each address space. Only moves forward, and only while no MMIO SPTE can be made.
#[derive(Debug)]
pub(crate) struct Eras([AtomicU64; AddressSpaceId::COUNT as usize]);

impl Eras {
    pub(crate) fn new() -> Self {
        Self(AddressSpaceId::ALL.map(|_| AtomicU64::new(0)))
    }

    /// The present era. To be compared with one's own before a table is read and again afterwards: an entry of a later
    /// era was loaded with acquire, after which that era is seen here, too.
    #[inline]
    pub(crate) fn of(&self, space: AddressSpaceId) -> MmioEra {
        MmioEra::from_raw(self.0[usize::from(space.index())].load(Ordering::Acquire))
    }

    /// From now on entries may be believed by who is in `era`; all earlier ones are gone.
    pub(crate) fn enter(&self, space: AddressSpaceId, era: MmioEra) {
        self.0[usize::from(space.index())].store(era.get(), Ordering::Release);
    }
}
