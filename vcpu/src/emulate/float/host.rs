//! Arithmetic by the machine that runs us, where it gives the same bits and flags: rounding is to nearest, nothing is
//! flushed, every exception is masked and the precision flag is set already; operands are normal or zero, and so is the
//! result. Then no other flag than that one can rise, and IEEE 754 leaves one result.

/// MXCSR bits that must be so: all masks and the precision flag; no rounding mode, FTZ or DAZ.
const NEEDED: u32 = 0x1fa0;
const LOOKED_AT: u32 = 0xffe0;

/// Whether MXCSR lets the host compute.
pub(crate) const fn allowed(mxcsr: u32) -> bool {
    mxcsr & LOOKED_AT == NEEDED
}

/// The operations that hosts have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    Add,
    Sub,
    Mul,
    Div,
}

/// A format in which hosts compute.
pub(crate) trait Real: Copy + PartialOrd + Into<f64> {
    /// The result, if the host may say it.
    fn compute(op: Op, a: Self, b: Self) -> Option<Self>;
    /// The square root, if the host may say it: of normal positive numbers, whose roots are normal, and of zeros.
    fn root(self) -> Option<Self>;
    /// Whether its exponent is the smallest and it isn't zero.
    fn is_denormal(self) -> bool;
    /// The number nearest to an integer.
    fn from_integer(value: i64) -> Self;
}

macro_rules! real {
    ($float:ident, $bits:ident, $fraction:expr) => {
        impl Real for $float {
            #[inline(always)]
            fn compute(op: Op, a: Self, b: Self) -> Option<Self> {
                /// Twice the bits of the smallest number that isn't rounded up to a normal one.
                const SMALLEST: $bits = 4 << $fraction;
                /// Twice the bits of infinity, without what does not fit.
                const INFINITY: $bits = <$bits>::MAX << ($fraction + 1);
                let result = match op {
                    Op::Add => a + b,
                    Op::Sub => a - b,
                    Op::Mul => a * b,
                    Op::Div => a / b,
                };
                // Of operands that aren't finite, no result is normal.
                let normal = (result.to_bits() << 1).wrapping_sub(SMALLEST) < INFINITY - SMALLEST;
                let exact = || {
                    result == 0.0
                        && match op {
                            // A sum that is zero is exact.
                            Op::Add | Op::Sub => true,
                            Op::Mul => a == 0.0 || b == 0.0,
                            Op::Div => a == 0.0,
                        }
                };
                ((normal || exact()) && !a.is_denormal() && !b.is_denormal()).then_some(result)
            }

            #[inline(always)]
            fn root(self) -> Option<Self> {
                ((Self::MIN_POSITIVE..=Self::MAX).contains(&self) || self == 0.0).then(|| self.sqrt())
            }

            #[inline(always)]
            fn is_denormal(self) -> bool {
                // One less, so that zeros are the largest.
                (self.to_bits() << 1).wrapping_sub(1) < (2 << $fraction) - 1
            }

            #[inline(always)]
            fn from_integer(value: i64) -> Self {
                value as Self
            }
        }
    };
}

real!(f32, u32, 23);
real!(f64, u64, 52);

/// Rounds to the nearest integer, ties to even, if none of its bits is lost on the way.
#[inline(always)]
pub(crate) fn round_to_even(value: f64) -> Option<f64> {
    const LIMIT: f64 = 2_251_799_813_685_248.0;
    // Numbers of this size, with such a one added, have no bit left behind the point.
    const WHOLE: f64 = 3.0 * LIMIT;
    (value.abs() < LIMIT).then_some(value + WHOLE - WHOLE)
}

#[cfg(test)]
mod tests {
    use super::super::{DOUBLE, Env, Mode, Number, SINGLE, flag, ops};
    use super::*;
    use proptest::prelude::*;

    const OPS: [Op; 4] = [Op::Add, Op::Sub, Op::Mul, Op::Div];

    const ENV: Env = Env {
        mode: Mode::Nearest,
        masks: flag::ALL,
        daz: false,
        ftz: false,
        x87: false,
        flags: 0,
    };

    fn soft(op: Op, a: u64, b: u64, format: super::super::Format) -> (u64, u16) {
        let mut env = ENV;
        let (a, b) = (Number::unpack(a, format), Number::unpack(b, format));
        let result = match op {
            Op::Add => ops::add(&mut env, a, b, format),
            Op::Sub => ops::sub(&mut env, a, b, format),
            Op::Mul => ops::mul(&mut env, a, b, format),
            Op::Div => ops::div(&mut env, a, b, format),
        };
        (result.pack(format), env.flags & flag::ALL & !flag::PE)
    }

    fn root(a: u64, format: super::super::Format) -> (u64, u16) {
        let mut env = ENV;
        let result = ops::sqrt(&mut env, Number::unpack(a, format), format);
        (result.pack(format), env.flags & flag::ALL & !flag::PE)
    }

    /// Any bits, or those of numbers at the edges of what is normal, of either width.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            (0_u64..4, 0_u64..4, any::<u64>()).prop_map(|(edge, low, sign)| edge << 52 | low | sign & 1 << 63),
            (0_u64..4, 0_u64..4, any::<u64>()).prop_map(|(edge, low, sign)| edge << 23 | low | sign & 1 << 31),
            0x7fc0_0000_0000_0000_u64..0x7ff1_0000_0000_0000,
            0x7e80_0000_u64..0x7f81_0000,
        ]
    }

    proptest! {
        #[test]
        fn root_of_host_and_software_agree_where_the_host_answers(a in number()) {
            if let Some(result) = f64::from_bits(a).root() {
                prop_assert_eq!((result.to_bits(), 0), root(a, DOUBLE));
            }
            if let Some(result) = f32::from_bits(a as u32).root() {
                prop_assert_eq!((u64::from(result.to_bits()), 0), root(a & 0xffff_ffff, SINGLE));
            }
        }

        #[test]
        fn host_and_software_agree_where_the_host_answers(
            a in number(), b in number(), near in 0_u64..8, which in 0_usize..4,
        ) {
            // Half of the operands lie close together, where subtraction cancels.
            let b = if near > 3 { b } else { a ^ b >> (20 * near + 3) };
            if let Some(result) = f64::compute(OPS[which], f64::from_bits(a), f64::from_bits(b)) {
                prop_assert_eq!((result.to_bits(), 0), soft(OPS[which], a, b, DOUBLE));
            }
            let (a, b) = (a as u32, b as u32);
            if let Some(result) = f32::compute(OPS[which], f32::from_bits(a), f32::from_bits(b)) {
                prop_assert_eq!((u64::from(result.to_bits()), 0), soft(OPS[which], a.into(), b.into(), SINGLE));
            }
        }
    }
}
