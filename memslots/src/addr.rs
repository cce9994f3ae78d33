//! The four kinds of address, and the only place in the workspace that knows the page shift.
//!
//! The kinds are never mixed: each is its own type with a private field, and going from one to another is a named,
//! checked step. Arithmetic on them is always explicit about overflow, because most of them come from a guest.
//! Intel SDM vol. 3A section 4.1 ("guest-physical" and "linear" addresses) and KVM's `gva_t`, `gpa_t`, `gfn_t`,
//! `hva_t` are the models.

use core::fmt;

/// log2 of the size of a base page.
pub const PAGE_SHIFT: u32 = 12;
/// Size of a base page in bytes.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// Methods that the three byte-granular address kinds share.
macro_rules! byte_address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address. Every 64-bit value is accepted: whether it is canonical or within the physical
            /// width is a question for whoever knows the mode.
            #[inline]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw 64-bit value.
            #[inline]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The offset within the 4 KiB page, `0..4096`.
            #[inline]
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }

            /// Rounded down to the start of its 4 KiB page.
            #[inline]
            pub const fn page_base(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }

            /// Whether the address is a multiple of 4096.
            #[inline]
            pub const fn is_page_aligned(self) -> bool {
                self.page_offset() == 0
            }

            /// `self + bytes`, or `None` past 2^64 - 1.
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// `self + bytes` modulo 2^64, as address arithmetic of a CPU does.
            #[inline]
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// The distance in bytes from `base` up to `self`, or `None` if `self` is below `base`.
            #[inline]
            pub const fn checked_offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

byte_address! {
    /// Guest-virtual (linear) address: what the guest's instructions use when paging is on.
    Gva
}
byte_address! {
    /// Guest-physical address: what the guest's page tables yield, and what an MMIO exit carries.
    Gpa
}
byte_address! {
    /// Host-virtual address in the VMM's own address space: where a slot's memory really is.
    Hva
}

impl Gpa {
    /// The frame that holds this address.
    #[inline]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }
}

/// Guest frame number: a guest-physical address divided by 4096.
///
/// Always at most [`Gfn::MAX`] (2^52 - 1), so that [`Gfn::base`] cannot overflow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Gfn(u64);

impl Gfn {
    /// The frame of the last page of a 64-bit guest-physical address space.
    pub const MAX: Self = Self(u64::MAX >> PAGE_SHIFT);

    /// Wraps a raw frame number, or `None` above [`Gfn::MAX`].
    #[inline]
    pub const fn new(raw: u64) -> Option<Self> {
        if raw <= Self::MAX.0 { Some(Self(raw)) } else { None }
    }

    /// Keeps the low 52 bits of `raw`: for values that were masked already, such as a page-table entry's frame field.
    #[inline]
    pub const fn from_masked(raw: u64) -> Self {
        Self(raw & Self::MAX.0)
    }

    /// The raw frame number.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address of the frame's first byte.
    #[inline]
    pub const fn base(self) -> Gpa {
        Gpa(self.0 << PAGE_SHIFT)
    }

    /// `self + pages`, or `None` past [`Gfn::MAX`].
    #[inline]
    pub const fn checked_add(self, pages: u64) -> Option<Self> {
        match self.0.checked_add(pages) {
            Some(raw) => Self::new(raw),
            None => None,
        }
    }

    /// The distance in pages from `base` up to `self`, or `None` if `self` is below `base`.
    #[inline]
    pub const fn checked_offset_from(self, base: Self) -> Option<u64> {
        self.0.checked_sub(base.0)
    }
}

impl fmt::Debug for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gfn({:#x})", self.0)
    }
}

impl fmt::Display for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::LowerHex for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

#[cfg(feature = "std")]
impl From<vm_memory::GuestAddress> for Gpa {
    fn from(address: vm_memory::GuestAddress) -> Self {
        Self(address.0)
    }
}

#[cfg(feature = "std")]
impl From<Gpa> for vm_memory::GuestAddress {
    fn from(gpa: Gpa) -> Self {
        Self(gpa.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn gpa_splits_into_frame_and_offset() {
        let gpa = Gpa::new(0xd000_1234);
        assert_eq!(gpa.gfn().get(), 0xd0001);
        assert_eq!(gpa.page_offset(), 0x234);
        assert_eq!(gpa.gfn().base(), gpa.page_base());
    }

    #[test]
    fn gfn_above_52_bits_is_refused() {
        assert_eq!(Gfn::new(Gfn::MAX.get() + 1), None);
        assert_eq!(Gfn::MAX.checked_add(1), None);
        assert_eq!(Gfn::MAX.base().get(), u64::MAX - 0xfff);
    }

    #[test]
    fn address_past_the_end_is_none_or_wraps_as_asked() {
        assert_eq!(Gva::new(u64::MAX).checked_add(1), None);
        assert_eq!(Gva::new(u64::MAX).wrapping_add(1), Gva::new(0));
        assert_eq!(Hva::new(5).checked_offset_from(Hva::new(6)), None);
    }

    #[test]
    fn debug_is_hexadecimal() {
        assert_eq!(
            format!("{:?} {:?} {}", Gpa::new(0x1f), Gfn::from_masked(0x2a), Hva::new(0x10)),
            "Gpa(0x1f) Gfn(0x2a) 0x10"
        );
    }
}
