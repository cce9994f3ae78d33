//! The series behind the transcendental functions, as functions of numbers of 128 bits.

use super::wide::Wide;

/// Σ zᵏ ÷ (2k + 1) · (−1)ᵏ if `alternating`, for |z| < 1/16.
fn odd_series(z: Wide, alternating: bool) -> Wide {
    (0..=34_u32).rev().fold(Wide::ZERO, |sum, k| {
        let next = sum.mul(z);
        let next = if alternating { next.negated() } else { next };
        next.add(Wide::ONE.div_small(2 * k + 1))
    })
}

/// 2 · artanh z for |z| < 1/5: the natural logarithm of (1 + z) ÷ (1 − z).
fn log_ratio(z: Wide) -> Wide {
    odd_series(z.mul(z), false).mul(z).scaled(1)
}

/// Binary logarithm of a positive number.
pub(super) fn log2(x: Wide) -> Wide {
    // Significand between 1/√2 and √2.
    let above = x.bits > 0xb504_f333_f9de_6484_597d_89b3_754a_be9f;
    let exponent = x.exponent + i32::from(above);
    let m = x.scaled(-exponent);
    let z = m.sub(Wide::ONE).div(m.add(Wide::ONE));
    log_ratio(z).mul(Wide::LOG2_E).add(Wide::integer(exponent))
}

/// Binary logarithm of 1 + x, for x above −1.
pub(super) fn log2_plus_one(x: Wide) -> Wide {
    if x.exponent < -2 {
        log_ratio(x.div(x.add(Wide::integer(2)))).mul(Wide::LOG2_E)
    } else {
        log2(x.add(Wide::ONE))
    }
}

/// 2ˣ − 1 for |x| ≤ 1.
pub(super) fn exp2_minus_one(x: Wide) -> Wide {
    let y = x.mul(Wide::LN_2);
    let series = (2..=36_u32)
        .rev()
        .fold(Wide::ONE, |sum, n| sum.mul(y).div_small(n).add(Wide::ONE));
    series.mul(y)
}

/// The angle of a point in the first quadrant.
pub(super) fn arc_tangent(y: Wide, x: Wide) -> Wide {
    /// Arc tangents of 1/4, 1/2 and 3/4.
    const QUARTERS: [Wide; 3] = [
        Wide::new(false, -3, 0xfadb_afc9_6406_eb15_6dc7_9ef5_f7a2_17e5),
        Wide::new(false, -2, 0xed63_382b_0dda_7b45_6fe4_45ec_bc3a_8d03),
        Wide::new(false, -1, 0xa4bc_7d19_34f7_0924_19a8_7f2a_457d_ac9e),
    ];
    if y.sub(x).negative || y == x {
        let t = y.div(x);
        // The nearest quarter.
        let eighths = if t.exponent < -3 {
            0
        } else {
            (t.bits >> (124 - t.exponent)) as usize
        };
        let quarters = eighths.div_ceil(2);
        if quarters == 0 {
            return odd_series(t.mul(t), true).mul(t);
        }
        let near = Wide::integer(quarters as i32).scaled(-2);
        let rest = t.sub(near).div(Wide::ONE.add(t.mul(near)));
        let angle = QUARTERS.get(quarters - 1).copied().unwrap_or(Wide::QUARTER_PI);
        odd_series(rest.mul(rest), true).mul(rest).add(angle)
    } else {
        Wide::HALF_PI.sub(arc_tangent(x, y))
    }
}

/// How often π/2 goes into `x` (modulo 4), and what is left, at most a little more than π/4.
fn reduce(x: Wide) -> (u64, Wide) {
    if x.exponent < -1 {
        return (0, x);
    }
    /// π/2 as processors have it, 256 bits after the point, low limbs first.
    const HALF_PI: [u64; 5] = [0, 0, 1 << 63, 0x921f_b544_42d1_8469, 1];
    let times = x.magnitude().mul(Wide::TWO_BY_PI).add(Wide::ONE.scaled(-1));
    let count = if times.exponent < 0 {
        0
    } else {
        (times.bits >> (127 - times.exponent)) as u64
    };
    // |x| in the same form: its lowest bit has weight 2^(exponent − 63).
    let mut limbs = [0_u64; 6];
    let shift = (x.exponent + 193) as u32;
    let at = (shift / 64) as usize;
    let placed = (x.bits >> 64) << (shift % 64);
    (limbs[at], limbs[at + 1]) = (placed as u64, (placed >> 64) as u64);
    let (mut carry, mut borrow) = (0_u128, false);
    for (index, limb) in limbs.iter_mut().enumerate() {
        let part = HALF_PI.get(index).copied().unwrap_or(0);
        carry += u128::from(part) * u128::from(count);
        let (less, first) = limb.overflowing_sub(carry as u64);
        let (less, second) = less.overflowing_sub(u64::from(borrow));
        (*limb, borrow) = (less, first || second);
        carry >>= 64;
    }
    if borrow {
        // Negate.
        let mut carry = true;
        for limb in &mut limbs {
            (*limb, carry) = (!*limb).overflowing_add(u64::from(carry));
        }
    }
    let top = (1..6).rev().find(|index| limbs[*index] != 0).unwrap_or(1);
    let below = if top >= 2 { limbs[top - 2] } else { 0 };
    let high = u128::from(limbs[top]) << 64 | u128::from(limbs[top - 1]);
    let shift = high.leading_zeros();
    let bits = if shift == 0 {
        high
    } else {
        high << shift | u128::from(below) >> (64 - shift.min(63))
    };
    let rest = Wide::new(x.negative != borrow, 64 * top as i32 - 256 + 63 - shift as i32, bits);
    let count = if x.negative { count.wrapping_neg() } else { count };
    (count & 3, rest)
}

/// Sine (from term 1) or cosine (from term 0) of a small number.
fn circular(x: Wide, first: u32) -> Wide {
    let square = x.mul(x);
    let series = (1..=18_u32).rev().fold(Wide::ONE, |sum, k| {
        let n = 2 * k + first;
        Wide::ONE.sub(sum.mul(square).div_small(n * (n - 1)))
    });
    if first == 1 { series.mul(x) } else { series }
}

pub(super) fn sine_and_cosine(x: Wide) -> (Wide, Wide) {
    let (quadrant, rest) = reduce(x);
    let (sine, cosine) = (circular(rest, 1), circular(rest, 0));
    match quadrant {
        0 => (sine, cosine),
        1 => (cosine, sine.negated()),
        2 => (sine.negated(), cosine.negated()),
        _ => (cosine.negated(), sine),
    }
}
