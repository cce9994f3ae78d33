//! Between integers and floating point, and rounding to an integer that stays floating point.

use super::round::{cut, jam, round};
use super::{Env, Format, Kind, Mode, Number, flag};

/// An integer as a number, exactly.
pub(crate) const fn exact(value: i64) -> Number {
    Number::normalise(value < 0, 63, value.unsigned_abs())
}

/// An integer rounded to `format`.
pub(crate) fn from_integer(env: &mut Env, value: i64, format: Format) -> Number {
    let number = exact(value);
    if number.is_zero() {
        return number;
    }
    round(
        env,
        number.negative,
        number.exponent,
        u128::from(number.significand) << 64,
        format,
    )
}

/// Magnitude of a finite number rounded to an integer; `None` if it has more than 64 bits. Whether it was rounded, and up.
fn magnitude(number: &Number, mode: Mode) -> Option<(u64, bool, bool)> {
    if number.exponent > 63 {
        return None;
    }
    // Sixty-four bits of integer, sixty-four of fraction.
    let fixed = jam(u128::from(number.significand) << 64, (63 - number.exponent) as u32);
    let (kept, inexact, up) = cut(fixed, 64, mode, number.negative);
    u64::try_from(kept).ok().map(|kept| (kept, inexact, up))
}

/// To a signed integer of `bits` bits (at most 64); what does not fit is invalid and gives `None`.
pub(crate) fn to_integer(env: &mut Env, number: &Number, bits: u32, mode: Mode) -> Option<i64> {
    let limit = 1_u64 << (bits - 1);
    let result = match number.kind {
        Kind::Zero => Some((0, false, false)),
        Kind::Finite => magnitude(number, mode),
        _ => None,
    };
    match result {
        Some((value, inexact, up)) if value < limit || value == limit && number.negative => {
            if inexact {
                env.flags |= flag::PE;
            }
            if up {
                env.flags |= flag::UP;
            }
            let value = value as i64;
            Some(if number.negative { value.wrapping_neg() } else { value })
        }
        _ => {
            env.flags |= flag::IE;
            None
        }
    }
}

/// Rounds to an integer that stays a number (of the same format). `quiet` leaves the precision flag alone.
pub(crate) fn integral(env: &mut Env, number: Number, mode: Mode, quiet: bool) -> Number {
    match number.kind {
        Kind::Zero | Kind::Infinity => number,
        Kind::Nan | Kind::Unsupported => super::round::convert(env, number, super::EXTENDED),
        Kind::Finite if number.exponent >= 63 => number,
        Kind::Finite => {
            let Some((value, inexact, up)) = magnitude(&number, mode) else {
                return number;
            };
            if inexact && !quiet {
                env.flags |= flag::PE;
            }
            if up && !quiet {
                env.flags |= flag::UP;
            }
            Number::normalise(number.negative, 63, value)
        }
    }
}
