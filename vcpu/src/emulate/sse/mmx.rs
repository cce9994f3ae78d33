//! MMX: 64-bit integers in the significands of the x87 registers (SDM vol. 1 chapter 9).
//!
//! Each instruction marks all x87 registers as in use and puts the top of the stack at 0; a register that is written gets
//! an exponent of ones.

use super::super::dispatch::Handler;
use super::super::environment::{Memory, Platform, Stop};
use super::super::exception::Exception;
use super::super::float::{DOUBLE, SINGLE};
use super::super::fpu::F80;
use super::super::state::cr0;
use super::super::width::Width;
use super::super::{Cpu, Flow};
use super::convert::{from_int32, to_int32};
use super::float::{lane, with_lane};
use super::{lanes, shuffle};
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

pub(super) fn handler<E: Memory + Platform>(mnemonic: M) -> Option<Handler<E>> {
    let handler: Handler<E> = match mnemonic {
        M::Movd | M::Movq | M::Movntq | M::Movq2dq | M::Movdq2q => Cpu::mmx_move,
        M::Maskmovq => Cpu::mmx_store_by_mask,
        M::Pmovmskb => Cpu::mmx_move_mask,
        M::Pinsrw => Cpu::mmx_insert,
        M::Pextrw => Cpu::mmx_extract,
        M::Cvtpi2ps | M::Cvtpi2pd => Cpu::mmx_to_float,
        M::Cvtps2pi | M::Cvttps2pi | M::Cvtpd2pi | M::Cvttpd2pi => Cpu::mmx_from_float,
        _ if lanes::operation(mnemonic).is_some() => Cpu::mmx_lanes,
        _ if lanes::shift(mnemonic).is_some() => Cpu::mmx_shift,
        _ if operation(mnemonic).is_some() => Cpu::mmx_shuffle,
        _ => return None,
    };
    Some(handler)
}

/// What a mnemonic makes of destination, source and immediate.
type Shuffle = fn(M, u64, u64, u8) -> u64;

/// Shuffles of 64 bits, by those of 128.
fn operation(mnemonic: M) -> Option<Shuffle> {
    /// Both operands side by side where the wide instruction has its first one.
    fn beside(mnemonic: M, a: u64, b: u64, control: u8) -> u64 {
        let both = u128::from(a) | u128::from(b) << 64;
        shuffle::operation(mnemonic).map_or(0, |wide| wide(both, both, control)) as u64
    }
    /// All of the operands' lanes in turn.
    fn interleaved(mnemonic: M, a: u64, b: u64) -> u128 {
        shuffle::operation(mnemonic).map_or(0, |wide| wide(a.into(), b.into(), 0))
    }
    Some(match mnemonic {
        M::Packsswb | M::Packuswb | M::Packssdw | M::Phaddw | M::Phaddd | M::Phaddsw | M::Phsubw | M::Phsubd => beside,
        M::Phsubsw => beside,
        M::Punpcklbw | M::Punpcklwd | M::Punpckldq => |mnemonic, a, b, _| interleaved(mnemonic, a, b) as u64,
        M::Punpckhbw => |_, a, b, _| (interleaved(M::Punpcklbw, a, b) >> 64) as u64,
        M::Punpckhwd => |_, a, b, _| (interleaved(M::Punpcklwd, a, b) >> 64) as u64,
        M::Punpckhdq => |_, a, b, _| (interleaved(M::Punpckldq, a, b) >> 64) as u64,
        M::Pshufw => |_, _, b, control| beside(M::Pshuflw, b, b, control),
        M::Pshufb => |_, a, b, _| {
            let low = a.to_le_bytes();
            let byte = |control: u8| {
                if control & 0x80 != 0 {
                    0
                } else {
                    low[usize::from(control & 7)]
                }
            };
            u64::from_le_bytes(b.to_le_bytes().map(byte))
        },
        M::Palignr => |_, a, b, count| {
            let both = u128::from(a) << 64 | u128::from(b);
            both.checked_shr(8 * u32::from(count)).unwrap_or(0) as u64
        },
        _ => return None,
    })
}

impl<E: Memory + Platform> Cpu<E> {
    /// #UD, #NM, or #MF of an exception that waits.
    pub(in super::super) fn check_mmx(&mut self) -> Result<(), Stop> {
        if self.state.sys.cr0 & cr0::EM != 0 {
            return Err(Exception::UD.into());
        }
        self.check_task_switched()?;
        self.check_x87_error()
    }

    /// What every MMX instruction does to the x87 state.
    fn enter_mmx(&mut self) {
        self.state.fpu.tags = 0xff;
        self.state.fpu.set_top(0);
    }

    fn mm(&self, register: Register) -> u64 {
        self.state.fpu.x87[register.number() & 7].mantissa
    }

    fn set_mm(&mut self, register: Register, mantissa: u64) {
        self.enter_mmx();
        self.state.fpu.x87[register.number() & 7] = F80 {
            mantissa,
            sign_exponent: 0xffff,
        };
    }

    /// Operand `index`: MMX, XMM (low part) or general-purpose register, or memory.
    fn mmx_value(&mut self, insn: &Instruction, index: u32) -> Result<u64, Stop> {
        if insn.op_kind(index) != OpKind::Register {
            let width = Width::of(insn.memory_size().size());
            return self.value(insn, index, width);
        }
        let register = insn.op_register(index);
        Ok(if register.is_mm() {
            self.mm(register)
        } else if register.is_xmm() {
            self.xmm(register) as u64
        } else {
            self.state.get(register)
        })
    }

    fn mmx_move(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_mmx()?;
        let value = self.mmx_value(insn, 1)?;
        if insn.op0_kind() != OpKind::Register {
            self.set_value(insn, 0, Self::width(insn, 0), value)?;
        } else if insn.op0_register().is_mm() {
            self.set_mm(insn.op0_register(), value);
        } else if insn.op0_register().is_xmm() {
            self.set_xmm(insn.op0_register(), value.into());
        } else {
            self.state.set(insn.op0_register(), value);
        }
        self.enter_mmx();
        Ok(Flow::Next)
    }

    fn mmx_lanes(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_mmx()?;
        let Some(operation) = lanes::operation(insn.mnemonic()) else {
            return Err(Stop::Unsupported);
        };
        let b = self.mmx_value(insn, 1)?;
        let a = self.mm(insn.op0_register());
        self.set_mm(insn.op0_register(), operation(a.into(), b.into()) as u64);
        Ok(Flow::Next)
    }

    fn mmx_shift(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_mmx()?;
        let Some(operation) = lanes::shift(insn.mnemonic()) else {
            return Err(Stop::Unsupported);
        };
        let count = match insn.op1_kind() {
            OpKind::Immediate8 => u64::from(insn.immediate8()),
            _ => self.mmx_value(insn, 1)?,
        };
        let a = self.mm(insn.op0_register());
        self.set_mm(insn.op0_register(), operation(a.into(), count.min(255) as u32) as u64);
        Ok(Flow::Next)
    }

    fn mmx_shuffle(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_mmx()?;
        let Some(operation) = operation(insn.mnemonic()) else {
            return Err(Stop::Unsupported);
        };
        let b = self.mmx_value(insn, 1)?;
        let a = self.mm(insn.op0_register());
        let result = operation(insn.mnemonic(), a, b, insn.immediate8());
        self.set_mm(insn.op0_register(), result);
        Ok(Flow::Next)
    }

    fn mmx_move_mask(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_mmx()?;
        let bytes = self.mm(insn.op1_register()).to_le_bytes();
        let signs = bytes
            .iter()
            .rev()
            .fold(0, |mask, byte| mask << 1 | u64::from(byte >> 7));
        self.state.set(insn.op0_register(), signs);
        self.enter_mmx();
        Ok(Flow::Next)
    }

    fn mmx_insert(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_mmx()?;
        let value = self.value(insn, 1, Width::B2)?;
        let shift = 16 * u32::from(insn.immediate8() & 3);
        let old = self.mm(insn.op0_register());
        self.set_mm(insn.op0_register(), old & !(0xffff << shift) | value << shift);
        Ok(Flow::Next)
    }

    fn mmx_extract(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_mmx()?;
        let shift = 16 * u32::from(insn.immediate8() & 3);
        let value = self.mm(insn.op1_register()) >> shift & 0xffff;
        self.state.set(insn.op0_register(), value);
        self.enter_mmx();
        Ok(Flow::Next)
    }

    fn mmx_store_by_mask(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_mmx()?;
        let (value, mask) = (self.mm(insn.op1_register()), self.mm(insn.op2_register()));
        let flow = self.store_by_mask(insn, value.into(), mask.into(), 8)?;
        self.enter_mmx();
        Ok(flow)
    }

    /// `cvtpi2ps cvtpi2pd`: two integers to an XMM register.
    fn mmx_to_float(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let is_register = insn.op1_kind() == OpKind::Register;
        if is_register {
            self.check_x87_error()?;
        }
        let value = self.mmx_value(insn, 1)?;
        let format = if insn.mnemonic() == M::Cvtpi2ps { SINGLE } else { DOUBLE };
        let mut env = self.sse_env();
        let mut result = self.xmm(insn.op0_register());
        for index in 0..2 {
            let bits = from_int32(&mut env, lane(value.into(), index, SINGLE), format);
            result = with_lane(result, index, format, bits);
        }
        self.sse_flags(&env)?;
        self.set_xmm(insn.op0_register(), result);
        if is_register {
            self.enter_mmx();
        }
        Ok(Flow::Next)
    }

    /// `cvtps2pi` and relatives: two numbers of an XMM register or memory to integers.
    fn mmx_from_float(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        self.check_x87_error()?;
        let value = self.xmm_value(insn, 1, true)?;
        let single = matches!(insn.mnemonic(), M::Cvtps2pi | M::Cvttps2pi);
        let format = if single { SINGLE } else { DOUBLE };
        let truncate = matches!(insn.mnemonic(), M::Cvttps2pi | M::Cvttpd2pi);
        let mut env = self.sse_env();
        let mut result = 0;
        for index in 0..2 {
            let bits = to_int32(&mut env, lane(value, index, format), format, truncate);
            result = with_lane(result, index, SINGLE, bits);
        }
        self.sse_flags(&env)?;
        self.set_mm(insn.op0_register(), result as u64);
        Ok(Flow::Next)
    }
}
