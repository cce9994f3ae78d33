//! Remainders, powers of two, and rounding to an integer: `fprem fprem1 fscale fxtract frndint`.

use super::super::environment::{Memory, Platform, Stop};
use super::super::float::{EXTENDED, Env, Kind, Number, convert, flag, ops, round};
use super::super::{Cpu, Flow};
use super::{C0, C1, C2, C3, denormal_stops, no_number};
use iced_x86::{Instruction, Mnemonic as M};

/// `fscale` by more than this leaves the range whatever it begins with.
const FAR: i64 = 1 << 16;

/// What `fprem` leaves.
struct Remainder {
    number: Number,
    /// Low bits of the quotient.
    quotient: u64,
    /// The operands were too far apart for one step.
    partial: bool,
}

fn exact(env: &mut Env, number: Number) -> Number {
    let value = u128::from(number.significand) << 64;
    round::round(env, number.negative, number.exponent, value, EXTENDED)
}

/// Of two finite numbers that are not zero.
fn remainder(env: &mut Env, a: Number, b: Number, nearest: bool) -> Remainder {
    let distance = a.exponent - b.exponent;
    if distance < -1 || (distance < 0 && !nearest) {
        return Remainder {
            number: exact(env, a),
            quotient: 0,
            partial: false,
        };
    }
    let partial = distance >= 64;
    // As many bits of the quotient as leave a distance that is a multiple of 32 less than 64 behind.
    let bits = if partial { 32 + distance % 32 } else { distance };
    let divisor = u128::from(b.significand);
    let (mut rest, mut quotient, mut unit) = (u128::from(a.significand), 0_u64, a.exponent);
    for step in 0..=bits {
        quotient <<= 1;
        if rest >= divisor {
            rest -= divisor;
            quotient |= 1;
        }
        if step < bits {
            rest <<= 1;
            unit -= 1;
        }
    }
    let mut negative = a.negative;
    if nearest && !partial {
        // In halves where the divisor's unit is larger than the remainder's.
        let divisor = if distance < 0 { divisor << 1 } else { divisor };
        let whole = if distance < 0 { u128::from(a.significand) } else { rest };
        if distance < 0 {
            quotient = 0;
            rest = whole;
        }
        if 2 * whole > divisor || (2 * whole == divisor && quotient & 1 != 0) {
            rest = divisor - whole;
            quotient = quotient.wrapping_add(1);
            negative = !negative;
        }
    }
    let number = if rest == 0 {
        Number::zero(a.negative)
    } else {
        let shift = rest.leading_zeros() - 64;
        let number = Number::finite(negative, unit - shift as i32, (rest << shift) as u64);
        exact(env, number)
    };
    Remainder {
        number,
        quotient,
        partial,
    }
}

/// a · 2^b, the latter cut to an integer.
fn scaled(env: &mut Env, a: Number, b: Number) -> Number {
    if a.kind == Kind::Unsupported || b.kind == Kind::Unsupported {
        return ops::invalid(env);
    }
    if a.is_nan() || b.is_nan() {
        return ops::propagate(env, &a, &b);
    }
    match (a.kind, b.kind) {
        (Kind::Infinity, Kind::Infinity) if b.negative => return ops::invalid(env),
        (Kind::Zero, Kind::Infinity) if !b.negative => return ops::invalid(env),
        _ => {}
    }
    if a.denormal || b.denormal {
        env.flags |= flag::DE;
    }
    match (a.kind, b.kind) {
        (_, Kind::Infinity) if b.negative => Number::zero(a.negative),
        (_, Kind::Infinity) => Number::infinity(a.negative),
        (Kind::Zero | Kind::Infinity, _) => a,
        _ if env.refused() => a,
        _ => {
            let mut quiet = *env;
            let mode = super::super::float::Mode::Zero;
            let by = convert::to_integer(&mut quiet, &b, 64, mode).unwrap_or(if b.negative { -FAR } else { FAR });
            let exponent = a.exponent + by.clamp(-FAR, FAR) as i32;
            let result = exact(env, Number { exponent, ..a });
            // Not even a wrapped exponent holds it.
            if result.kind == Kind::Finite && result.exponent < EXTENDED.emin {
                env.flags |= flag::PE;
                return Number::zero(a.negative);
            }
            if result.kind == Kind::Finite && result.exponent > EXTENDED.emax {
                env.flags |= flag::PE | flag::UP;
                return Number::infinity(a.negative);
            }
            result
        }
    }
}

impl<E: Memory + Platform> Cpu<E> {
    pub(in super::super) fn frndint(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let mode = env.mode;
        let result = self.operand(&mut env, 0).map_or(Number::INDEFINITE, |number| {
            if denormal_stops(&mut env, &number) {
                return number;
            }
            convert::integral(&mut env, number, mode, false)
        });
        if self.x87_end(insn, &env) {
            self.set_st(0, result.to_f80());
        }
        Ok(Flow::Next)
    }

    pub(in super::super) fn fscale(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let (a, b) = (self.operand(&mut env, 0), self.operand(&mut env, 1));
        let result = match (a, b) {
            (Some(a), Some(b)) => scaled(&mut env, a, b),
            _ => Number::INDEFINITE,
        };
        if self.x87_end(insn, &env) {
            self.set_st(0, result.to_f80());
        }
        Ok(Flow::Next)
    }

    /// `fxtract`: the exponent takes the number's place, the significand goes on top.
    pub(in super::super) fn fxtract(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let number = self.operand(&mut env, 0);
        let room = number.is_none() || self.check_room(&mut env);
        let (exponent, significand) = match number {
            Some(number) if room => {
                if let Some(result) = no_number(&mut env, &number) {
                    (result, result)
                } else {
                    match number.kind {
                        Kind::Zero => {
                            env.flags |= flag::ZE;
                            (Number::infinity(true), number)
                        }
                        Kind::Infinity => (Number::infinity(false), number),
                        _ => {
                            denormal_stops(&mut env, &number);
                            let exponent = convert::exact(number.exponent.into());
                            (exponent, Number { exponent: 0, ..number })
                        }
                    }
                }
            }
            _ => (Number::INDEFINITE, Number::INDEFINITE),
        };
        if self.x87_end(insn, &env) {
            self.set_st(0, exponent.to_f80());
            self.push_st(significand.to_f80());
        }
        Ok(Flow::Next)
    }

    pub(in super::super) fn fprem(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let mut env = self.x87_env();
        let (a, b) = (self.operand(&mut env, 0), self.operand(&mut env, 1));
        let whole = |number| Remainder {
            number,
            quotient: 0,
            partial: false,
        };
        let result = match (a, b) {
            (Some(a), Some(b)) => {
                if a.kind == Kind::Unsupported || b.kind == Kind::Unsupported {
                    whole(ops::invalid(&mut env))
                } else if a.is_nan() || b.is_nan() {
                    whole(ops::propagate(&mut env, &a, &b))
                } else if a.kind == Kind::Infinity || b.is_zero() {
                    whole(ops::invalid(&mut env))
                } else if denormal_stops(&mut env, &a) || denormal_stops(&mut env, &b) || a.is_zero() {
                    whole(a)
                } else if b.kind == Kind::Infinity {
                    whole(exact(&mut env, a))
                } else {
                    remainder(&mut env, a, b, insn.mnemonic() == M::Fprem1)
                }
            }
            _ => whole(Number::INDEFINITE),
        };
        if self.x87_end(insn, &env) {
            self.set_st(0, result.number.to_f80());
            let bit = |bit: u64, condition| if result.quotient & bit != 0 { condition } else { 0 };
            let (which, conditions) = if result.partial {
                (C3 | C2 | C1 | C0, C2)
            } else if result.number.is_nan() {
                (C2, 0)
            } else {
                (C3 | C2 | C1 | C0, bit(4, C0) | bit(2, C3) | bit(1, C1))
            };
            self.set_conditions(which, conditions);
        } else {
            self.set_conditions(C2, 0);
        }
        Ok(Flow::Next)
    }
}
