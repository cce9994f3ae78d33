//! [`PagingMode`]: which of the five ways of translation is in force (SDM vol. 3A, 4.1.1).

use super::control::{PagingRegs, cr0, cr4, efer};
use umbra_memslots::Gva;

/// The way of translation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PagingMode {
    /// CR0.PG = 0: linear addresses are physical.
    None,
    /// Two levels of 32-bit entries.
    Bits32,
    /// Four PDPTE registers over two levels of 64-bit entries.
    Pae,
    /// Four levels, 48-bit linear addresses.
    Level4,
    /// Five levels, 57-bit linear addresses.
    Level5,
}

impl PagingMode {
    /// All modes.
    pub const ALL: [Self; 5] = [Self::None, Self::Bits32, Self::Pae, Self::Level4, Self::Level5];

    /// The mode that the registers put the CPU in.
    #[must_use]
    pub const fn of(regs: &PagingRegs) -> Self {
        if regs.cr0 & cr0::PG == 0 {
            Self::None
        } else if regs.cr4 & cr4::PAE == 0 {
            Self::Bits32
        } else if regs.efer & efer::LMA == 0 {
            Self::Pae
        } else if regs.cr4 & cr4::LA57 == 0 {
            Self::Level4
        } else {
            Self::Level5
        }
    }

    /// The level of the root's entries: 0 without paging, 3 for PAE (its PDPTEs).
    #[must_use]
    pub const fn levels(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Bits32 => 2,
            Self::Pae => 3,
            Self::Level4 => 4,
            Self::Level5 => 5,
        }
    }

    /// Whether linear addresses have 64 bits.
    #[must_use]
    pub const fn is_long(self) -> bool {
        matches!(self, Self::Level4 | Self::Level5)
    }

    /// Whether an address is canonical: all bits above the translated ones equal the highest of those. In modes with
    /// 32-bit linear addresses, whether it is below 4 GiB; without paging, always.
    #[must_use]
    pub const fn is_canonical(self, gva: Gva) -> bool {
        #[expect(clippy::cast_possible_wrap, reason = "sign extension is what canonical means")]
        let signed = gva.get() as i64;
        match self {
            Self::None => true,
            Self::Bits32 | Self::Pae => gva.get() >> 32 == 0,
            Self::Level4 => signed << 16 >> 16 == signed,
            Self::Level5 => signed << 7 >> 7 == signed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_is_sign_extended_from_the_top_translated_bit() {
        for (mode, bits) in [(PagingMode::Level4, 48), (PagingMode::Level5, 57)] {
            let top = 1u64 << (bits - 1);
            for (raw, canonical) in [
                (top - 1, true),
                (top, false),
                (top | !(top - 1), true),
                (!(top - 1) - 1, false),
                (u64::MAX, true),
            ] {
                assert_eq!(mode.is_canonical(Gva::new(raw)), canonical, "{mode:?} {raw:#x}");
            }
        }
        assert!(!PagingMode::Pae.is_canonical(Gva::new(1 << 32)));
    }
}
