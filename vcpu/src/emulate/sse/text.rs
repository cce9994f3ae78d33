//! SSE4.2's string comparisons (`pcmpestri pcmpestrm pcmpistri pcmpistrm`, SDM vol. 1 section 12.11.3.1 and vol. 2
//! section 4.1) and `crc32`.

use super::super::dispatch::Handler;
use super::super::environment::{Memory, Platform, Stop};
use super::super::flags::{CF, OF, SF, ZF, when};
use super::super::state::{RAX, RCX, RDX};
use super::super::width::Width;
use super::super::{Cpu, Flow};
use iced_x86::{Instruction, Mnemonic as M, Register};

pub(super) fn handler<E: Memory + Platform>(mnemonic: M) -> Option<Handler<E>> {
    let handler: Handler<E> = match mnemonic {
        M::Pcmpestri | M::Pcmpestri64 | M::Pcmpestrm | M::Pcmpestrm64 | M::Pcmpistri | M::Pcmpistrm => Cpu::sse_strings,
        M::Crc32 => Cpu::crc32,
        _ => return None,
    };
    Some(handler)
}

/// A string of at most 16 bytes or 8 words.
struct Text {
    elements: [i32; 16],
    /// How many of them are part of the string.
    length: usize,
}

impl Text {
    /// `length` as a register gives it, or up to the first zero.
    fn new(bits: u128, format: u8, length: Option<i64>) -> Self {
        let bytes = bits.to_le_bytes();
        let mut elements = [0; 16];
        for (index, element) in elements[..count(format)].iter_mut().enumerate() {
            let word = || u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]);
            *element = match format & 3 {
                0 => i32::from(bytes[index]),
                1 => i32::from(word()),
                2 => i32::from(bytes[index] as i8),
                _ => i32::from(word() as i16),
            };
        }
        let all = count(format);
        let length = match length {
            Some(length) => length.unsigned_abs().min(all as u64) as usize,
            None => elements[..all].iter().position(|element| *element == 0).unwrap_or(all),
        };
        Self { elements, length }
    }
}

/// Elements in a register.
const fn count(format: u8) -> usize {
    if format & 1 == 0 { 16 } else { 8 }
}

/// The result of the comparison, one bit for each element of `b`.
fn compare(a: &Text, b: &Text, control: u8) -> u32 {
    let all = count(control);
    let element = |index: usize| -> bool {
        let present = index < b.length;
        let value = b.elements[index];
        match control >> 2 & 3 {
            0 => present && a.elements[..a.length].contains(&value),
            1 => {
                let bounds = a.elements[..a.length].chunks_exact(2);
                present && bounds.into_iter().any(|bound| bound[0] <= value && value <= bound[1])
            }
            2 => match (index < a.length, present) {
                (true, true) => a.elements[index] == value,
                (left, right) => left == right,
            },
            _ => (0..a.length.min(all - index))
                .all(|offset| index + offset < b.length && a.elements[offset] == b.elements[index + offset]),
        }
    };
    let raw = (0..all).fold(0_u32, |result, index| result | u32::from(element(index)) << index);
    let every = (1_u32 << all) - 1;
    match control >> 4 & 3 {
        1 => raw ^ every,
        3 => raw ^ ((1_u32 << b.length) - 1),
        _ => raw,
    }
}

impl<E: Memory + Platform> Cpu<E> {
    fn sse_strings(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let control = insn.immediate8();
        let right = self.xmm_value(insn, 1, false)?;
        let left = self.xmm(insn.op0_register());
        let lengths = match insn.mnemonic() {
            M::Pcmpestri | M::Pcmpestrm => Some(Width::B4),
            M::Pcmpestri64 | M::Pcmpestrm64 => Some(Width::B8),
            _ => None,
        };
        let length = |register| lengths.map(|width| width.extend(self.state.low(register, width)) as i64);
        let a = Text::new(left, control, length(RAX));
        let b = Text::new(right, control, length(RDX));
        let result = compare(&a, &b, control);
        let all = count(control);
        if matches!(insn.mnemonic(), M::Pcmpestri | M::Pcmpestri64 | M::Pcmpistri) {
            let index = match (result, control & 0x40 != 0) {
                (0, _) => all as u32,
                (_, true) => 31 - result.leading_zeros(),
                (_, false) => result.trailing_zeros(),
            };
            self.state.set_low(RCX, index.into(), Width::B4);
        } else {
            self.set_xmm(Register::XMM0, mask(result, all, control & 0x40 != 0));
        }
        let status =
            when(result != 0, CF) | when(b.length < all, ZF) | when(a.length < all, SF) | when(result & 1 != 0, OF);
        self.set_status(status);
        Ok(Flow::Next)
    }

    fn crc32(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 1);
        let value = self.value(insn, 1, width)?.to_le_bytes();
        let start = self.state.get(insn.op0_register()) as u32;
        let sum = value[..width.size()]
            .iter()
            .fold(start, |sum, byte| sum >> 8 ^ CASTAGNOLI[usize::from(sum as u8 ^ byte)]);
        self.state.set(insn.op0_register(), sum.into());
        Ok(Flow::Next)
    }
}

/// One bit, or one element of ones, for each bit of the result.
fn mask(result: u32, all: usize, expand: bool) -> u128 {
    if !expand {
        return result.into();
    }
    let bits = 128 / all;
    (0..all).fold(0, |mask, index| {
        let ones = u128::MAX >> (128 - bits) << (index * bits);
        if result >> index & 1 != 0 { mask | ones } else { mask }
    })
}

/// The remainders of single bytes by the polynomial 0x11edc6f41, bits reflected.
const CASTAGNOLI: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = sum >> 1 ^ if sum & 1 != 0 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
};
