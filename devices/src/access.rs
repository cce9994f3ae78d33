//! What an access is: a size and a direction. Offsets are relative to the start of the region a device claimed.

/// Width of one device access.
///
/// These are all the widths x86 can put on the bus in one piece; a wider or page-crossing guest access arrives as
/// several (`vcpu` splits it).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum IoSize {
    /// 1 byte.
    B1 = 1,
    /// 2 bytes.
    B2 = 2,
    /// 4 bytes.
    B4 = 4,
    /// 8 bytes (MMIO only; port I/O ends at 4).
    B8 = 8,
}

impl IoSize {
    /// Every width, ascending.
    pub const ALL: [Self; 4] = [Self::B1, Self::B2, Self::B4, Self::B8];

    /// The width of `bytes` bytes, or `None` unless that is 1, 2, 4 or 8.
    #[inline]
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::B1),
            2 => Some(Self::B2),
            4 => Some(Self::B4),
            8 => Some(Self::B8),
            _ => None,
        }
    }

    /// The width in bytes: 1, 2, 4 or 8.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self as u64
    }

    /// The value with every bit of this width set: what an unclaimed read returns.
    #[inline]
    pub const fn all_ones(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }

    /// `value` cut to this width.
    #[inline]
    pub const fn truncate(self, value: u64) -> u64 {
        value & self.all_ones()
    }
}

/// Direction of an access, with the value written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum IoOp {
    /// The guest reads; the device answers [`crate::IoOutcome::Value`].
    Read,
    /// The guest writes this value. Bits above the access size are zero.
    Write(u64),
}

impl IoOp {
    /// Whether this is a read.
    #[inline]
    pub const fn is_read(self) -> bool {
        matches!(self, Self::Read)
    }
}
