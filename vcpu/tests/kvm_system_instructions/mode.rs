//! The modes in which programs begin.

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mode {
    Real,
    Protected16,
    Protected32,
    Protected32User,
    Virtual8086,
    Compatibility,
    CompatibilityUser,
    Long,
    LongUser,
}

impl Mode {
    pub const ALL: [Self; 9] = [
        Self::Real,
        Self::Protected16,
        Self::Protected32,
        Self::Protected32User,
        Self::Virtual8086,
        Self::Compatibility,
        Self::CompatibilityUser,
        Self::Long,
        Self::LongUser,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Real => "real",
            Self::Protected16 => "16-bit protected",
            Self::Protected32 => "32-bit protected",
            Self::Protected32User => "32-bit, CPL 3",
            Self::Virtual8086 => "virtual-8086",
            Self::Compatibility => "compatibility",
            Self::CompatibilityUser => "compatibility, CPL 3",
            Self::Long => "64-bit",
            Self::LongUser => "64-bit, CPL 3",
        }
    }

    /// Default size of operands.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Real | Self::Protected16 | Self::Virtual8086 => 16,
            Self::Long | Self::LongUser => 64,
            _ => 32,
        }
    }

    /// EFER.LMA.
    pub const fn is_long(self) -> bool {
        matches!(
            self,
            Self::Compatibility | Self::CompatibilityUser | Self::Long | Self::LongUser
        )
    }

    /// Segments are paragraph numbers.
    pub const fn has_paragraphs(self) -> bool {
        matches!(self, Self::Real | Self::Virtual8086)
    }

    pub const fn is_user(self) -> bool {
        matches!(
            self,
            Self::Protected32User | Self::CompatibilityUser | Self::LongUser | Self::Virtual8086
        )
    }
}
