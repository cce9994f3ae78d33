//! Shifts and rotates: `shl shr sar rol ror rcl rcr shld shrd`.
//!
//! A count of zero changes no flag at all. OF is defined for a count of one only; for other counts it gets what the
//! same formula yields, as processors do.

use super::environment::{Memory, Platform, Stop};
use super::flags::{self, AF, CF, OF, PF, SF, ZF, when};
use super::width::Width;
use super::{Cpu, Flow};
use iced_x86::Instruction;

impl<E: Memory + Platform> Cpu<E> {
    /// The count in operand `index`, masked to 5 bits (6 for 8-byte operands).
    fn count(&mut self, insn: &Instruction, index: u32, width: Width) -> Result<u32, Stop> {
        let mask = if width == Width::B8 { 63 } else { 31 };
        Ok((self.value(insn, index, Width::B1)? & mask) as u32)
    }

    /// Runs a shift whose count is operand 1. `operation` gets a non-zero count.
    fn shift(
        &mut self,
        insn: &Instruction,
        mask: u64,
        operation: impl Fn(u64, u32, Width) -> (u64, u64),
    ) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let count = self.count(insn, 1, width)?;
        let mask = if count == 0 { 0 } else { mask };
        self.modify(insn, width, mask, |a| {
            if count == 0 { (a, 0) } else { operation(a, count, width) }
        })?;
        Ok(Flow::Next)
    }

    pub(super) fn shl(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.shift(insn, flags::STATUS, |a, count, width| {
            let wide = u128::from(a) << count;
            let result = width.cut(wide as u64);
            let carry = (wide >> width.bits()) & 1 != 0;
            let overflow = (result & width.sign() != 0) != carry;
            (
                result,
                flags::of_result(result, width) | when(carry, CF) | when(overflow, OF),
            )
        })
    }

    pub(super) fn shr(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.shift(insn, flags::STATUS, |a, count, width| {
            let carry = (u128::from(a) >> (count - 1)) & 1 != 0;
            let result = (u128::from(a) >> count) as u64;
            // For one step: the sign bit before.
            let overflow = (result ^ (result << 1)) & width.sign() != 0;
            (
                result,
                flags::of_result(result, width) | when(carry, CF) | when(overflow, OF),
            )
        })
    }

    pub(super) fn sar(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.shift(insn, flags::STATUS, |a, count, width| {
            let signed = width.extend(a) as i64;
            let carry = (signed >> (count - 1).min(63)) & 1 != 0;
            let result = width.cut((signed >> count.min(63)) as u64);
            (result, flags::of_result(result, width) | when(carry, CF))
        })
    }

    pub(super) fn rol(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.shift(insn, CF | OF, |a, count, width| {
            let result = rotate_left(a, count % width.bits(), width);
            let carry = result & 1 != 0;
            let overflow = (result & width.sign() != 0) != carry;
            (result, when(carry, CF) | when(overflow, OF))
        })
    }

    pub(super) fn ror(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.shift(insn, CF | OF, |a, count, width| {
            let result = rotate_left(a, width.bits() - count % width.bits(), width);
            let carry = result & width.sign() != 0;
            let overflow = (result ^ (result << 1)) & width.sign() != 0;
            (result, when(carry, CF) | when(overflow, OF))
        })
    }

    pub(super) fn rcl(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let carry_in = self.state.rflags & CF;
        self.rotate_through_carry(insn, |a, count, width| {
            let ring = width.bits() + 1;
            let value = (u128::from(carry_in) << width.bits()) | u128::from(a);
            let turned = (value << count) | (value >> (ring - count));
            let carry = (turned >> width.bits()) & 1 != 0;
            let result = width.cut(turned as u64);
            let overflow = (result & width.sign() != 0) != carry;
            (result, when(carry, CF) | when(overflow, OF))
        })
    }

    pub(super) fn rcr(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let carry_in = self.state.rflags & CF;
        self.rotate_through_carry(insn, |a, count, width| {
            let ring = width.bits() + 1;
            let value = (u128::from(carry_in) << width.bits()) | u128::from(a);
            let turned = (value >> count) | (value << (ring - count));
            let carry = (turned >> width.bits()) & 1 != 0;
            let result = width.cut(turned as u64);
            let overflow = (result ^ (result << 1)) & width.sign() != 0;
            (result, when(carry, CF) | when(overflow, OF))
        })
    }

    fn rotate_through_carry(
        &mut self,
        insn: &Instruction,
        operation: impl Fn(u64, u32, Width) -> (u64, u64),
    ) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let count = self.count(insn, 1, width)? % (width.bits() + 1);
        let mask = if count == 0 { 0 } else { CF | OF };
        self.modify(insn, width, mask, |a| {
            if count == 0 { (a, 0) } else { operation(a, count, width) }
        })?;
        Ok(Flow::Next)
    }

    pub(super) fn shld(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.double_shift(insn, |a, b, count, width| {
            // With 16-bit operands and a count above 16 the architecture leaves the result open; processors go on
            // shifting in the destination after the source.
            if width == Width::B8 {
                let wide = (u128::from(a) << 64) | u128::from(b);
                let carry = (a >> (64 - count)) & 1 != 0;
                return (((wide << count) >> 64) as u64, carry);
            }
            let bits = width.bits();
            let wide = (u128::from(a) << (2 * bits)) | (u128::from(b) << bits) | u128::from(a);
            let result = width.cut(((wide << count) >> (2 * bits)) as u64);
            let carry = (wide >> (3 * bits - count)) & 1 != 0;
            (result, carry)
        })
    }

    pub(super) fn shrd(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.double_shift(insn, |a, b, count, width| {
            let wide = (u128::from(b) << width.bits()) | u128::from(a);
            let wide = if width == Width::B8 {
                wide
            } else {
                wide | (u128::from(a) << (2 * width.bits()))
            };
            let result = width.cut((wide >> count) as u64);
            let carry = (wide >> (count - 1)) & 1 != 0;
            (result, carry)
        })
    }

    fn double_shift(
        &mut self,
        insn: &Instruction,
        operation: impl Fn(u64, u64, u32, Width) -> (u64, bool),
    ) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let b = self.value(insn, 1, width)?;
        let count = self.count(insn, 2, width)?;
        let mask = if count == 0 { 0 } else { CF | PF | AF | ZF | SF | OF };
        self.modify(insn, width, mask, |a| {
            if count == 0 {
                return (a, 0);
            }
            let (result, carry) = operation(a, b, count, width);
            let overflow = (a ^ result) & width.sign() != 0;
            (
                result,
                flags::of_result(result, width) | when(carry, CF) | when(overflow, OF),
            )
        })?;
        Ok(Flow::Next)
    }
}

/// `count` in 0..=bits.
fn rotate_left(value: u64, count: u32, width: Width) -> u64 {
    let wide = u128::from(value);
    width.cut(((wide << count) | (wide >> (width.bits() - count))) as u64)
}
