//! [`Generation`]: the number by which everything derived from a set of slots knows whether it is still true.
//!
//! The numbers are KVM's (`kvm_swap_active_memslots`, `KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS`): each address space starts
//! at its own index and every completed replacement adds the number of address spaces, so no two spaces ever have the
//! same number. While a replacement is under way, readers see the *old* number with bit 63 set; a value stamped in
//! that time therefore carries the old number and is stale as soon as the replacement completes.

use crate::slot::AddressSpaceId;
use core::fmt;

/// The generation of one address space's slots: a 63-bit number and the in-progress mark.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Generation(u64);

impl Generation {
    /// The mark of an update in progress (KVM's `KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS`).
    pub const IN_PROGRESS: u64 = 1 << 63;

    /// The generation of a new, empty address space.
    pub const fn initial(space: AddressSpaceId) -> Self {
        Self(space.index() as u64)
    }

    /// Wraps a raw value, bit 63 being the mark.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw value, with the mark in bit 63.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number without the mark.
    #[inline]
    pub const fn number(self) -> u64 {
        self.0 & !Self::IN_PROGRESS
    }

    /// Whether an update is in progress. Then nothing that is concluded from the slots may be cached as current: the
    /// update may yet complete or be rolled back.
    #[inline]
    pub const fn is_in_progress(self) -> bool {
        self.0 & Self::IN_PROGRESS != 0
    }

    /// The same number with the mark: what readers see during a replacement.
    #[must_use]
    pub const fn begin_update(self) -> Self {
        Self(self.0 | Self::IN_PROGRESS)
    }

    /// The generation after a replacement, in a table with `spaces` address spaces; wraps at 2^63.
    #[must_use]
    pub const fn finish_update(self, spaces: u8) -> Self {
        Self(self.number().wrapping_add(spaces as u64) & !Self::IN_PROGRESS)
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Generation({self})")
    }
}

impl fmt::Display for Generation {
    /// `12`, or `12 (update in progress)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())?;
        if self.is_in_progress() {
            f.write_str(" (update in progress)")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn update_keeps_the_old_number_until_it_completes() {
        let before = Generation::from_raw(6);
        let during = before.begin_update();
        assert!(during.is_in_progress());
        assert_eq!(during.number(), before.number());
        assert_eq!(during.finish_update(2), Generation::from_raw(8));
        assert_eq!(format!("{during}"), "6 (update in progress)");
    }

    #[test]
    fn two_spaces_never_share_a_number() {
        let mut normal = Generation::initial(AddressSpaceId::Normal);
        let mut smm = Generation::initial(AddressSpaceId::Smm);
        for _ in 0..10 {
            assert_ne!(normal.number() % 2, smm.number() % 2);
            normal = normal.begin_update().finish_update(2);
            smm = smm.begin_update().finish_update(2);
        }
    }

    #[test]
    fn number_wraps_without_touching_the_mark() {
        let last = Generation::from_raw(u64::MAX >> 1);
        assert_eq!(last.begin_update().finish_update(1), Generation::from_raw(0));
    }
}
