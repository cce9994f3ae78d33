//! [`AccessMask`]: what a mapping allows, in KVM's three-bit encoding.

use core::fmt;
use core::ops::{BitAnd, BitOr};

/// A set of permissions: execute, write, user.
///
/// Numbered as KVM's `ACC_EXEC_MASK`, `ACC_WRITE_MASK` and `ACC_USER_MASK` (`arch/x86/kvm/mmu/spte.h`), because the
/// write and user bits are copied as they are into the R/W and U/S positions of an MMIO SPTE and into traces.
/// Reading is always allowed where anything is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct AccessMask(u8);

impl AccessMask {
    /// Nothing beyond reading.
    pub const NONE: Self = Self(0);
    /// Instruction fetch.
    pub const EXEC: Self = Self(1);
    /// Write.
    pub const WRITE: Self = Self(1 << 1);
    /// Use at CPL 3.
    pub const USER: Self = Self(1 << 2);
    /// All three.
    pub const ALL: Self = Self(7);

    /// Keeps the low three bits of `raw`.
    #[inline]
    #[must_use]
    pub const fn from_masked(raw: u8) -> Self {
        Self(raw & Self::ALL.0)
    }

    /// The raw bits, `0..8`.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether every permission of `other` is in `self`.
    #[inline]
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The permissions in both. `const` form of `&`.
    #[inline]
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The permissions of `self` that are not in `other`.
    #[inline]
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitAnd for AccessMask {
    type Output = Self;

    #[inline]
    fn bitand(self, other: Self) -> Self {
        self.intersection(other)
    }
}

impl BitOr for AccessMask {
    type Output = Self;

    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for AccessMask {
    /// `AccessMask(xwu)`, with `-` for what is missing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |bit: Self, letter| if self.contains(bit) { letter } else { '-' };
        write!(
            f,
            "AccessMask({}{}{})",
            letter(Self::EXEC, 'x'),
            letter(Self::WRITE, 'w'),
            letter(Self::USER, 'u')
        )
    }
}
