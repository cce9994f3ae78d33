//! The instructions at RIP.

use super::mode::CpuMode;
use super::walk::Walk;
use crate::regs::SystemRegs;
use iced_x86::{Decoder, DecoderOptions, FastFormatter, Instruction};
use umbra_memslots::{GuestMemory, Gva, PAGE_SIZE};

/// How many instructions are shown.
const SHOWN: usize = 4;
/// Enough bytes for them.
const WINDOW: u64 = SHOWN as u64 * 15;

/// One disassembled instruction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CodeLine {
    /// Instruction pointer (not the linear address, where they differ).
    pub rip: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// In Intel syntax.
    pub text: String,
}

/// Disassembles up to four instructions of `bytes`, which lie at `rip`.
pub fn disassemble(bytes: &[u8], rip: u64, mode: CpuMode) -> Vec<CodeLine> {
    let mut decoder = Decoder::with_ip(mode.code_bits(), bytes, rip, DecoderOptions::NONE);
    let mut formatter = FastFormatter::new();
    formatter.options_mut().set_use_hex_prefix(true);
    let mut lines = Vec::new();
    let mut instruction = Instruction::default();
    while lines.len() < SHOWN && decoder.can_decode() {
        let from = decoder.position();
        decoder.decode_out(&mut instruction);
        // The window may have cut the last one.
        if instruction.is_invalid() && !lines.is_empty() {
            break;
        }
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        lines.push(CodeLine {
            rip: instruction.ip(),
            bytes: bytes[from..decoder.position()].to_vec(),
            text,
        });
        if instruction.is_invalid() {
            break;
        }
    }
    lines
}

/// The bytes from a linear address on, as far as they are mapped to memory.
pub fn bytes_at(linear: Gva, system: &SystemRegs, memory: &impl GuestMemory) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut at = linear;
    while (bytes.len() as u64) < WINDOW {
        let Some(gpa) = Walk::of(at, system, memory).gpa else {
            break;
        };
        let run = (PAGE_SIZE - at.page_offset()).min(WINDOW - bytes.len() as u64);
        let mut page = vec![0; usize::try_from(run).unwrap_or(0)];
        if memory.read(gpa, &mut page).is_err() {
            break;
        }
        bytes.append(&mut page);
        at = at.wrapping_add(run);
    }
    bytes
}
