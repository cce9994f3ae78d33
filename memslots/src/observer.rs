//! [`SlotObserver`]: who mirrors the slots elsewhere, or keeps things derived from them.
//!
//! The order of calls is part of the contract and is described at [`crate::SlotTable`].

use crate::generation::Generation;
use crate::request::SlotChange;
use crate::slot::{AddressSpaceId, MemSlot};
use alloc::boxed::Box;
use core::error::Error;

/// Follows the changes of a [`crate::SlotTable`].
///
/// Implementations: the KVM mirror makes the ioctl in `after_commit` and undoes it in `roll_back`; an MMU zaps in
/// `before_remove` and throws its MMIO entries away in `generation_changes` when the number wraps; a recorder tests.
/// Methods run on the thread that changes the table, in the order in which observers were added, and must not panic
/// (that would leave the readers with the in-progress mark until the next change).
pub trait SlotObserver: Send {
    /// A slot is about to be deleted or moved away. Readers already see it as
    /// [invalid](MemSlot::is_invalid), so nothing new can be derived from it; what was derived must go now.
    ///
    /// If the change is rolled back afterwards, what was dropped here has to be derived again on demand.
    fn before_remove(&mut self, slot: &MemSlot);

    /// The change is decided unless an observer refuses it here. Readers see the in-progress mark.
    ///
    /// # Errors
    /// Refuses the change: it is rolled back and the caller of [`crate::SlotTable::apply`] gets this error.
    fn after_commit(&mut self, change: &SlotChange) -> Result<(), ObserverError>;

    /// A later observer refused a change that this one accepted: undo [`SlotObserver::after_commit`].
    ///
    /// # Errors
    /// The mirror could not be undone and now differs from the table.
    fn roll_back(&mut self, change: &SlotChange) -> Result<(), ObserverError>;

    /// The generation of `space` is about to become `next` (`kvm_arch_memslots_updated`). Readers see the in-progress
    /// mark and the old number.
    fn generation_changes(&mut self, space: AddressSpaceId, next: Generation);
}

/// Why an observer refused.
#[derive(Debug, thiserror::Error)]
#[error("{observer} refused it")]
pub struct ObserverError {
    /// Who, e.g. `KVM`.
    pub observer: &'static str,
    /// The error number, if the refusal has one: positive, as in `errno`.
    pub errno: Option<i32>,
    /// The reason.
    pub source: Box<dyn Error + Send + Sync>,
}
