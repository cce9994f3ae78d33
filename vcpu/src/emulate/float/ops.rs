//! Addition, multiplication, division, square root, comparison.

use super::round::{jam, round};
use super::{Env, Format, Kind, Number, flag};
use std::cmp::Ordering;

/// Flags an invalid operation and gives its result.
pub(crate) fn invalid(env: &mut Env) -> Number {
    env.flags |= flag::IE;
    Number::INDEFINITE
}

/// The result if an operand is no number, and the denormal flag if one is denormal.
fn special(env: &mut Env, a: &Number, b: &Number) -> Option<Number> {
    if a.kind == Kind::Unsupported || b.kind == Kind::Unsupported {
        return Some(invalid(env));
    }
    if a.is_nan() || b.is_nan() {
        return Some(propagate(env, a, b));
    }
    None
}

fn note_denormal(env: &mut Env, a: &Number, b: &Number) {
    if a.denormal || b.denormal {
        env.flags |= flag::DE;
    }
}

/// Which NaN of two operands is the result (SDM vol. 1 table 4-7).
pub(crate) fn propagate(env: &mut Env, a: &Number, b: &Number) -> Number {
    if a.is_signaling() || b.is_signaling() {
        env.flags |= flag::IE;
    }
    let first = match (a.is_nan(), b.is_nan()) {
        (true, false) => true,
        (false, _) => false,
        (true, true) if !env.x87 => true,
        (true, true) if a.is_signaling() != b.is_signaling() => b.is_signaling(),
        (true, true) => match a.significand.cmp(&b.significand) {
            Ordering::Greater => true,
            Ordering::Less => false,
            Ordering::Equal => !a.negative,
        },
    };
    if first { a.quieted() } else { b.quieted() }
}

/// a + b.
pub(crate) fn add(env: &mut Env, a: Number, b: Number, format: Format) -> Number {
    if let Some(result) = special(env, &a, &b) {
        return result;
    }
    match (a.kind, b.kind) {
        (Kind::Infinity, Kind::Infinity) if a.negative != b.negative => return invalid(env),
        (Kind::Infinity, _) => {
            note_denormal(env, &a, &b);
            return a;
        }
        (_, Kind::Infinity) => {
            note_denormal(env, &a, &b);
            return b;
        }
        (Kind::Zero, Kind::Zero) => {
            let down = env.mode == super::Mode::Down;
            let negative = if a.negative == b.negative { a.negative } else { down };
            return Number::zero(negative);
        }
        _ => {}
    }
    note_denormal(env, &a, &b);
    if env.refused() {
        return a;
    }
    if a.is_zero() {
        return round(env, b.negative, b.exponent, u128::from(b.significand) << 64, format);
    }
    if b.is_zero() {
        return round(env, a.negative, a.exponent, u128::from(a.significand) << 64, format);
    }
    let (large, small) = if (a.exponent, a.significand) >= (b.exponent, b.significand) {
        (a, b)
    } else {
        (b, a)
    };
    // One bit of room above, 63 below.
    let high = u128::from(large.significand) << 63;
    let low = jam(
        u128::from(small.significand) << 63,
        large.exponent.abs_diff(small.exponent),
    );
    let sum = if large.negative == small.negative {
        high + low
    } else {
        high - low
    };
    if sum == 0 {
        return Number::zero(env.mode == super::Mode::Down);
    }
    let shift = sum.leading_zeros();
    round(
        env,
        large.negative,
        large.exponent + 1 - shift as i32,
        sum << shift,
        format,
    )
}

/// a − b.
pub(crate) fn sub(env: &mut Env, a: Number, b: Number, format: Format) -> Number {
    // The sign of a NaN is not changed.
    let b = if b.is_nan() { b } else { b.negated() };
    add(env, a, b, format)
}

/// a · b.
pub(crate) fn mul(env: &mut Env, a: Number, b: Number, format: Format) -> Number {
    if let Some(result) = special(env, &a, &b) {
        return result;
    }
    let negative = a.negative != b.negative;
    if (a.kind == Kind::Infinity && b.is_zero()) || (a.is_zero() && b.kind == Kind::Infinity) {
        return invalid(env);
    }
    note_denormal(env, &a, &b);
    if a.kind == Kind::Infinity || b.kind == Kind::Infinity {
        return Number::infinity(negative);
    }
    if a.is_zero() || b.is_zero() {
        return Number::zero(negative);
    }
    if env.refused() {
        return a;
    }
    let product = u128::from(a.significand) * u128::from(b.significand);
    let shift = product.leading_zeros();
    let exponent = a.exponent + b.exponent + 1 - shift as i32;
    round(env, negative, exponent, product << shift, format)
}

/// a ÷ b.
pub(crate) fn div(env: &mut Env, a: Number, b: Number, format: Format) -> Number {
    if let Some(result) = special(env, &a, &b) {
        return result;
    }
    let negative = a.negative != b.negative;
    match (a.kind, b.kind) {
        (Kind::Infinity, Kind::Infinity) | (Kind::Zero, Kind::Zero) => return invalid(env),
        (Kind::Infinity, _) => {
            note_denormal(env, &a, &b);
            return Number::infinity(negative);
        }
        (_, Kind::Zero) => {
            env.flags |= flag::ZE;
            return Number::infinity(negative);
        }
        (Kind::Zero, _) | (_, Kind::Infinity) => {
            note_denormal(env, &a, &b);
            return Number::zero(negative);
        }
        _ => {}
    }
    note_denormal(env, &a, &b);
    if env.refused() {
        return a;
    }
    let quotient = quotient(a.significand, b.significand);
    let shift = quotient.leading_zeros();
    // `quotient` is scaled by 2^126.
    let exponent = a.exponent - b.exponent + 1 - shift as i32;
    round(env, negative, exponent, quotient << shift, format)
}

/// a · 2^126 ÷ b, of normalised significands, sticky.
fn quotient(a: u64, b: u64) -> u128 {
    let b = u128::from(b);
    let high = (u128::from(a) << 64) / b;
    let rest = (u128::from(a) << 64) % b;
    let low = (rest << 62) / b;
    let sticky = (rest << 62) % b != 0;
    high << 62 | low | u128::from(sticky)
}

/// √a.
pub(crate) fn sqrt(env: &mut Env, a: Number, format: Format) -> Number {
    if let Some(result) = special(env, &a, &a) {
        return result;
    }
    if a.is_zero() {
        return a;
    }
    if a.negative {
        return invalid(env);
    }
    if a.kind == Kind::Infinity {
        return a;
    }
    note_denormal(env, &a, &a);
    if env.refused() {
        return a;
    }
    // With an even exponent the radicand lies in [1, 4); two of its bits give one of the root.
    let odd = a.exponent & 1 != 0;
    let mut radicand = u128::from(a.significand) << (63 + u32::from(odd));
    let (mut root, mut rest) = (0_u128, 0_u128);
    for _ in 0..66 {
        rest = rest << 2 | radicand >> 126;
        radicand <<= 2;
        let trial = root << 2 | 1;
        root <<= 1;
        if rest >= trial {
            rest -= trial;
            root |= 1;
        }
    }
    let wide = root << 62 | u128::from(rest != 0);
    round(env, false, (a.exponent - i32::from(odd)) / 2, wide, format)
}

/// Which is larger; `None` if there is no order. Does not look at signaling.
pub(crate) fn compare(a: &Number, b: &Number) -> Option<Ordering> {
    let ordered = |number: &Number| !matches!(number.kind, Kind::Nan | Kind::Unsupported);
    if !ordered(a) || !ordered(b) {
        return None;
    }
    if a.is_zero() && b.is_zero() {
        return Some(Ordering::Equal);
    }
    let key = |number: &Number| match number.kind {
        Kind::Zero => (0, 0, 0),
        Kind::Infinity => (2, 0, 0),
        _ => (1, number.exponent, number.significand),
    };
    Some(match (a.negative && !a.is_zero(), b.negative && !b.is_zero()) {
        (true, true) => key(b).cmp(&key(a)),
        (false, false) => key(a).cmp(&key(b)),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
    })
}
