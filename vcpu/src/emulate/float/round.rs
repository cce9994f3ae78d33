//! The one place where results are rounded (SDM vol. 1 sections 4.8.4, 4.9.1.4 and 4.9.1.5).

use super::{Env, Format, Kind, Mode, Number, flag};

/// What x87 adds to or takes from the exponent of a result whose underflow or overflow is not masked.
const WRAP: i32 = 24576;

/// Shifts right; what falls off is remembered in the lowest bit.
pub(crate) const fn jam(value: u128, count: u32) -> u128 {
    match count {
        0 => value,
        1..=127 => value >> count | (value << (128 - count) != 0) as u128,
        _ => (value != 0) as u128,
    }
}

/// Drops the low `lost` bits (1..=127): what is kept, whether anything was dropped, whether it was rounded up.
pub(crate) fn cut(value: u128, lost: u32, mode: Mode, negative: bool) -> (u128, bool, bool) {
    let kept = value >> lost;
    let rest = value & ((1 << lost) - 1);
    let half = 1 << (lost - 1);
    let up = rest != 0
        && match mode {
            Mode::Nearest => rest > half || rest == half && kept & 1 != 0,
            Mode::Down => negative,
            Mode::Up => !negative,
            Mode::Zero => false,
        };
    (kept + u128::from(up), rest != 0, up)
}

/// `value` (bit 127 set, bit 0 sticky) · 2^(exponent − 127), rounded to `format`.
pub(crate) fn round(env: &mut Env, negative: bool, exponent: i32, value: u128, format: Format) -> Number {
    let lost = 128 - format.precision;
    // As if the exponent had no bounds.
    let (kept, inexact, up) = cut(value, lost, env.mode, negative);
    let carried = kept >> format.precision != 0;
    let rounded = exponent + i32::from(carried);
    let significand = if carried {
        1 << 63
    } else {
        (kept << (64 - format.precision)) as u64
    };
    let tiny = rounded < format.emin;
    if tiny && env.masks & flag::UE == 0 {
        env.flags |= flag::UE;
        note(env, inexact, up);
        return Number::finite(negative, rounded + WRAP, significand);
    }
    if tiny && env.ftz {
        env.flags |= flag::UE | flag::PE;
        return Number::zero(negative);
    }
    if exponent < format.emin {
        let shifted = jam(value, exponent.abs_diff(format.emin));
        let (kept, inexact, up) = cut(shifted, lost, env.mode, negative);
        note(env, inexact, up);
        if tiny && inexact {
            env.flags |= flag::UE;
        }
        let significand = (kept << (64 - format.precision)) as u64;
        if significand == 0 {
            return Number::zero(negative);
        }
        return Number::finite(negative, format.emin, significand);
    }
    if rounded > format.emax {
        env.flags |= flag::OE;
        if env.masks & flag::OE == 0 {
            note(env, inexact, up);
            return Number::finite(negative, rounded - WRAP, significand);
        }
        let to_infinity = match env.mode {
            Mode::Nearest => true,
            Mode::Down => negative,
            Mode::Up => !negative,
            Mode::Zero => false,
        };
        note(env, true, to_infinity);
        return if to_infinity {
            Number::infinity(negative)
        } else {
            Number::finite(negative, format.emax, u64::MAX << (64 - format.precision))
        };
    }
    note(env, inexact, up);
    Number::finite(negative, rounded, significand)
}

fn note(env: &mut Env, inexact: bool, up: bool) {
    if inexact {
        env.flags |= flag::PE;
    }
    if up {
        env.flags |= flag::UP;
    }
}

/// A number of any format, rounded to `format`. Flags a denormal operand, and quiets a NaN that signals.
pub(crate) fn convert(env: &mut Env, number: Number, format: Format) -> Number {
    match number.kind {
        Kind::Unsupported => {
            env.flags |= flag::IE;
            Number::INDEFINITE
        }
        Kind::Nan => {
            if number.is_signaling() {
                env.flags |= flag::IE;
            }
            // Payload bits that do not fit are dropped.
            Number {
                significand: number.quieted().significand & u64::MAX << (64 - format.precision),
                ..number
            }
        }
        Kind::Finite => {
            if number.denormal {
                env.flags |= flag::DE;
                if env.refused() {
                    return number;
                }
            }
            round(
                env,
                number.negative,
                number.exponent,
                u128::from(number.significand) << 64,
                format,
            )
        }
        Kind::Zero | Kind::Infinity => number,
    }
}
