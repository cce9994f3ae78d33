//! Moves between XMM registers, memory and general-purpose registers.

use super::super::dispatch::Handler;
use super::super::environment::{Memory, Platform, Stop};
use super::super::width::Width;
use super::super::{Cpu, Flow};
use super::unaligned;
use iced_x86::{Instruction, Mnemonic as M, OpKind};

const LOW: u128 = u64::MAX as u128;

pub(super) fn handler<E: Memory + Platform>(mnemonic: M) -> Option<Handler<E>> {
    let handler: Handler<E> = match mnemonic {
        M::Movaps | M::Movapd | M::Movdqa | M::Movups | M::Movupd | M::Movdqu | M::Lddqu => Cpu::sse_move,
        M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => Cpu::sse_move,
        M::Movd | M::Movq => Cpu::sse_move_integer,
        M::Movss | M::Movsd => Cpu::sse_move_scalar,
        M::Movlps | M::Movlpd | M::Movhps | M::Movhpd | M::Movhlps | M::Movlhps => Cpu::sse_move_half,
        M::Movmskps | M::Movmskpd | M::Pmovmskb => Cpu::sse_move_mask,
        M::Pextrb | M::Pextrw | M::Pextrd | M::Pextrq | M::Extractps => Cpu::sse_extract,
        M::Pinsrb | M::Pinsrw | M::Pinsrd | M::Pinsrq => Cpu::sse_insert,
        M::Ptest => Cpu::sse_test,
        _ => return None,
    };
    Some(handler)
}

impl<E: Memory + Platform> Cpu<E> {
    fn sse_move(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let aligned = !unaligned(insn.mnemonic());
        let value = self.xmm_value(insn, 1, aligned)?;
        if insn.op0_kind() == OpKind::Register {
            self.set_xmm(insn.op0_register(), value);
        } else {
            self.store_xmm(insn, value, aligned)?;
        }
        Ok(Flow::Next)
    }

    /// `movd movq`: between an XMM register's low part and a general-purpose register or memory; the rest is cleared.
    fn sse_move_integer(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let is_xmm = |index: u32| insn.op_kind(index) == OpKind::Register && insn.op_register(index).is_xmm();
        let value = if is_xmm(1) {
            self.xmm(insn.op1_register()) & LOW
        } else if insn.op1_kind() == OpKind::Register {
            u128::from(self.state.get(insn.op1_register()))
        } else {
            self.xmm_value(insn, 1, false)?
        };
        if is_xmm(0) {
            self.set_xmm(insn.op0_register(), value);
        } else if insn.op0_kind() == OpKind::Register {
            let width = Self::width(insn, 0);
            self.state.set(insn.op0_register(), width.cut(value as u64));
        } else {
            self.store_xmm(insn, value, false)?;
        }
        Ok(Flow::Next)
    }

    /// `movss movsd`: from a register the rest of the destination stays, from memory it is cleared.
    fn sse_move_scalar(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let mask = if insn.mnemonic() == M::Movss { 0xffff_ffff } else { LOW };
        let value = self.xmm_value(insn, 1, false)?;
        if insn.op0_kind() != OpKind::Register {
            self.store_xmm(insn, value, false)?;
            return Ok(Flow::Next);
        }
        let kept = if insn.op1_kind() == OpKind::Register {
            self.xmm(insn.op0_register()) & !mask
        } else {
            0
        };
        self.set_xmm(insn.op0_register(), kept | value & mask);
        Ok(Flow::Next)
    }

    /// Moves of one 64-bit half; the other half of the destination stays.
    fn sse_move_half(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let high = matches!(insn.mnemonic(), M::Movhps | M::Movhpd | M::Movlhps);
        if insn.op0_kind() != OpKind::Register {
            let value = self.xmm(insn.op1_register());
            self.store_xmm(insn, if high { value >> 64 } else { value }, false)?;
            return Ok(Flow::Next);
        }
        let value = self.xmm_value(insn, 1, false)?;
        let value = if insn.mnemonic() == M::Movhlps {
            value >> 64
        } else {
            value & LOW
        };
        let old = self.xmm(insn.op0_register());
        let new = if high {
            old & LOW | value << 64
        } else {
            old & !LOW | value
        };
        self.set_xmm(insn.op0_register(), new);
        Ok(Flow::Next)
    }

    fn sse_move_mask(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let bits = match insn.mnemonic() {
            M::Movmskps => 32,
            M::Movmskpd => 64,
            _ => 8,
        };
        let value = self.xmm(insn.op1_register());
        let signs = (0..128 / bits).fold(0, |mask, lane| mask | (value >> (lane * bits + bits - 1) & 1) << lane);
        self.state.set(insn.op0_register(), signs as u64);
        Ok(Flow::Next)
    }

    fn sse_extract(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let width = lane_width(insn.mnemonic());
        let lane = u32::from(insn.immediate8()) % (128 / width.bits());
        let value = width.cut((self.xmm(insn.op1_register()) >> (lane * width.bits())) as u64);
        if insn.op0_kind() == OpKind::Register {
            self.state.set(insn.op0_register(), value);
        } else {
            self.store_xmm(insn, u128::from(value), false)?;
        }
        Ok(Flow::Next)
    }

    fn sse_insert(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let width = lane_width(insn.mnemonic());
        let shift = u32::from(insn.immediate8()) % (128 / width.bits()) * width.bits();
        let value = width.cut(self.value(insn, 1, width)?);
        let old = self.xmm(insn.op0_register());
        let new = old & !(u128::from(width.mask()) << shift) | u128::from(value) << shift;
        self.set_xmm(insn.op0_register(), new);
        Ok(Flow::Next)
    }

    fn sse_test(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        use super::super::flags::{CF, ZF, when};
        self.check_sse_state()?;
        let b = self.xmm_value(insn, 1, true)?;
        let a = self.xmm(insn.op0_register());
        self.set_status(when(a & b == 0, ZF) | when(!a & b == 0, CF));
        Ok(Flow::Next)
    }
}

const fn lane_width(mnemonic: M) -> Width {
    match mnemonic {
        M::Pextrb | M::Pinsrb => Width::B1,
        M::Pextrw | M::Pinsrw => Width::B2,
        M::Pextrq | M::Pinsrq => Width::B8,
        _ => Width::B4,
    }
}
