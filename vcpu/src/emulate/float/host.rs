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

macro_rules! binary {
    ($name:ident, $lanes:ident, $root:ident, $float:ty, $bits:ty, $fraction:expr) => {
        /// The result, if the host may say it.
        #[inline(always)]
        pub(crate) fn $name(op: Op, a: $bits, b: $bits) -> Option<$bits> {
            $lanes(op, [a], [b]).map(|[result]| result)
        }

        /// The results of several lanes, if the host may say them all.
        #[inline(always)]
        pub(crate) fn $lanes<const N: usize>(op: Op, a: [$bits; N], b: [$bits; N]) -> Option<[$bits; N]> {
            let results: [$float; N] = std::array::from_fn(|lane| {
                let (x, y) = (<$float>::from_bits(a[lane]), <$float>::from_bits(b[lane]));
                match op {
                    Op::Add => x + y,
                    Op::Sub => x - y,
                    Op::Mul => x * y,
                    Op::Div => x / y,
                }
            });
            let results = results.map(<$float>::to_bits);
            // A sum that is zero is exact.
            let exact_zero = matches!(op, Op::Add | Op::Sub);
            // Without branches, so that lanes are looked at side by side.
            let fits = (0..N).fold(true, |fits, lane| {
                let result = results[lane];
                fits & plain(a[lane]) & plain(b[lane]) & ((exact_zero & (result << 1 == 0)) | normal(result))
            });
            return fits.then_some(results);

            /// Normal or zero.
            #[inline(always)]
            fn plain(bits: $bits) -> bool {
                (bits << 1 == 0) | (exponent(bits).wrapping_sub(1) < TOP - 1)
            }

            /// Normal, and not by rounding up to it.
            #[inline(always)]
            fn normal(bits: $bits) -> bool {
                exponent(bits).wrapping_sub(2) < TOP - 2
            }

            const TOP: $bits = <$bits>::MAX << 1 >> ($fraction + 1);

            #[inline(always)]
            fn exponent(bits: $bits) -> $bits {
                bits << 1 >> ($fraction + 1)
            }
        }

        /// The square root, if the host may say it: of normal positive numbers, whose roots are normal.
        #[inline]
        pub(crate) fn $root(a: $bits) -> Option<$bits> {
            let x = <$float>::from_bits(a);
            (x.is_normal() && x > 0.0).then(|| x.sqrt().to_bits())
        }
    };
}

binary!(single, singles, single_root, f32, u32, 23);
binary!(double, doubles, double_root, f64, u64, 52);

#[cfg(test)]
mod tests {
    use super::super::{DOUBLE, Env, Mode, Number, SINGLE, flag, ops};
    use super::*;
    use proptest::prelude::*;

    const OPS: [Op; 4] = [Op::Add, Op::Sub, Op::Mul, Op::Div];

    fn soft(op: Op, a: u64, b: u64, format: super::super::Format) -> (u64, u16) {
        let mut env = Env {
            mode: Mode::Nearest,
            masks: flag::ALL,
            daz: false,
            ftz: false,
            x87: false,
            flags: 0,
        };
        let (a, b) = (Number::unpack(a, format), Number::unpack(b, format));
        let result = match op {
            Op::Add => ops::add(&mut env, a, b, format),
            Op::Sub => ops::sub(&mut env, a, b, format),
            Op::Mul => ops::mul(&mut env, a, b, format),
            Op::Div => ops::div(&mut env, a, b, format),
        };
        (result.pack(format), env.flags & flag::ALL & !flag::PE)
    }

    proptest! {
        #[test]
        fn host_and_software_agree_where_the_host_answers(a: u64, b: u64, near in 0_u64..4, which in 0_usize..4) {
            // Half of the operands lie close together, where subtraction cancels.
            let b = if near == 0 { b } else { a ^ b >> (20 * near - 8) };
            if let Some(result) = double(OPS[which], a, b) {
                prop_assert_eq!((result, 0), soft(OPS[which], a, b, DOUBLE));
            }
            let (a, b) = (a as u32, b as u32);
            if let Some(result) = single(OPS[which], a, b) {
                prop_assert_eq!((u64::from(result), 0), soft(OPS[which], a.into(), b.into(), SINGLE));
            }
        }
    }
}
