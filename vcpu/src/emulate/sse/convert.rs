//! Conversions between integers, singles and doubles in XMM, MMX, general-purpose registers and memory.

use super::super::dispatch::Handler;
use super::super::environment::{Memory, Platform, Stop};
use super::super::float::{DOUBLE, Env, Format, Mode, SINGLE, convert, round};
use super::super::{Cpu, Flow};
use super::float::{lane, number, with_lane};
use iced_x86::{Instruction, Mnemonic as M};

pub(super) fn handler<E: Memory + Platform>(mnemonic: M) -> Option<Handler<E>> {
    let handler: Handler<E> = match mnemonic {
        M::Cvtsi2ss | M::Cvtsi2sd => Cpu::sse_from_register,
        M::Cvtss2si | M::Cvttss2si | M::Cvtsd2si | M::Cvttsd2si => Cpu::sse_to_register,
        M::Cvtss2sd | M::Cvtsd2ss => Cpu::sse_scalar_format,
        M::Cvtps2pd | M::Cvtpd2ps | M::Cvtdq2ps | M::Cvtdq2pd => Cpu::sse_packed_format,
        M::Cvtps2dq | M::Cvttps2dq | M::Cvtpd2dq | M::Cvttpd2dq => Cpu::sse_packed_format,
        _ => return None,
    };
    Some(handler)
}

/// One lane from a format to the other.
fn reformat(env: &mut Env, bits: u64, from: Format, to: Format) -> u64 {
    let number = number(env, bits, from);
    round::convert(env, number, to).pack(to)
}

/// One lane to a 32-bit integer; what does not fit is the most negative one.
pub(super) fn to_int32(env: &mut Env, bits: u64, from: Format, truncate: bool) -> u64 {
    let mode = if truncate { Mode::Zero } else { env.mode };
    let number = number(env, bits, from);
    let value = convert::to_integer(env, &number, 32, mode);
    value.map_or(0x8000_0000, |value| value as u64 & 0xffff_ffff)
}

/// One 32-bit integer to a format.
pub(super) fn from_int32(env: &mut Env, bits: u64, to: Format) -> u64 {
    convert::from_integer(env, i64::from(bits as i32), to).pack(to)
}

impl<E: Memory + Platform> Cpu<E> {
    fn sse_from_register(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let format = if insn.mnemonic() == M::Cvtsi2ss { SINGLE } else { DOUBLE };
        let width = Self::width(insn, 1);
        let value = width.extend(self.value(insn, 1, width)?) as i64;
        let mut env = self.sse_env();
        let bits = convert::from_integer(&mut env, value, format).pack(format);
        self.sse_flags(&env)?;
        let old = self.xmm(insn.op0_register());
        self.set_xmm(insn.op0_register(), with_lane(old, 0, format, bits));
        Ok(Flow::Next)
    }

    fn sse_to_register(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let single = matches!(insn.mnemonic(), M::Cvtss2si | M::Cvttss2si);
        let format = if single { SINGLE } else { DOUBLE };
        let truncate = matches!(insn.mnemonic(), M::Cvttss2si | M::Cvttsd2si);
        let bits = lane(self.xmm_value(insn, 1, false)?, 0, format);
        let width = Self::width(insn, 0);
        let mut env = self.sse_env();
        let mode = if truncate { Mode::Zero } else { env.mode };
        let number = number(&env, bits, format);
        let value = convert::to_integer(&mut env, &number, width.bits(), mode);
        self.sse_flags(&env)?;
        let value = value.map_or(width.sign(), |value| width.cut(value as u64));
        self.state.set(insn.op0_register(), value);
        Ok(Flow::Next)
    }

    fn sse_scalar_format(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let (from, to) = if insn.mnemonic() == M::Cvtss2sd {
            (SINGLE, DOUBLE)
        } else {
            (DOUBLE, SINGLE)
        };
        let bits = lane(self.xmm_value(insn, 1, false)?, 0, from);
        let mut env = self.sse_env();
        let bits = reformat(&mut env, bits, from, to);
        self.sse_flags(&env)?;
        let old = self.xmm(insn.op0_register());
        self.set_xmm(insn.op0_register(), with_lane(old, 0, to, bits));
        Ok(Flow::Next)
    }

    /// Two or four lanes; where the result has two narrow ones, the upper half is zero.
    fn sse_packed_format(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let b = self.xmm_value(insn, 1, true)?;
        let mut env = self.sse_env();
        let (from, to, count) = match insn.mnemonic() {
            M::Cvtps2pd | M::Cvtdq2pd => (SINGLE, DOUBLE, 2),
            M::Cvtpd2ps | M::Cvtpd2dq | M::Cvttpd2dq => (DOUBLE, SINGLE, 2),
            _ => (SINGLE, SINGLE, 4),
        };
        let mut result = 0;
        for index in 0..count {
            let bits = lane(b, index, from);
            let bits = match insn.mnemonic() {
                M::Cvtps2pd | M::Cvtpd2ps => reformat(&mut env, bits, from, to),
                M::Cvtdq2pd | M::Cvtdq2ps => from_int32(&mut env, bits, to),
                M::Cvtps2dq | M::Cvtpd2dq => to_int32(&mut env, bits, from, false),
                _ => to_int32(&mut env, bits, from, true),
            };
            result = with_lane(result, index, to, bits);
        }
        self.sse_flags(&env)?;
        self.set_xmm(insn.op0_register(), result);
        Ok(Flow::Next)
    }
}
