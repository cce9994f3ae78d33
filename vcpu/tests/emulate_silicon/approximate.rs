//! Results that the architecture defines only up to an error.

use iced_x86::{Instruction, Mnemonic as M};

/// Whether two contents of a kind of register (`compare::STATE`) are equal as far as the architecture goes.
pub fn close(insn: &Instruction, what: &str, left: &[u8], right: &[u8]) -> bool {
    match insn.mnemonic() {
        // Whether an approximation was exact, and on which side it lies, is left open.
        mnemonic if is_transcendental(mnemonic) && what == "status" => {
            let defined = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]) & !(PRECISION | C1 | SUMMARY);
            defined(left) == defined(right)
        }
        M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss if left.len() == 16 => left
            .chunks(4)
            .zip(right.chunks(4))
            .all(|(left, right)| near(single(left), single(right))),
        mnemonic if is_transcendental(mnemonic) && what == "st" => extended(left).abs_diff(extended(right)) <= UNITS,
        _ => false,
    }
}

const PRECISION: u16 = 1 << 5;
const C1: u16 = 1 << 9;
/// ES and B, which follow the others.
const SUMMARY: u16 = 0x8080;

/// Units in the last place of 80-bit numbers: one that the processor may be off, one for the core.
const UNITS: u128 = 2;

fn is_transcendental(mnemonic: M) -> bool {
    matches!(
        mnemonic,
        M::F2xm1 | M::Fyl2x | M::Fyl2xp1 | M::Fpatan | M::Fsin | M::Fcos | M::Fptan | M::Fsincos
    )
}

/// A register's content as a number that grows by one from each representable number to the next.
fn extended(bytes: &[u8]) -> i128 {
    let mantissa = i128::from(u64::from_le_bytes(bytes[..8].try_into().unwrap()) & !(1 << 63));
    let sign_exponent = u16::from_le_bytes([bytes[8], bytes[9]]);
    let magnitude = i128::from(sign_exponent & 0x7fff) << 63 | mantissa;
    if sign_exponent & 0x8000 != 0 {
        -magnitude
    } else {
        magnitude
    }
}

fn single(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Both may be off by 1.5 / 4096, and become zero if they are tiny.
fn near(left: f32, right: f32) -> bool {
    let tiny = |x: f32| x.abs() <= f32::MIN_POSITIVE * 1.001;
    left.to_bits() == right.to_bits()
        || (tiny(left) && tiny(right) && left.is_sign_negative() == right.is_sign_negative())
        || (left / right - 1.0).abs() <= 3.0 / 4096.0
}
