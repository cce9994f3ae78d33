//! `f2xm1 fyl2x fyl2xp1 fpatan fsin fcos fptan fsincos`.
//!
//! Series on 128 bits, rounded once: the result is that of exact arithmetic but in cases rarer than one in 2^40, where it is
//! off by one unit in the last place. Processors promise one unit. Arguments of the trigonometric functions are
//! reduced, exactly, by a π of 66 bits, which is what processors of Intel and AMD use: near its multiples results are
//! those of a slightly different π.

use super::super::environment::{Memory, Platform, Stop};
use super::super::float::{Env, Kind, Number, flag, ops};
use super::super::{Cpu, Flow};
use super::series::{arc_tangent, exp2_minus_one, log2, log2_plus_one, sine_and_cosine};
use super::wide::Wide;
use super::{C1, C2, denormal_stops, no_number};
use iced_x86::{Instruction, Mnemonic as M};

/// Arguments of this exponent and more are not reduced.
const REDUCIBLE: i32 = 63;

/// `f2xm1 fsin fcos` of a number that is not out of range.
fn function(env: &mut Env, mnemonic: M, x: Number) -> Number {
    if let Some(result) = no_number(env, &x) {
        return result;
    }
    match x.kind {
        Kind::Zero if mnemonic == M::Fcos => return Wide::ONE.round(env, false),
        Kind::Zero => return x,
        Kind::Infinity if mnemonic == M::F2xm1 => {
            return if x.negative {
                Wide::ONE.negated().round(env, false)
            } else {
                x
            };
        }
        Kind::Infinity => return ops::invalid(env),
        _ => {}
    }
    if denormal_stops(env, &x) {
        return x;
    }
    let wide = Wide::of(&x);
    match mnemonic {
        M::Fsin => sine_and_cosine(wide).0.round(env, true),
        M::Fcos => sine_and_cosine(wide).1.round(env, true),
        // Outside of −1..=1 nothing is defined.
        _ if x.exponent > 0 || (x.exponent == 0 && wide.bits != Wide::ONE.bits) => x,
        _ if x.exponent == 0 && x.negative => Wide::ONE.negated().scaled(-1).round(env, false),
        _ if x.exponent == 0 => x,
        _ => exp2_minus_one(wide).round(env, true),
    }
}

/// y · log2 x.
fn y_log2(env: &mut Env, y: Number, x: Number, plus_one: bool) -> Number {
    let one = Number::finite(false, 0, 1 << 63);
    // Where x lies with respect to the zero of the logarithm.
    let (below, at) = if plus_one {
        (x.negative, x.is_zero())
    } else {
        let order = ops::compare(&x, &one);
        (
            order == Some(std::cmp::Ordering::Less),
            order == Some(std::cmp::Ordering::Equal),
        )
    };
    let out_of_domain = if plus_one {
        let order = ops::compare(&x, &one.negated());
        order == Some(std::cmp::Ordering::Less)
    } else {
        x.negative && !x.is_zero()
    };
    let pole = !plus_one && x.is_zero();
    let infinite = |number: &Number| number.kind == Kind::Infinity;
    if out_of_domain || (pole && y.is_zero()) || (infinite(&x) && y.is_zero()) || (infinite(&y) && at) {
        return ops::invalid(env);
    }
    if pole {
        if !infinite(&y) {
            env.flags |= flag::ZE;
        }
        return Number::infinity(!y.negative);
    }
    if denormal_stops(env, &x) || denormal_stops(env, &y) {
        return y;
    }
    if infinite(&x) || infinite(&y) {
        return Number::infinity(y.negative != below);
    }
    if at || y.is_zero() {
        return Number::zero(y.negative != below);
    }
    let (wide, factor) = (Wide::of(&x), Wide::of(&y));
    if plus_one {
        return log2_plus_one(wide).mul(factor).round(env, true);
    }
    let exact = wide.bits == Wide::ONE.bits;
    let result = log2(wide).mul(factor).round(env, !exact);
    if exact {
        // Processors do not know that.
        env.flags |= flag::PE;
        if result.significand >> 63 == 0 {
            env.flags |= flag::UE;
        }
    }
    result
}

/// The angle of the point (x, y).
fn angle(env: &mut Env, y: Number, x: Number) -> Number {
    let signed = |wide: Wide| if y.negative { wide.negated() } else { wide };
    if denormal_stops(env, &x) || denormal_stops(env, &y) {
        return y;
    }
    let infinite = |number: &Number| number.kind == Kind::Infinity;
    let angle = if infinite(&y) && infinite(&x) {
        Wide::QUARTER_PI
    } else if infinite(&y) || (x.is_zero() && !y.is_zero()) {
        return signed(Wide::HALF_PI).round(env, true);
    } else if y.is_zero() || infinite(&x) {
        if !x.negative {
            return Number::zero(y.negative);
        }
        Wide::ZERO
    } else {
        arc_tangent(Wide::of(&y).magnitude(), Wide::of(&x).magnitude())
    };
    let angle = if x.negative { Wide::PI.sub(angle) } else { angle };
    signed(angle).round(env, true)
}

/// Whether both operands are numbers, or what the result is then.
fn pair(env: &mut Env, y: Number, x: Number, mnemonic: M) -> Number {
    if y.kind == Kind::Unsupported || x.kind == Kind::Unsupported {
        return ops::invalid(env);
    }
    if y.is_nan() || x.is_nan() {
        return ops::propagate(env, &x, &y);
    }
    match mnemonic {
        M::Fpatan => angle(env, y, x),
        mnemonic => y_log2(env, y, x, mnemonic == M::Fyl2xp1),
    }
}

impl<E: Memory + Platform> Cpu<E> {
    /// `f2xm1 fsin fcos`: in the place of ST(0).
    pub(in super::super) fn x87_function(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let operand = self.operand(&mut env, 0);
        let circular = insn.mnemonic() != M::F2xm1;
        if circular && self.out_of_reach(operand) {
            return Ok(Flow::Next);
        }
        let result = operand.map_or(Number::INDEFINITE, |x| function(&mut env, insn.mnemonic(), x));
        if self.x87_end(insn, &env) {
            self.set_st(0, result.to_f80());
        }
        if circular {
            self.set_conditions(C2, 0);
        }
        Ok(Flow::Next)
    }

    /// Says in C2 that a trigonometric argument is too large, if it is.
    fn out_of_reach(&mut self, operand: Option<Number>) -> bool {
        let far = operand.is_some_and(|x| x.kind == Kind::Finite && x.exponent >= REDUCIBLE);
        if far {
            self.set_conditions(C2 | C1, C2);
        }
        far
    }

    /// `fyl2x fyl2xp1 fpatan`: of ST(1) and ST(0), popping.
    pub(in super::super) fn x87_function_of_two(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let (x, y) = (self.operand(&mut env, 0), self.operand(&mut env, 1));
        let result = match (y, x) {
            (Some(y), Some(x)) => pair(&mut env, y, x, insn.mnemonic()),
            _ => Number::INDEFINITE,
        };
        if self.x87_end(insn, &env) {
            self.set_st(1, result.to_f80());
            self.pop_st();
        }
        Ok(Flow::Next)
    }

    /// `fptan fsincos`: one result in the place of ST(0), the other on top.
    pub(in super::super) fn x87_two_results(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let operand = self.operand(&mut env, 0);
        let room = operand.is_none() || self.check_room(&mut env);
        if room && self.out_of_reach(operand) {
            return Ok(Flow::Next);
        }
        let tangent = insn.mnemonic() == M::Fptan;
        let (first, second) = match operand {
            Some(x) if room => two_results(&mut env, x, tangent),
            _ => (Number::INDEFINITE, Number::INDEFINITE),
        };
        if self.x87_end(insn, &env) {
            self.set_st(0, first.to_f80());
            self.push_st(second.to_f80());
        }
        self.set_conditions(C2, 0);
        Ok(Flow::Next)
    }
}

/// Tangent and 1, or sine and cosine.
fn two_results(env: &mut Env, x: Number, tangent: bool) -> (Number, Number) {
    if let Some(result) = no_number(env, &x) {
        return (result, result);
    }
    let one = Wide::ONE.round(env, false);
    if x.is_zero() {
        return (x, one);
    }
    if x.kind == Kind::Infinity {
        let result = ops::invalid(env);
        return (result, result);
    }
    if denormal_stops(env, &x) {
        return (x, x);
    }
    let (sine, cosine) = sine_and_cosine(Wide::of(&x));
    if tangent {
        (sine.div(cosine).round(env, true), one)
    } else {
        (sine.round(env, true), cosine.round(env, true))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::float::Mode;
    use super::*;

    fn env() -> Env {
        Env {
            mode: Mode::Nearest,
            masks: flag::ALL,
            daz: false,
            ftz: false,
            x87: true,
            flags: 0,
        }
    }

    /// numerator ÷ denominator, and 80-bit contents of the results.
    fn check(mnemonic: M, argument: (i64, u32), exponent: u16, mantissa: u64) {
        let x = Wide::integer(argument.0 as i32)
            .div_small(argument.1)
            .round(&mut env(), false);
        let one = Wide::ONE.round(&mut env(), false);
        let result = match mnemonic {
            M::Fptan => two_results(&mut env(), x, true).0,
            M::Fpatan => pair(&mut env(), x, one, mnemonic),
            M::Fyl2x | M::Fyl2xp1 => pair(&mut env(), one, x, mnemonic),
            _ => function(&mut env(), mnemonic, x),
        };
        let bits = result.to_f80();
        assert_eq!(
            (bits.sign_exponent, bits.mantissa),
            (exponent, mantissa),
            "{mnemonic:?} {argument:?}"
        );
    }

    #[test]
    fn results_are_the_exact_ones_rounded() {
        // By a computation with 300 bits.
        check(M::Fsin, (1, 1), 0x3ffe, 0xd76a_a478_4867_7021);
        check(M::Fcos, (1, 1), 0x3ffe, 0x8a51_407d_a834_5c92);
        check(M::Fptan, (1, 1), 0x3fff, 0xc759_22e5_f71d_2dc5);
        check(M::Fyl2x, (3, 1), 0x3fff, 0xcae0_0d1c_fdeb_43d0);
        check(M::F2xm1, (1, 2), 0x3ffd, 0xd413_cccf_e779_9211);
        check(M::F2xm1, (-3, 4), 0xbffd, 0xcf90_1f5c_e48e_ad21);
        check(M::Fyl2xp1, (1, 8), 0x3ffc, 0xae00_d1cf_deb4_3cfd);
        check(M::Fpatan, (1, 1), 0x3ffe, 0xc90f_daa2_2168_c235);
    }

    #[test]
    fn tiny_arguments_are_their_own_sines_but_for_the_rounding_down() {
        let x = Number::finite(false, -200, 0x8000_0000_0000_0001);
        let mut env = Env {
            mode: Mode::Zero,
            ..env()
        };
        let result = function(&mut env, M::Fsin, x);
        assert_eq!((result.significand, env.flags), (0x8000_0000_0000_0000, flag::PE));
    }
}
