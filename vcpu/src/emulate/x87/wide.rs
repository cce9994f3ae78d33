//! Numbers of 128 bits, for functions whose results are rounded to 64: some fifty bits are left over for errors, of
//! which the series lose less than ten.

use super::super::float::round::jam;
use super::super::float::{EXTENDED, Env, Number, flag, round};

/// bits · 2^(exponent − 127); bit 127 is set, or the number is zero.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Wide {
    pub(super) negative: bool,
    pub(super) exponent: i32,
    pub(super) bits: u128,
}

impl Wide {
    pub(super) const ZERO: Self = Self::new(false, 0, 0);
    pub(super) const ONE: Self = Self::new(false, 0, 1 << 127);
    /// π.
    pub(super) const PI: Self = Self::new(false, 1, PI);
    /// π ÷ 2.
    pub(super) const HALF_PI: Self = Self::new(false, 0, PI);
    /// π ÷ 4.
    pub(super) const QUARTER_PI: Self = Self::new(false, -1, PI);
    /// 2 ÷ π.
    pub(super) const TWO_BY_PI: Self = Self::new(false, -1, 0xa2f9_836e_4e44_1529_fc27_57d1_f534_ddc0);
    /// The natural logarithm of 2.
    pub(super) const LN_2: Self = Self::new(false, -1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af);
    /// 1 ÷ ln 2.
    pub(super) const LOG2_E: Self = Self::new(false, 0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88);

    pub(super) const fn new(negative: bool, exponent: i32, bits: u128) -> Self {
        Self {
            negative,
            exponent,
            bits,
        }
    }

    fn normalise(negative: bool, exponent: i32, bits: u128) -> Self {
        if bits == 0 {
            return Self::ZERO;
        }
        let shift = bits.leading_zeros();
        Self::new(negative, exponent - shift as i32, bits << shift)
    }

    /// Of a finite number.
    pub(super) fn of(number: &Number) -> Self {
        Self::normalise(number.negative, number.exponent, u128::from(number.significand) << 64)
    }

    pub(super) fn integer(value: i32) -> Self {
        Self::normalise(value < 0, 127, u128::from(value.unsigned_abs()))
    }

    pub(super) fn is_zero(&self) -> bool {
        self.bits == 0
    }

    pub(super) fn negated(self) -> Self {
        Self::new(!self.negative, self.exponent, self.bits)
    }

    pub(super) fn magnitude(self) -> Self {
        Self::new(false, self.exponent, self.bits)
    }

    /// Times 2^`by`.
    pub(super) fn scaled(self, by: i32) -> Self {
        Self::new(self.negative, self.exponent + by, self.bits)
    }

    pub(super) fn add(self, other: Self) -> Self {
        if self.is_zero() {
            return other;
        }
        if other.is_zero() {
            return self;
        }
        let key = |wide: &Self| (wide.exponent, wide.bits);
        let (large, small) = if key(&self) >= key(&other) {
            (self, other)
        } else {
            (other, self)
        };
        let low = jam(small.bits, large.exponent.abs_diff(small.exponent));
        if large.negative != small.negative {
            return Self::normalise(large.negative, large.exponent, large.bits - low);
        }
        match large.bits.overflowing_add(low) {
            (sum, false) => Self::new(large.negative, large.exponent, sum),
            (sum, true) => Self::new(large.negative, large.exponent + 1, sum >> 1 | sum & 1 | 1 << 127),
        }
    }

    pub(super) fn sub(self, other: Self) -> Self {
        self.add(other.negated())
    }

    pub(super) fn mul(self, other: Self) -> Self {
        if self.is_zero() || other.is_zero() {
            return Self::ZERO;
        }
        let halves = |bits: u128| (bits >> 64, bits & u128::from(u64::MAX));
        let ((a, b), (c, d)) = (halves(self.bits), halves(other.bits));
        let (ad, bc) = (a * d, b * c);
        let (_, ad_low) = halves(ad);
        let (_, bc_low) = halves(bc);
        let middle = ((b * d) >> 64) + ad_low + bc_low;
        let high = a * c + (ad >> 64) + (bc >> 64) + (middle >> 64);
        // The product's bit 255 may be clear.
        let next = middle >> 63 & 1;
        let (exponent, bits) = if high >> 127 != 0 {
            (1, high)
        } else {
            (0, high << 1 | next)
        };
        Self::new(
            self.negative != other.negative,
            self.exponent + other.exponent + exponent,
            bits,
        )
    }

    /// `other` must not be zero.
    pub(super) fn div(self, other: Self) -> Self {
        if self.is_zero() {
            return Self::ZERO;
        }
        // A bit less, so that the rest can be doubled.
        let (mut rest, divisor) = (self.bits >> 1, other.bits >> 1);
        let less = rest < divisor;
        let mut quotient = 0;
        for _ in 0..128 + u32::from(less) {
            quotient <<= 1;
            if rest >= divisor {
                rest -= divisor;
                quotient |= 1;
            }
            rest <<= 1;
        }
        let exponent = self.exponent - other.exponent - i32::from(less);
        Self::new(self.negative != other.negative, exponent, quotient)
    }

    /// Divided by a small integer.
    pub(super) fn div_small(self, by: u32) -> Self {
        Self::normalise(self.negative, self.exponent, self.bits / u128::from(by))
    }

    /// Rounded to x87's format. `inexact` says that the true value only lies close by.
    pub(super) fn round(&self, env: &mut Env, inexact: bool) -> Number {
        if self.is_zero() {
            return Number::zero(self.negative);
        }
        let bits = self.bits | u128::from(inexact);
        let result = round::round(env, self.negative, self.exponent, bits, EXTENDED);
        if inexact {
            env.flags |= flag::PE;
        }
        result
    }
}

const PI: u128 = 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1;
