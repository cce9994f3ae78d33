//! The parts of a register, on hosts without SSE2; `simd` says the same by instructions.

/// Whether the host can do what [`pick`] says.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) const fn can_pick() -> bool {
    false
}

/// Shuffles whose order the host takes from a register.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) const fn pick(_mnemonic: iced_x86::Mnemonic) -> Option<super::shuffle::Pick> {
    None
}

/// The low 64 bits.
pub(crate) const fn low(value: u128) -> u64 {
    value as u64
}

/// A register of which only the low 64 bits are not zero.
pub(crate) const fn from_low(value: u64) -> u128 {
    value as u128
}

/// A register whose low 32 bits are those of another.
pub(crate) const fn with_low_32(old: u128, new: u128) -> u128 {
    old >> 32 << 32 | new as u32 as u128
}

/// A register whose low 64 bits are those of another.
pub(crate) const fn with_low_64(old: u128, new: u128) -> u128 {
    old >> 64 << 64 | new as u64 as u128
}

/// The lowest of four singles.
pub(crate) const fn single(register: u128) -> f32 {
    f32::from_bits(register as u32)
}

/// A register whose lowest single is replaced.
pub(crate) const fn with_single(old: u128, new: f32) -> u128 {
    with_low_32(old, new.to_bits() as u128)
}

/// The lower of two doubles.
pub(crate) const fn double(register: u128) -> f64 {
    f64::from_bits(register as u64)
}

/// A register whose lower double is replaced.
pub(crate) const fn with_double(old: u128, new: f64) -> u128 {
    with_low_64(old, new.to_bits() as u128)
}

/// The sign of each byte.
pub(crate) fn byte_signs(value: u128) -> u32 {
    let signs = value.to_le_bytes().map(|byte| u32::from(byte >> 7));
    (0..16).fold(0, |mask, byte| mask | signs[byte] << byte)
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::{lanes, parts, shuffle, simd};
    use iced_x86::Mnemonic;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_by_instructions_are_those_of_the_number(a: u128, b: u64, c: u128) {
            prop_assert_eq!(parts::low(a), super::low(a));
            prop_assert_eq!(parts::from_low(b), super::from_low(b));
            prop_assert_eq!(parts::with_low_32(a, c), super::with_low_32(a, c));
            prop_assert_eq!(parts::with_low_64(a, c), super::with_low_64(a, c));
            prop_assert_eq!(parts::single(a).to_bits(), super::single(a).to_bits());
            prop_assert_eq!(parts::double(a).to_bits(), super::double(a).to_bits());
            let (single, double) = (super::single(c), super::double(c));
            prop_assert_eq!(parts::with_single(a, single), super::with_single(a, single));
            prop_assert_eq!(parts::with_double(a, double), super::with_double(a, double));
            prop_assert_eq!(parts::byte_signs(a), super::byte_signs(a));
        }

        #[test]
        fn operations_by_instructions_are_those_by_lanes(a: u128, b: u128, control: u8, like in 0_u8..3) {
            // Lanes that are equal, or differ by little.
            let b = match like {
                0 => b,
                1 => a ^ b & 0x01_0080_0000_0001_8000_0000_0080_0001,
                _ => a,
            };
            for mnemonic in Mnemonic::values() {
                if let Some(by_host) = simd::lanes(mnemonic) {
                    let expected = lanes::by_lanes(mnemonic).map(|by_lanes| by_lanes(a, b));
                    prop_assert_eq!(Some(by_host(a, b)), expected, "{:?} {:#x} {:#x}", mnemonic, a, b);
                }
                if let Some(by_host) = simd::shift(mnemonic) {
                    for count in [u32::from(control), u32::from(control) & 31] {
                        let expected = lanes::shift_by_lanes(mnemonic).map(|by_lanes| by_lanes(a, count));
                        prop_assert_eq!(Some(by_host(a, count)), expected, "{:?} {:#x} {}", mnemonic, a, count);
                    }
                }
                if let Some(by_host) = simd::shuffle(mnemonic) {
                    for control in [control, control & 31] {
                        let expected = shuffle::by_lanes(mnemonic).map(|by_lanes| by_lanes(a, b, control));
                        prop_assert_eq!(
                            Some(by_host(a, b, control)), expected, "{:?} {:#x} {:#x} {}", mnemonic, a, b, control
                        );
                    }
                }
                if let Some(by_host) = simd::pick(mnemonic)
                    && simd::can_pick()
                {
                    let expected = shuffle::by_lanes(mnemonic).map(|by_lanes| by_lanes(a, b, control));
                    prop_assert_eq!(by_host(a, b, control), expected, "{:?} {:#x} {:#x} {}", mnemonic, a, b, control);
                }
            }
        }
    }
}
