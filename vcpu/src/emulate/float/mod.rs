//! Binary floating point as x87 and SSE see it: values taken apart, one rounding step, the five operations, conversions.
//!
//! A [`Number`] is exact; every operation computes an exact (or sticky) result of 128 bits and gives it to
//! [`round::round`], which knows precision and range of the destination, rounding modes, flags, flushing to zero, the
//! wrapped exponents of x87's unmasked responses and the direction of rounding (C1). [`host`] lets the machine compute where
//! that provably gives the same bits and flags. `wide` carries 128 bits for the transcendental functions.
//! (SDM vol. 1 chapter 4, sections 8.5 and 11.5.)

pub(super) mod convert;
pub(crate) mod host;
pub(super) mod ops;
pub(super) mod round;

use super::fpu::F80;

/// Exception flags, at the places that they have in MXCSR and in the x87 status word, and C1 of the latter.
pub(super) mod flag {
    /// Invalid operation.
    pub(crate) const IE: u16 = 1 << 0;
    /// Denormal operand.
    pub(crate) const DE: u16 = 1 << 1;
    /// Division by zero.
    pub(crate) const ZE: u16 = 1 << 2;
    /// Overflow.
    pub(crate) const OE: u16 = 1 << 3;
    /// Underflow.
    pub(crate) const UE: u16 = 1 << 4;
    /// Precision: the result was rounded.
    pub(crate) const PE: u16 = 1 << 5;
    /// All of them.
    pub(crate) const ALL: u16 = 0x3f;
    /// Those that are known before anything is computed: if one is not masked there is no result.
    pub(crate) const BEFORE: u16 = IE | DE | ZE;
    /// C1 of x87: rounding went away from zero.
    pub(crate) const UP: u16 = 1 << 9;
}

/// Rounding mode, in the encoding of the control registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// To the nearest, ties to even.
    Nearest,
    /// Towards minus infinity.
    Down,
    /// Towards plus infinity.
    Up,
    /// Towards zero.
    Zero,
}

impl Mode {
    /// From two bits of a control register.
    pub(super) const fn of(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }
}

/// What a result has to fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Format {
    /// Bits of the significand, with the integer bit.
    pub(super) precision: u32,
    /// Exponent of the smallest normal number.
    pub(super) emin: i32,
    /// Exponent of the largest number; also the bias.
    pub(super) emax: i32,
}

/// binary32.
pub(super) const SINGLE: Format = Format::of(24, 127);
/// binary64.
pub(super) const DOUBLE: Format = Format::of(53, 1023);
/// The 80-bit format of x87.
pub(super) const EXTENDED: Format = Format::of(64, 16383);

impl Format {
    const fn of(precision: u32, emax: i32) -> Self {
        Self {
            precision,
            emin: 1 - emax,
            emax,
        }
    }

    /// x87's format with its precision cut by the control word.
    pub(super) const fn extended_with(precision: u32) -> Self {
        Self { precision, ..EXTENDED }
    }

    /// Bits of the stored fraction, for the two formats that memory and XMM registers hold.
    const fn fraction(self) -> u32 {
        self.precision - 1
    }

    /// Bits of the whole.
    pub(super) const fn width(self) -> u32 {
        if self.precision == 24 { 32 } else { 64 }
    }

    /// All ones in the biased exponent.
    const fn top(self) -> u64 {
        2 * self.emax as u64 + 1
    }
}

/// What kind of datum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// ±0.
    Zero,
    /// Any other finite number.
    Finite,
    /// ±∞.
    Infinity,
    /// Not a number; signaling if bit 62 of the significand is clear.
    Nan,
    /// An encoding of the 80-bit format that processors since the 387 refuse.
    Unsupported,
}

/// A datum of any of the formats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Number {
    pub(super) kind: Kind,
    pub(super) negative: bool,
    /// The number is significand · 2^(exponent − 63).
    pub(super) exponent: i32,
    /// Bit 63 is set, but in results of `round` that are denormal (whose exponent is the format's smallest).
    pub(super) significand: u64,
    /// It came from a denormal encoding.
    pub(super) denormal: bool,
}

/// What surrounds an operation: control bits in, flags out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Env {
    pub(super) mode: Mode,
    /// Exceptions that are masked (`flag`).
    pub(super) masks: u16,
    /// Denormal operands count as zero.
    pub(super) daz: bool,
    /// Tiny results become zero, if underflow is masked.
    pub(super) ftz: bool,
    /// x87's rules for NaNs and for unmasked overflow and underflow instead of those of SSE.
    pub(super) x87: bool,
    /// Flags raised so far.
    pub(super) flags: u16,
}

impl Env {
    /// Whether an exception was raised that is not masked and leaves no result.
    pub(super) const fn refused(&self) -> bool {
        self.flags & flag::BEFORE & !self.masks != 0
    }
}

const INTEGER: u64 = 1 << 63;
const QUIET: u64 = 1 << 62;

impl Number {
    /// The NaN that an invalid operation gives.
    pub(super) const INDEFINITE: Self = Self {
        kind: Kind::Nan,
        negative: true,
        exponent: 0,
        significand: INTEGER | QUIET,
        denormal: false,
    };

    pub(super) const fn zero(negative: bool) -> Self {
        Self {
            kind: Kind::Zero,
            negative,
            exponent: 0,
            significand: 0,
            denormal: false,
        }
    }

    pub(super) const fn infinity(negative: bool) -> Self {
        Self {
            kind: Kind::Infinity,
            significand: INTEGER,
            ..Self::zero(negative)
        }
    }

    pub(super) const fn finite(negative: bool, exponent: i32, significand: u64) -> Self {
        Self {
            kind: Kind::Finite,
            negative,
            exponent,
            significand,
            denormal: false,
        }
    }

    /// A finite number or zero from a significand that need not be normalised.
    const fn normalise(negative: bool, exponent: i32, significand: u64) -> Self {
        if significand == 0 {
            return Self::zero(negative);
        }
        let shift = significand.leading_zeros();
        Self::finite(negative, exponent - shift as i32, significand << shift)
    }

    pub(super) fn is_nan(&self) -> bool {
        self.kind == Kind::Nan
    }

    pub(super) fn is_signaling(&self) -> bool {
        self.is_nan() && self.significand & QUIET == 0
    }

    pub(super) fn is_zero(&self) -> bool {
        self.kind == Kind::Zero
    }

    pub(super) const fn quieted(self) -> Self {
        Self {
            significand: self.significand | QUIET,
            ..self
        }
    }

    pub(super) const fn negated(self) -> Self {
        Self {
            negative: !self.negative,
            ..self
        }
    }

    /// Takes a single or double apart.
    pub(super) fn unpack(bits: u64, format: Format) -> Self {
        let negative = bits >> (format.width() - 1) & 1 != 0;
        let fraction = bits & ((1 << format.fraction()) - 1);
        let biased = bits >> format.fraction() & format.top();
        let left = fraction << (63 - format.fraction());
        if biased == format.top() {
            return if fraction == 0 {
                Self::infinity(negative)
            } else {
                Self {
                    kind: Kind::Nan,
                    significand: INTEGER | left,
                    ..Self::zero(negative)
                }
            };
        }
        if biased == 0 {
            return Self {
                denormal: fraction != 0,
                ..Self::normalise(negative, format.emin, left)
            };
        }
        Self::finite(negative, biased as i32 - format.emax, INTEGER | left)
    }

    /// The bits of a single or double, of a number that was rounded to that format.
    pub(super) const fn pack(&self, format: Format) -> u64 {
        let sign = (self.negative as u64) << (format.width() - 1);
        let fraction = (self.significand & !INTEGER) >> (63 - format.fraction());
        let biased = match self.kind {
            Kind::Zero => return sign,
            Kind::Finite if self.significand & INTEGER == 0 => 0,
            Kind::Finite => (self.exponent + format.emax) as u64 & format.top(),
            _ => format.top(),
        };
        sign | biased << format.fraction() | fraction
    }

    /// Takes the content of an x87 register apart.
    pub(super) fn from_f80(bits: F80) -> Self {
        let negative = bits.sign_exponent & 0x8000 != 0;
        let biased = bits.sign_exponent & 0x7fff;
        let significand = bits.mantissa;
        let unsupported = Self {
            kind: Kind::Unsupported,
            significand,
            ..Self::zero(negative)
        };
        match biased {
            0 => Self {
                denormal: significand != 0,
                ..Self::normalise(negative, EXTENDED.emin, significand)
            },
            _ if significand & INTEGER == 0 => unsupported,
            0x7fff if significand == INTEGER => Self::infinity(negative),
            0x7fff => Self {
                kind: Kind::Nan,
                significand,
                ..Self::zero(negative)
            },
            _ => Self::finite(negative, i32::from(biased) - EXTENDED.emax, significand),
        }
    }

    /// The content of an x87 register, of a number that was rounded to the 80-bit format.
    pub(super) const fn to_f80(self) -> F80 {
        let biased = match self.kind {
            Kind::Zero => 0,
            Kind::Finite if self.significand & INTEGER == 0 => 0,
            Kind::Finite => (self.exponent + EXTENDED.emax) as u16 & 0x7fff,
            _ => 0x7fff,
        };
        F80 {
            mantissa: self.significand,
            sign_exponent: (self.negative as u16) << 15 | biased,
        }
    }
}
