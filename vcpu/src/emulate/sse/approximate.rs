//! `rcpps rcpss rsqrtps rsqrtss`: reciprocals to twelve bits.

use super::super::environment::{Memory, Platform, Stop};
use super::super::float::SINGLE;
use super::super::{Cpu, Flow};
use super::float::{lane, with_lane};
use iced_x86::{Instruction, Mnemonic as M};

impl<E: Memory + Platform> Cpu<E> {
    /// `rcpps rsqrtps` and their scalar forms raise no exception and do not look at MXCSR.
    pub(super) fn sse_approximate(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let root = matches!(insn.mnemonic(), M::Rsqrtps | M::Rsqrtss);
        let count = if matches!(insn.mnemonic(), M::Rcpss | M::Rsqrtss) {
            1
        } else {
            4
        };
        let b = self.xmm_value(insn, 1, true)?;
        let mut result = self.xmm(insn.op0_register());
        for index in 0..count {
            let bits = lane(b, index, SINGLE) as u32;
            let bits = if root { reciprocal_root(bits) } else { reciprocal(bits) };
            result = with_lane(result, index, SINGLE, bits.into());
        }
        self.set_xmm(insn.op0_register(), result);
        Ok(Flow::Next)
    }
}

/// 1/x to 12 bits, relative error at most 1.5 · 2^-12 (the manuals' bound). Denormals count as zero, tiny results
/// become zero.
fn reciprocal(bits: u32) -> u32 {
    let x = f32::from_bits(bits);
    let sign = bits & 1 << 31;
    if x.is_nan() {
        return bits | 1 << 22;
    }
    if !x.is_normal() {
        return if x.is_infinite() { sign } else { sign | 0x7f80_0000 };
    }
    let inverse = 1.0 / x;
    if inverse.is_normal() {
        twelve_bits(inverse).to_bits()
    } else {
        sign
    }
}

/// 1/√x likewise.
fn reciprocal_root(bits: u32) -> u32 {
    let x = f32::from_bits(bits);
    let sign = bits & 1 << 31;
    if x.is_nan() {
        return bits | 1 << 22;
    }
    if x == 0.0 || x.is_subnormal() {
        return sign | 0x7f80_0000;
    }
    if sign != 0 {
        return 0xffc0_0000;
    }
    if x.is_infinite() {
        return 0;
    }
    twelve_bits((1.0 / f64::from(x).sqrt()) as f32).to_bits()
}

/// Rounds the significand to twelve bits.
fn twelve_bits(x: f32) -> f32 {
    f32::from_bits((x.to_bits() + (1 << 11)) & !0xfff)
}
