//! Sizes as people write them: `512M`, `4G`, `65536K`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes, written with a unit.
///
/// Units are binary (`K` = 1024) and case does not matter; `KiB`, `MiB`, `GiB`, `TiB` mean the same, and `B` is plain
/// bytes. A number without a unit is refused, because people expect different ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ByteSize(u64);

/// Why a size could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SizeError {
    /// Nothing, or something that doesn't begin with a number.
    #[error("`{0}` is not a size: write a whole number and a unit, such as 512M or 2G")]
    NotANumber(String),
    /// A number with no unit behind it.
    #[error("`{0}` has no unit: did you mean {0}M?")]
    NoUnit(String),
    /// Something other than a known unit behind the number.
    #[error("`{unit}` in `{text}` is not a unit of size: use K, M, G or T (or B for bytes)")]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// The part that was not understood.
        unit: String,
    },
    /// More bytes than 64 bits can count.
    #[error("`{0}` is more than 64 bits can count")]
    TooLarge(String),
}

impl ByteSize {
    /// A size of `bytes` bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size of `mib` times 2^20 bytes.
    pub const fn mib(mib: u32) -> Self {
        Self((mib as u64) << 20)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(SizeError::NotANumber(text.to_owned()));
        }
        let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" => return Err(SizeError::NoUnit(text.to_owned())),
            "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => {
                return Err(SizeError::UnknownUnit {
                    text: text.to_owned(),
                    unit: unit.trim().to_owned(),
                });
            }
        };
        let too_large = || SizeError::TooLarge(text.to_owned());
        let number: u64 = number.parse().map_err(|_| too_large())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(too_large)
    }
}

/// The largest unit that divides it: `512M`, not `0.5G`, so that printing and parsing are inverse.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0.trailing_zeros() {
            _ if self.0 == 0 => (0, "B"),
            40.. => (40, "T"),
            30.. => (30, "G"),
            20.. => (20, "M"),
            10.. => (10, "K"),
            _ => (0, "B"),
        };
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

impl<'de> serde::Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parse_units_in_any_case() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("512m", 512 << 20),
            ("2G", 2 << 30),
            ("2 GiB", 2 << 30),
            ("64k", 64 << 10),
            ("1T", 1 << 40),
            ("4096B", 4096),
            (" 1M ", 1 << 20),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn parse_error_says_what_to_write() {
        let message = |text: &str| text.parse::<ByteSize>().unwrap_err().to_string();
        assert!(message("512").contains("did you mean 512M?"));
        assert!(message("lots").contains("512M or 2G"));
        assert!(message("").contains("512M or 2G"));
        assert!(message("-1M").contains("not a size"));
        assert!(message("5X").contains("`X` in `5X`"));
        assert!(message("1.5G").contains("`.5G`"));
        assert!(message("99999999999999999999M").contains("64 bits"));
        assert!(message("17179869184G").contains("64 bits"));
    }

    proptest! {
        #[test]
        fn display_then_parse_is_identity(bytes: u64, shift in 0u32..64) {
            let size = ByteSize(bytes << shift);
            prop_assert_eq!(size.to_string().parse::<ByteSize>(), Ok(size));
        }
    }
}
