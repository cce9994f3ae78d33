//! The two address spaces a bus can serve: guest-physical memory ([`Gpa`]) and I/O ports ([`Port`]).

use std::fmt;
use umbra_memslots::{Gpa, PAGE_SHIFT};

/// Number of an x86 I/O port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Port(u16);

impl Port {
    /// Wraps a port number; every 16-bit value is one.
    #[inline]
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// The port number.
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({:#x})", self.0)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::LowerHex for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for umbra_memslots::Gpa {}
    impl Sealed for super::Port {}
}

/// An address that a [`Bus`](super::Bus) can route: [`Gpa`] or [`Port`]. Sealed: the index is tuned for these two.
pub trait BusAddress: sealed::Sealed + Copy + Eq + Ord + fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// What the bus is called in messages: `MMIO` or `PIO`.
    const BUS_NAME: &'static str;
    /// The highest address.
    const LAST: Self;
    /// log2 of the smallest block that the index keys by. MMIO devices mostly own whole pages, so a page; port devices
    /// are a few ports each and lie side by side, so one port.
    const BLOCK_SHIFT: u32;

    /// The address as a number.
    fn raw(self) -> u64;

    /// The address of this number; `None` past [`BusAddress::LAST`].
    fn from_raw(raw: u64) -> Option<Self>;
}

impl BusAddress for Gpa {
    const BUS_NAME: &'static str = "MMIO";
    const LAST: Self = Self::new(u64::MAX);
    const BLOCK_SHIFT: u32 = PAGE_SHIFT;

    #[inline]
    fn raw(self) -> u64 {
        self.get()
    }

    #[inline]
    fn from_raw(raw: u64) -> Option<Self> {
        Some(Self::new(raw))
    }
}

impl BusAddress for Port {
    const BUS_NAME: &'static str = "PIO";
    const LAST: Self = Self(u16::MAX);
    const BLOCK_SHIFT: u32 = 0;

    #[inline]
    fn raw(self) -> u64 {
        u64::from(self.0)
    }

    #[inline]
    fn from_raw(raw: u64) -> Option<Self> {
        u16::try_from(raw).ok().map(Self)
    }
}
