//! MMX and SSE to SSE4.2 (SDM vol. 1 chapters 9 to 12).
//!
//! `lanes` and `shuffle` hold what integer instructions compute, as functions of 128-bit values, and `packed` what the host
//! may compute of floating point; `simd` is how an x86-64 host does it (`portable` any other). `moves`, `text` (string
//! comparison, `crc32`), `float` (arithmetic and comparison), `convert` and `mmx` are what else there is; `control` is MXCSR.
//! This file fetches operands, checks alignment and stores results.

mod approximate;
mod control;
mod convert;
pub(super) mod float;
pub(crate) mod lanes;
mod mmx;
mod moves;
#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "instructions that every x86-64 processor has")
)]
pub(crate) mod packed;
#[cfg(any(test, not(target_arch = "x86_64")))]
pub(crate) mod portable;
pub(crate) mod shuffle;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "instructions that the host is known to have")]
pub(crate) mod simd;
mod text;

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use portable as parts;
#[cfg(target_arch = "x86_64")]
pub(crate) use simd as parts;

use super::environment::{AccessKind, Memory, Platform, Stop};
use super::exception::Exception;
use super::{Cpu, Flow};
use crate::emulate::dispatch::Handler;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// The handler for an SSE instruction that the core knows.
pub(super) fn handler<E: Memory + Platform>(insn: &Instruction) -> Option<Handler<E>> {
    let uses = |index: u32| {
        let register = insn.op_kind(index) == OpKind::Register;
        register.then(|| insn.op_register(index))
    };
    let mut registers = (0..insn.op_count()).filter_map(uses);
    // The only ones that may come without an MMX register are conversions from memory.
    if registers.any(Register::is_mm) || matches!(insn.mnemonic(), Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd) {
        return mmx::handler(insn.mnemonic());
    }
    if let Some(handler) = moves::handler(insn.mnemonic()) {
        return Some(handler);
    }
    let others = [
        float::handler(insn),
        convert::handler(insn.mnemonic()),
        text::handler(insn.mnemonic()),
    ];
    if let Some(handler) = others.into_iter().flatten().next() {
        return Some(handler);
    }
    if lanes::operation(insn.mnemonic()).is_some() {
        return Some(Cpu::sse_lanes);
    }
    if lanes::shift(insn.mnemonic()).is_some() {
        return Some(Cpu::sse_shift);
    }
    shuffle::operation(insn.mnemonic()).map(|_| Cpu::sse_shuffle as Handler<E>)
}

impl<E: Memory + Platform> Cpu<E> {
    /// The 16 bytes of an XMM register.
    pub(super) fn xmm(&self, register: Register) -> u128 {
        self.state.fpu.xmm[register.number() & 15]
    }

    pub(super) fn set_xmm(&mut self, register: Register, value: u128) {
        self.state.fpu.xmm[register.number() & 15] = value;
    }

    /// Operand `index`: a register's 16 bytes, or as many as the instruction reads from memory, zero-extended. Sixteen
    /// bytes of memory must be aligned, but for the instructions that say otherwise.
    pub(super) fn xmm_value(&mut self, insn: &Instruction, index: u32, aligned: bool) -> Result<u128, Stop> {
        if insn.op_kind(index) == OpKind::Register {
            return Ok(self.xmm(insn.op_register(index)));
        }
        let length = insn.memory_size().size().clamp(1, 16);
        let at = self.memory_operand(insn, length, AccessKind::Read)?;
        if aligned && length == 16 && !at.get().is_multiple_of(16) {
            return Err(Exception::gp(0).into());
        }
        let access = self.access(AccessKind::Read);
        let mut bytes = [0; 16];
        self.read_memory(at, &mut bytes[..length], access)?;
        Ok(u128::from_le_bytes(bytes))
    }

    /// Writes the low bytes of a value to memory.
    pub(super) fn store_xmm(&mut self, insn: &Instruction, value: u128, aligned: bool) -> Result<(), Stop> {
        let length = insn.memory_size().size().clamp(1, 16);
        let at = self.memory_operand(insn, length, AccessKind::Write)?;
        if aligned && length == 16 && !at.get().is_multiple_of(16) {
            return Err(Exception::gp(0).into());
        }
        let access = self.access(AccessKind::Write);
        self.write_memory(at, &value.to_le_bytes()[..length], access)
    }

    fn sse_lanes(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let Some(operation) = lanes::operation(insn.mnemonic()) else {
            return Err(Stop::Unsupported);
        };
        let b = self.xmm_value(insn, 1, true)?;
        let a = self.xmm(insn.op0_register());
        self.set_xmm(insn.op0_register(), operation(a, b));
        Ok(Flow::Next)
    }

    /// The count is an immediate, or the low 64 bits of the source.
    fn sse_shift(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let Some(operation) = lanes::shift(insn.mnemonic()) else {
            return Err(Stop::Unsupported);
        };
        let count = match insn.op1_kind() {
            OpKind::Immediate8 => u64::from(insn.immediate8()),
            _ => self.xmm_value(insn, 1, true)? as u64,
        };
        let a = self.xmm(insn.op0_register());
        self.set_xmm(insn.op0_register(), operation(a, count.min(255) as u32));
        Ok(Flow::Next)
    }

    fn sse_shuffle(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_sse_state()?;
        let Some(operation) = shuffle::operation(insn.mnemonic()) else {
            return Err(Stop::Unsupported);
        };
        let b = self.xmm_value(insn, 1, true)?;
        let a = self.xmm(insn.op0_register());
        self.set_xmm(insn.op0_register(), operation(a, b, insn.immediate8()));
        Ok(Flow::Next)
    }
}

/// Whether a mnemonic takes 16 bytes at any address.
const fn unaligned(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Movdqu | Mnemonic::Lddqu
    )
}
