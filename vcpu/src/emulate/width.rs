//! Operand widths of 1, 2, 4 and 8 bytes, and arithmetic modulo them.

/// Width of an integer operand.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Width {
    /// Byte.
    B1 = 1,
    /// Word.
    B2 = 2,
    /// Doubleword.
    B4 = 4,
    /// Quadword.
    B8 = 8,
}

impl Width {
    /// The width of `bytes` bytes; anything else than 1, 2 and 4 counts as 8.
    #[inline]
    pub const fn of(bytes: usize) -> Self {
        match bytes {
            1 => Self::B1,
            2 => Self::B2,
            4 => Self::B4,
            _ => Self::B8,
        }
    }

    /// In bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self as u64
    }

    /// In bytes, for slices.
    #[inline]
    pub const fn size(self) -> usize {
        self as usize
    }

    /// In bits.
    #[inline]
    pub const fn bits(self) -> u32 {
        8 * self as u32
    }

    /// All bits of the width.
    #[inline]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The sign bit.
    #[inline]
    pub const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// `value` cut to the width.
    #[inline]
    pub const fn cut(self, value: u64) -> u64 {
        value & self.mask()
    }

    /// The low bits of `value` as a signed number of this width, extended to 64 bits.
    #[inline]
    pub const fn extend(self, value: u64) -> u64 {
        let shift = 64 - self.bits();
        (((value << shift) as i64) >> shift) as u64
    }
}
