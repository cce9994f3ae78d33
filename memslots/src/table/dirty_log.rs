//! The dirty logs of a [`SlotTable`]: `KVM_GET_DIRTY_LOG` and `KVM_CLEAR_DIRTY_LOG`.

use super::SlotTable;
use crate::error::DirtyLogError;
use crate::limits::DirtyLogMode;
use crate::request::SlotRequest;
use crate::slot::MemSlot;
use alloc::vec::Vec;

impl SlotTable {
    /// The written pages of a slot, as `KVM_GET_DIRTY_LOG` returns them; cleared unless the mode is manual.
    ///
    /// # Errors
    /// As the ioctl: [`DirtyLogError::Ring`], [`DirtyLogError::BadSlot`], [`DirtyLogError::NoLog`].
    pub fn get_dirty_log(&self, slot: u32) -> Result<Vec<u64>, DirtyLogError> {
        let dirty = self.logging_slot(slot)?.dirty().ok_or(DirtyLogError::NoLog { slot })?;
        Ok(match self.limits.dirty_log {
            DirtyLogMode::ManualClear { .. } => dirty.snapshot(),
            DirtyLogMode::GetAndClear | DirtyLogMode::Ring => dirty.get_and_clear(),
        })
    }

    /// Clears pages of a slot's log, as `KVM_CLEAR_DIRTY_LOG` does; see [`crate::DirtyBitmap::clear`]. Returns how many
    /// pages were dirty and are now clean.
    ///
    /// # Errors
    /// As the ioctl: [`DirtyLogError::Ring`], [`DirtyLogError::BadSlot`], [`DirtyLogError::NoLog`],
    /// [`DirtyLogError::Range`].
    pub fn clear_dirty_log(
        &self,
        slot: u32,
        first_page: u64,
        num_pages: u64,
        bits: &[u64],
    ) -> Result<u64, DirtyLogError> {
        let found = self.logging_slot(slot);
        // The kernel looks at the alignment of the first page before it looks for the slot.
        if !matches!(found, Err(DirtyLogError::Ring | DirtyLogError::BadSlot { .. })) && !first_page.is_multiple_of(64)
        {
            let pages = found.map_or(0, |slot| slot.range().pages());
            return Err(crate::dirty::BadClearRange {
                first_page,
                num_pages,
                pages,
            }
            .into());
        }
        let dirty = found?.dirty().ok_or(DirtyLogError::NoLog { slot })?;
        Ok(dirty.clear(first_page, num_pages, bits)?)
    }

    fn logging_slot(&self, slot: u32) -> Result<&MemSlot, DirtyLogError> {
        let (limits, request) = (&self.limits, SlotRequest::delete(slot));
        if limits.dirty_log == DirtyLogMode::Ring {
            return Err(DirtyLogError::Ring);
        }
        let bad = DirtyLogError::BadSlot {
            slot,
            max_slots: limits.slots(),
            spaces: limits.spaces(),
        };
        let space = self.spaces.get(usize::from(request.space_index())).ok_or(bad)?;
        if request.id().get() >= limits.slots() {
            return Err(bad);
        }
        space.current.by_id(request.id()).ok_or(DirtyLogError::NoLog { slot })
    }
}
