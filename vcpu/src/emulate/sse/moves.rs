//! Moves between XMM registers, memory and general-purpose registers.

use super::super::dispatch::Handler;
use super::super::environment::{AccessKind, Memory, Platform, Stop};
use super::super::state::RDI;
use super::super::width::Width;
use super::super::{Cpu, Flow};
use super::{lanes, parts, unaligned};
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

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
        M::Insertps => Cpu::sse_insert_single,
        M::Blendvps | M::Blendvpd | M::Pblendvb => Cpu::sse_blend_by_mask,
        M::Maskmovdqu => Cpu::sse_store_by_mask,
        M::Movnti => Cpu::mov,
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
        let value = self.xmm(insn.op1_register());
        let bits = match insn.mnemonic() {
            M::Movmskps => 32,
            M::Movmskpd => 64,
            _ => {
                self.state.set(insn.op0_register(), parts::byte_signs(value).into());
                return Ok(Flow::Next);
            }
        };
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

    /// `insertps`: one lane from a register or from memory to a place, and zeros to others.
    fn sse_insert_single(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let control = u32::from(insn.immediate8());
        let value = self.xmm_value(insn, 1, false)?;
        let from = if insn.op1_kind() == OpKind::Register {
            control >> 6
        } else {
            0
        };
        let shift = 32 * (control >> 4 & 3);
        let lane = value >> (32 * from) & 0xffff_ffff;
        let mut new = self.xmm(insn.op0_register()) & !(0xffff_ffff << shift) | lane << shift;
        for index in (0..4).filter(|index| control >> index & 1 != 0) {
            new &= !(0xffff_ffff << (32 * index));
        }
        self.set_xmm(insn.op0_register(), new);
        Ok(Flow::Next)
    }

    /// `blendvps blendvpd pblendvb`: the sign of each lane of XMM0 chooses the source.
    fn sse_blend_by_mask(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let b = self.xmm_value(insn, 1, true)?;
        let a = self.xmm(insn.op0_register());
        let control = self.xmm(Register::XMM0);
        let mask = match insn.mnemonic() {
            M::Blendvps => lanes::i32s(control, 0, |sign, _| sign >> 31),
            M::Blendvpd => lanes::i64s(control, 0, |sign, _| sign >> 63),
            _ => lanes::i8s(control, 0, |sign, _| sign >> 7),
        };
        self.set_xmm(insn.op0_register(), a & !mask | b & mask);
        Ok(Flow::Next)
    }

    fn sse_store_by_mask(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let (value, mask) = (self.xmm(insn.op1_register()), self.xmm(insn.op2_register()));
        self.store_by_mask(insn, value, mask, 16)
    }

    /// `maskmovdqu maskmovq`: the bytes whose mask byte is negative go to DS:rDI. Nothing is written if one can't be.
    pub(super) fn store_by_mask(
        &mut self,
        insn: &Instruction,
        value: u128,
        mask: u128,
        length: usize,
    ) -> Result<Flow, Stop> {
        let address = match insn.op0_kind() {
            OpKind::MemorySegDI => Width::B2,
            OpKind::MemorySegEDI => Width::B4,
            _ => Width::B8,
        };
        let at = self.linear(
            insn.memory_segment(),
            self.state.low(RDI, address),
            length,
            AccessKind::Write,
        )?;
        let access = self.access(AccessKind::Write);
        let (value, mask) = (value.to_le_bytes(), mask.to_le_bytes());
        let chosen = |byte: &usize| mask[*byte] & 0x80 != 0;
        // As AMD's processors do, also for the bytes that are not chosen.
        self.env.probe(at, length, access)?;
        for byte in (0..length).filter(chosen) {
            self.env
                .write(at.wrapping_add(byte as u64), &value[byte..=byte], access)?;
        }
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
