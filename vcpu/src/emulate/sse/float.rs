//! Floating-point arithmetic of XMM registers: `add sub mul div sqrt min max`, horizontal and alternating sums, dot
//! products, comparisons, rounding, approximations.

use super::super::dispatch::Handler;
use super::super::environment::{Memory, Platform, Stop};
use super::super::flags::{CF, PF, ZF, when};
use super::super::float::host::{self, Real};
use super::super::float::{DOUBLE, Env, Format, Mode, Number, SINGLE, convert, flag, ops};
use super::super::{Cpu, Flow};
use super::packed::Lane;
use iced_x86::{Instruction, Mnemonic as M};
use std::cmp::Ordering;

pub(super) fn handler<E: Memory + Platform>(insn: &Instruction) -> Option<Handler<E>> {
    let handler: Handler<E> = match insn.mnemonic() {
        M::Cmpsd if insn.is_string_instruction() => return None,
        M::Comiss | M::Comisd | M::Ucomiss | M::Ucomisd => Cpu::sse_compare_flags,
        M::Dpps | M::Dppd => Cpu::sse_dot,
        M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss => Cpu::sse_approximate,
        mnemonic => return arithmetic_handler(mnemonic),
    };
    Some(handler)
}

/// The commonest have each a function made for them.
fn arithmetic_handler<E: Memory + Platform>(mnemonic: M) -> Option<Handler<E>> {
    macro_rules! own {
        ($($name:ident)*) => {
            match mnemonic {
                $(M::$name => return Some(|cpu, insn| cpu.sse_float_as(insn, const { shape(M::$name) })),)*
                _ => {}
            }
        };
    }
    own!(Addps Addpd Addss Addsd Subps Subpd Subss Subsd Mulps Mulpd Mulss Mulsd Divps Divpd Divss Divsd);
    shape(mnemonic).map(|_| Cpu::sse_float as Handler<E>)
}

/// What is done to each pair of lanes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Host(host::Op),
    Sqrt,
    Min,
    Max,
    Compare,
    Round,
    /// Subtracts in even lanes, adds in odd ones.
    AddSub,
    /// Of neighbours.
    HorizontalAdd,
    HorizontalSub,
}

/// Operation, format, and whether there is only one lane.
type Shape = (Op, Format, bool);

/// What a mnemonic does.
const fn shape(mnemonic: M) -> Option<Shape> {
    use host::Op::{Add, Div, Mul, Sub};
    Some(match mnemonic {
        M::Addps => (Op::Host(Add), SINGLE, false),
        M::Addpd => (Op::Host(Add), DOUBLE, false),
        M::Addss => (Op::Host(Add), SINGLE, true),
        M::Addsd => (Op::Host(Add), DOUBLE, true),
        M::Subps => (Op::Host(Sub), SINGLE, false),
        M::Subpd => (Op::Host(Sub), DOUBLE, false),
        M::Subss => (Op::Host(Sub), SINGLE, true),
        M::Subsd => (Op::Host(Sub), DOUBLE, true),
        M::Mulps => (Op::Host(Mul), SINGLE, false),
        M::Mulpd => (Op::Host(Mul), DOUBLE, false),
        M::Mulss => (Op::Host(Mul), SINGLE, true),
        M::Mulsd => (Op::Host(Mul), DOUBLE, true),
        M::Divps => (Op::Host(Div), SINGLE, false),
        M::Divpd => (Op::Host(Div), DOUBLE, false),
        M::Divss => (Op::Host(Div), SINGLE, true),
        M::Divsd => (Op::Host(Div), DOUBLE, true),
        M::Sqrtps => (Op::Sqrt, SINGLE, false),
        M::Sqrtpd => (Op::Sqrt, DOUBLE, false),
        M::Sqrtss => (Op::Sqrt, SINGLE, true),
        M::Sqrtsd => (Op::Sqrt, DOUBLE, true),
        M::Minps => (Op::Min, SINGLE, false),
        M::Minpd => (Op::Min, DOUBLE, false),
        M::Minss => (Op::Min, SINGLE, true),
        M::Minsd => (Op::Min, DOUBLE, true),
        M::Maxps => (Op::Max, SINGLE, false),
        M::Maxpd => (Op::Max, DOUBLE, false),
        M::Maxss => (Op::Max, SINGLE, true),
        M::Maxsd => (Op::Max, DOUBLE, true),
        M::Cmpps => (Op::Compare, SINGLE, false),
        M::Cmppd => (Op::Compare, DOUBLE, false),
        M::Cmpss => (Op::Compare, SINGLE, true),
        M::Cmpsd => (Op::Compare, DOUBLE, true),
        M::Roundps => (Op::Round, SINGLE, false),
        M::Roundpd => (Op::Round, DOUBLE, false),
        M::Roundss => (Op::Round, SINGLE, true),
        M::Roundsd => (Op::Round, DOUBLE, true),
        M::Addsubps => (Op::AddSub, SINGLE, false),
        M::Addsubpd => (Op::AddSub, DOUBLE, false),
        M::Haddps => (Op::HorizontalAdd, SINGLE, false),
        M::Haddpd => (Op::HorizontalAdd, DOUBLE, false),
        M::Hsubps => (Op::HorizontalSub, SINGLE, false),
        M::Hsubpd => (Op::HorizontalSub, DOUBLE, false),
        _ => return None,
    })
}

/// Lane `index` of a register.
#[inline]
pub(super) fn lane(value: u128, index: u32, format: Format) -> u64 {
    let width = format.width();
    (value >> (index * width)) as u64 & (u64::MAX >> (64 - width))
}

/// Replaces lane `index`.
#[inline]
pub(super) fn with_lane(value: u128, index: u32, format: Format, bits: u64) -> u128 {
    let (width, shift) = (format.width(), index * format.width());
    value & !(u128::from(u64::MAX >> (64 - width)) << shift) | u128::from(bits) << shift
}

/// A lane as a number; a denormal one is zero if MXCSR.DAZ says so.
pub(super) fn number(env: &Env, bits: u64, format: Format) -> Number {
    let number = Number::unpack(bits, format);
    if env.daz && number.denormal {
        Number::zero(number.negative)
    } else {
        number
    }
}

fn arithmetic(env: &mut Env, op: host::Op, a: u64, b: u64, format: Format) -> u64 {
    let (a, b) = (number(env, a, format), number(env, b, format));
    let result = match op {
        host::Op::Add => ops::add(env, a, b, format),
        host::Op::Sub => ops::sub(env, a, b, format),
        host::Op::Mul => ops::mul(env, a, b, format),
        host::Op::Div => ops::div(env, a, b, format),
    };
    result.pack(format)
}

/// `min` and `max`: the second operand unless the first is certainly the one. DAZ applies to what is returned.
fn extreme(env: &mut Env, a: u64, b: u64, format: Format, wanted: Ordering) -> u64 {
    let (x, y) = (number(env, a, format), number(env, b, format));
    // What DAZ made zero is returned as zero.
    let bits = |number: &Number, bits: u64| if number.is_zero() { number.pack(format) } else { bits };
    if x.is_nan() || y.is_nan() {
        env.flags |= flag::IE;
        return bits(&y, b);
    }
    if x.denormal || y.denormal {
        env.flags |= flag::DE;
    }
    if ops::compare(&x, &y) == Some(wanted) {
        bits(&x, a)
    } else {
        bits(&y, b)
    }
}

/// Orders two lanes. Every NaN is invalid if `strict`, else only those that signal.
fn order(env: &mut Env, a: u64, b: u64, format: Format, strict: bool) -> Option<Ordering> {
    let (a, b) = (number(env, a, format), number(env, b, format));
    if a.is_nan() || b.is_nan() {
        if strict || a.is_signaling() || b.is_signaling() {
            env.flags |= flag::IE;
        }
        return None;
    }
    if a.denormal || b.denormal {
        env.flags |= flag::DE;
    }
    ops::compare(&a, &b)
}

/// The eight predicates of `cmpps` and relatives.
fn predicate(env: &mut Env, a: u64, b: u64, format: Format, immediate: u8) -> bool {
    let strict = matches!(immediate & 3, 1 | 2);
    let order = order(env, a, b, format, strict);
    let holds = match immediate & 3 {
        0 => order == Some(Ordering::Equal),
        1 => order == Some(Ordering::Less),
        2 => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        _ => order.is_none(),
    };
    holds != (immediate & 4 != 0)
}

fn rounded(env: &mut Env, bits: u64, format: Format, immediate: u8) -> u64 {
    let mode = if immediate & 4 != 0 {
        env.mode
    } else {
        Mode::of(u32::from(immediate))
    };
    let number = number(env, bits, format);
    convert::integral(env, number, mode, immediate & 8 != 0).pack(format)
}

fn root(env: &mut Env, bits: u64, format: Format) -> u64 {
    let number = number(env, bits, format);
    ops::sqrt(env, number, format).pack(format)
}

/// What the host says about one pair of lanes.
#[inline]
fn by_host(op: Op, a: u64, b: u64, format: Format) -> Option<u64> {
    fn bits<F: Real>(op: Op, a: F, b: F) -> Option<F> {
        match op {
            Op::Host(op) => F::compute(op, a, b),
            Op::Sqrt => b.root(),
            _ => None,
        }
    }
    if format == SINGLE {
        bits(op, f32::from_bits(a as u32), f32::from_bits(b as u32)).map(|result| result.to_bits().into())
    } else {
        bits(op, f64::from_bits(a), f64::from_bits(b)).map(f64::to_bits)
    }
}

/// What the host says about all pairs.
#[inline]
fn packed(op: host::Op, a: u128, b: u128, format: Format) -> Option<u128> {
    if format == SINGLE {
        f32::packed(op, a, b)
    } else {
        f64::packed(op, a, b)
    }
}

impl<E: Memory + Platform> Cpu<E> {
    fn sse_float(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.sse_float_as(insn, shape(insn.mnemonic()))
    }

    #[inline]
    fn sse_float_as(&mut self, insn: &Instruction, shape: Option<Shape>) -> Result<Flow, Stop> {
        let Some((op, format, scalar)) = shape else {
            return Err(Stop::Unsupported);
        };
        self.check_sse_state()?;
        let b = self.xmm_value(insn, 1, true)?;
        let a = self.xmm(insn.op0_register());
        let immediate = if matches!(op, Op::Compare | Op::Round) {
            insn.immediate8()
        } else {
            0
        };
        let mut env = self.sse_env();
        let by_host_allowed = host::allowed(self.state.fpu.mxcsr);
        if let Op::Host(op) = op
            && !scalar
            && by_host_allowed
            && let Some(result) = packed(op, a, b, format)
        {
            self.set_xmm(insn.op0_register(), result);
            return Ok(Flow::Next);
        }
        let count = if scalar { 1 } else { 128 / format.width() };
        let mut result = a;
        for index in 0..count {
            let (x, y, op) = pair(op, a, b, index, format, count);
            let fast = if by_host_allowed {
                by_host(op, x, y, format)
            } else {
                None
            };
            let bits = fast.unwrap_or_else(|| compute(&mut env, op, x, y, format, immediate));
            result = with_lane(result, index, format, bits);
        }
        if env.flags != 0 {
            self.sse_flags(&env)?;
        }
        self.set_xmm(insn.op0_register(), result);
        Ok(Flow::Next)
    }

    /// `comiss` and relatives: the order of the lowest lanes in ZF, PF and CF.
    fn sse_compare_flags(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let strict = matches!(insn.mnemonic(), M::Comiss | M::Comisd);
        let single = matches!(insn.mnemonic(), M::Comiss | M::Ucomiss);
        let format = if single { SINGLE } else { DOUBLE };
        let b = self.xmm_value(insn, 1, false)?;
        let a = self.xmm(insn.op0_register());
        let mut env = self.sse_env();
        let order = order(&mut env, lane(a, 0, format), lane(b, 0, format), format, strict);
        self.sse_flags(&env)?;
        self.set_status(order_flags(order));
        Ok(Flow::Next)
    }

    /// `dpps dppd`: products, then sums of neighbours, each rounded; exceptions of the products come first.
    fn sse_dot(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let format = if insn.mnemonic() == M::Dpps { SINGLE } else { DOUBLE };
        let b = self.xmm_value(insn, 1, true)?;
        let a = self.xmm(insn.op0_register());
        let control = insn.immediate8();
        let count = 128 / format.width();
        let mut env = self.sse_env();
        let mut products = [0; 4];
        for index in 0..count {
            if control >> (4 + index) & 1 != 0 {
                let (x, y) = (lane(a, index, format), lane(b, index, format));
                products[index as usize] = arithmetic(&mut env, host::Op::Mul, x, y, format);
            }
        }
        self.sse_flags(&env)?;
        let mut sum = |x, y| arithmetic(&mut env, host::Op::Add, x, y, format);
        let [first, second, third, fourth] = products;
        let mut total = sum(first, second);
        if count == 4 {
            let rest = sum(third, fourth);
            total = sum(total, rest);
        }
        self.sse_flags(&env)?;
        let chosen = |index: &u32| control >> index & 1 != 0;
        let result = (0..count)
            .filter(chosen)
            .fold(0, |result, index| with_lane(result, index, format, total));
        self.set_xmm(insn.op0_register(), result);
        Ok(Flow::Next)
    }
}

/// ZF, PF and CF as `comiss` and `fcomi` set them.
pub(in super::super) fn order_flags(order: Option<Ordering>) -> u64 {
    match order {
        None => ZF | PF | CF,
        Some(order) => when(order == Ordering::Equal, ZF) | when(order == Ordering::Less, CF),
    }
}

/// The operands of result lane `index`, and what is to be done with them.
#[inline]
fn pair(op: Op, a: u128, b: u128, index: u32, format: Format, count: u32) -> (u64, u64, Op) {
    let same = (lane(a, index, format), lane(b, index, format));
    let neighbours = || {
        let half = count / 2;
        let (from, first) = if index < half {
            (a, 2 * index)
        } else {
            (b, 2 * (index - half))
        };
        (lane(from, first, format), lane(from, first + 1, format))
    };
    let ((x, y), op) = match op {
        Op::AddSub if index & 1 == 0 => (same, Op::Host(host::Op::Sub)),
        Op::AddSub => (same, Op::Host(host::Op::Add)),
        Op::HorizontalAdd => (neighbours(), Op::Host(host::Op::Add)),
        Op::HorizontalSub => (neighbours(), Op::Host(host::Op::Sub)),
        op => (same, op),
    };
    (x, y, op)
}

#[cold]
fn compute(env: &mut Env, op: Op, a: u64, b: u64, format: Format, immediate: u8) -> u64 {
    match op {
        Op::Host(op) => arithmetic(env, op, a, b, format),
        Op::Sqrt => root(env, b, format),
        Op::Min => extreme(env, a, b, format, Ordering::Less),
        Op::Max => extreme(env, a, b, format, Ordering::Greater),
        Op::Compare if predicate(env, a, b, format, immediate) => u64::MAX >> (64 - format.width()),
        Op::Round => rounded(env, b, format, immediate),
        // `pair` has resolved the others.
        Op::Compare | Op::AddSub | Op::HorizontalAdd | Op::HorizontalSub => 0,
    }
}
