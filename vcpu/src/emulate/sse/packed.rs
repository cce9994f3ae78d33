//! Registers of floating-point numbers, and packed arithmetic by the machine that runs us: what `float::host` says of one pair
//! of numbers, of whole registers.

use super::super::float::host::{Op, Real};
use super::parts;
#[cfg(target_arch = "x86_64")]
use super::simd::{baseline, bits, vector};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A number as it lies in XMM registers.
pub(crate) trait Lane: Real {
    /// The number that these bits, the lowest of 64, are.
    fn from_low(bits: u64) -> Self;
    /// The lowest number of a register.
    fn of(register: u128) -> Self;
    /// The register with its lowest number replaced.
    fn put_into(self, register: u128) -> u128;
    /// The results for all pairs, if the host may say them all and they are found so without more ado: no zero is among them
    /// nor among what they are made of.
    fn packed_simply(op: Op, a: u128, b: u128) -> Option<u128>;
    /// The results for all pairs, if the host may say them all.
    fn packed(op: Op, a: u128, b: u128) -> Option<u128>;
}

#[cfg(target_arch = "x86_64")]
macro_rules! lane {
    ($float:ident, $get:ident $put:ident $from_low:expr, $lanes:expr, $from:ident $to:ident $set:ident $and_not:ident
     $and:ident $or:ident $add:ident $sub:ident $mul:ident $div:ident $min:ident $less:ident $not_below:ident
     $not_above:ident $equal:ident $differ:ident $signs:ident) => {
        impl Lane for $float {
            lane!($get $put $from_low);

            #[inline(always)]
            fn packed_simply(op: Op, a: u128, b: u128) -> Option<u128> {
                baseline! {
                    fn compute(op: Op, a: u128, b: u128) -> Option<u128> {
                        let (x, y) = ($from(vector(a)), $from(vector(b)));
                        let result = lane!(result $float op x y $add $sub $mul $div);
                        let magnitude = |value| $and_not($set(-0.0), value);
                        // Of operands that aren't finite, no result is.
                        let smaller = $min(magnitude(x), magnitude(y));
                        let plain = $not_below(smaller, $set($float::MIN_POSITIVE));
                        let normal = lane!(normal $float magnitude(result); $set $and $not_below $not_above);
                        ($signs($and(plain, normal)) == (1 << $lanes) - 1).then_some(bits($to(result)))
                    }
                }
                compute(op, a, b)
            }

            fn packed(op: Op, a: u128, b: u128) -> Option<u128> {
                baseline! {
                    fn compute(op: Op, a: u128, b: u128) -> Option<u128> {
                        let (x, y) = ($from(vector(a)), $from(vector(b)));
                        let result = lane!(result $float op x y $add $sub $mul $div);
                        let magnitude = |value| $and_not($set(-0.0), value);
                        let is_zero = |value| $equal(value, $set(0.0));
                        let smallest = $set($float::MIN_POSITIVE);
                        let denormal = |value| $and($less(magnitude(value), smallest), $differ(value, $set(0.0)));
                        let normal = lane!(normal $float magnitude(result); $set $and $not_below $not_above);
                        let exact = match op {
                            Op::Add | Op::Sub => is_zero(result),
                            Op::Mul => $and(is_zero(result), $or(is_zero(x), is_zero(y))),
                            Op::Div => $and(is_zero(result), is_zero(x)),
                        };
                        let fits = $and_not($or(denormal(x), denormal(y)), $or(normal, exact));
                        ($signs(fits) == (1 << $lanes) - 1).then_some(bits($to(result)))
                    }
                }
                compute(op, a, b)
            }
        }
    };
    (result $float:ident $op:ident $x:ident $y:ident $add:ident $sub:ident $mul:ident $div:ident) => {
        match $op {
            Op::Add => $add($x, $y),
            Op::Sub => $sub($x, $y),
            Op::Mul => $mul($x, $y),
            Op::Div => $div($x, $y),
        }
    };
    // Normal, and not by rounding up to it. What is no number compares with nothing.
    (normal $float:ident $magnitude:expr; $set:ident $and:ident $not_below:ident $not_above:ident) => {{
        let magnitude = $magnitude;
        let large = $not_below(magnitude, $set(2.0 * $float::MIN_POSITIVE));
        $and(large, $not_above(magnitude, $set($float::MAX)))
    }};
    ($get:ident $put:ident $from_low:expr) => {
        #[inline(always)]
        fn from_low(bits: u64) -> Self {
            $from_low(bits)
        }

        #[inline(always)]
        fn of(register: u128) -> Self {
            parts::$get(register)
        }

        #[inline(always)]
        fn put_into(self, register: u128) -> u128 {
            parts::$put(register, self)
        }
    };
}

#[cfg(target_arch = "x86_64")]
lane! {
    f32, single with_single (|bits| f32::from_bits(bits as u32)), 4, _mm_castsi128_ps _mm_castps_si128 _mm_set1_ps
    _mm_andnot_ps _mm_and_ps _mm_or_ps _mm_add_ps _mm_sub_ps _mm_mul_ps _mm_div_ps _mm_min_ps _mm_cmplt_ps
    _mm_cmpge_ps _mm_cmple_ps _mm_cmpeq_ps _mm_cmpneq_ps _mm_movemask_ps
}
#[cfg(target_arch = "x86_64")]
lane! {
    f64, double with_double f64::from_bits, 2, _mm_castsi128_pd _mm_castpd_si128 _mm_set1_pd
    _mm_andnot_pd _mm_and_pd _mm_or_pd _mm_add_pd _mm_sub_pd _mm_mul_pd _mm_div_pd _mm_min_pd _mm_cmplt_pd
    _mm_cmpge_pd _mm_cmple_pd _mm_cmpeq_pd _mm_cmpneq_pd _mm_movemask_pd
}

#[cfg(not(target_arch = "x86_64"))]
macro_rules! lane {
    ($float:ident, $lanes:ident, $bits:ident $get:ident $put:ident) => {
        impl Lane for $float {
            fn from_low(bits: u64) -> Self {
                Self::from_bits(bits as $bits)
            }

            fn of(register: u128) -> Self {
                parts::$get(register)
            }

            fn put_into(self, register: u128) -> u128 {
                parts::$put(register, self)
            }

            fn packed_simply(op: Op, a: u128, b: u128) -> Option<u128> {
                Self::packed(op, a, b)
            }

            fn packed(op: Op, a: u128, b: u128) -> Option<u128> {
                let mut all = true;
                let result = super::lanes::$lanes(a, b, |x, y| {
                    let result = Self::compute(op, Self::from_bits(x), Self::from_bits(y));
                    all &= result.is_some();
                    result.map_or(0, Self::to_bits)
                });
                all.then_some(result)
            }
        }
    };
}

#[cfg(not(target_arch = "x86_64"))]
lane!(f32, u32s, u32 single with_single);
#[cfg(not(target_arch = "x86_64"))]
lane!(f64, u64s, u64 double with_double);

#[cfg(test)]
mod tests {
    use super::super::lanes::{u32s, u64s};
    use super::*;
    use proptest::prelude::*;

    const OPS: [Op; 4] = [Op::Add, Op::Sub, Op::Mul, Op::Div];

    /// Bits of a double whose sign and exponent are often of interest, as are those of the singles in it.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            (0_u64..16, any::<u64>())
                .prop_map(|(edge, low)| (0x7fe0_0000_0000_0000_u64.wrapping_add(edge << 52)) ^ low >> 40),
            (0_u64..4, 0_u64..4).prop_map(|(edge, low)| edge << 52 | low),
            (0_u64..4, 0_u64..4, any::<u64>())
                .prop_map(|(high, low, rest)| high << 55 | low << 23 | rest & 0x8000_0000_8000_0000),
            (0x3ff0_0000_0000_0000_u64..0x4010_0000_0000_0000),
            Just(0),
            Just(1 << 63),
        ]
    }

    proptest! {
        #[test]
        fn packed_results_are_those_of_the_lanes(
            low in number(), high in number(), other_low in number(), other_high in number(), op in 0_usize..4,
        ) {
            let op = OPS[op];
            let a = u128::from(high) << 64 | u128::from(low);
            let b = u128::from(other_high) << 64 | u128::from(other_low);
            let mut all = true;
            let single = u32s(a, b, |x, y| {
                let result = f32::compute(op, f32::from_bits(x), f32::from_bits(y));
                all &= result.is_some();
                result.map_or(0, f32::to_bits)
            });
            let single = all.then_some(single);
            prop_assert_eq!(f32::packed(op, a, b), single);
            prop_assert!([None, single].contains(&f32::packed_simply(op, a, b)));
            all = true;
            let double = u64s(a, b, |x, y| {
                let result = f64::compute(op, f64::from_bits(x), f64::from_bits(y));
                all &= result.is_some();
                result.map_or(0, f64::to_bits)
            });
            let double = all.then_some(double);
            prop_assert_eq!(f64::packed(op, a, b), double);
            prop_assert!([None, double].contains(&f64::packed_simply(op, a, b)));
        }
    }
}
