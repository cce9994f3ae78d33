//! Random instructions of every form that the core knows and CPL 3 may run, with operands that make sense: which forms
//! (`forms`), what operands they get (`operands`), and registers that let these point to where they should (`fit`).

mod fit;
mod forms;
mod operands;

use super::machine::Registers;
use super::mode::Mode;
use super::rng::Rng;
use super::segments;
use iced_x86::{Code, Decoder, DecoderOptions, Encoder, Instruction, OpKind, Register};

pub struct Generator {
    mode: Mode,
    codes: Vec<Code>,
}

/// One case: an instruction at its place and the registers to run it with.
#[derive(Clone)]
pub struct Case {
    pub mode: Mode,
    pub insn: Instruction,
    pub bytes: Vec<u8>,
    pub input: Registers,
}

impl Generator {
    /// Forms of a mode; `only` those of one mnemonic. `None` if there are none.
    pub fn new(mode: Mode, only: Option<&str>) -> Option<Self> {
        let codes: Vec<Code> = Code::values()
            .filter(|code| forms::testable(*code, mode))
            .filter(|code| only.is_none_or(|only| matches(&format!("{:?}", code.mnemonic()), only)))
            .collect();
        (!codes.is_empty()).then_some(Self { mode, codes })
    }

    /// A random case for slot `index`.
    pub fn case(&self, rng: &mut Rng, index: usize) -> Case {
        loop {
            let code = rng.pick(&self.codes);
            if let Some(case) = build(code, self.mode, rng, index) {
                return case;
            }
        }
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The forms that cases are drawn from.
    pub fn forms(&self) -> &[Code] {
        &self.codes
    }
}

/// Whether a mnemonic is the one asked for, or begins like it if that ends in a star.
fn matches(mnemonic: &str, only: &str) -> bool {
    let mnemonic = mnemonic.to_lowercase();
    match only.strip_suffix('*') {
        Some(start) => mnemonic.starts_with(start),
        None => mnemonic == only,
    }
}

/// What operands are made for.
struct Place {
    mode: Mode,
    index: usize,
    /// ES, CS, SS, DS, FS, GS.
    segments: [u16; 6],
    /// A segment prefix, if a memory operand comes.
    prefix: Option<Register>,
}

impl Place {
    /// The base of the segment that an instruction uses, in compatibility mode.
    fn base(&self, segment: Register) -> u64 {
        if self.mode.is_long() {
            return 0;
        }
        segments::hidden(self.segments[segment.number()]).base
    }
}

fn build(code: Code, mode: Mode, rng: &mut Rng, index: usize) -> Option<Case> {
    let info = code.op_code();
    let mut insn = Instruction::default();
    insn.set_code(code);
    let prefixes: &[Register] = if mode.is_long() {
        &[Register::FS, Register::GS, Register::DS, Register::SS]
    } else {
        &[
            Register::FS,
            Register::GS,
            Register::DS,
            Register::SS,
            Register::ES,
            Register::CS,
        ]
    };
    let place = Place {
        mode,
        index,
        segments: segments::choose(rng, mode, index),
        prefix: rng
            .chance(if mode.is_long() { 3 } else { 15 })
            .then(|| rng.pick(prefixes)),
    };
    for operand in 0..info.op_count() {
        operands::set(&mut insn, info, operand, rng, &place);
    }
    let memory = (0..info.op_count()).any(|operand| insn.op_kind(operand) == OpKind::Memory);
    if info.can_use_lock_prefix() && insn.op0_kind() == OpKind::Memory && rng.chance(30) {
        insn.set_has_lock_prefix(true);
    }
    if insn.is_string_instruction() {
        match rng.below(4) {
            0 if info.can_use_repne_prefix() => insn.set_has_repne_prefix(true),
            1 | 2 if info.can_use_rep_prefix() => insn.set_has_rep_prefix(true),
            _ => {}
        }
    }
    if let Some(prefix) = place.prefix
        && (memory || insn.is_string_instruction() && !mode.is_long())
    {
        insn.set_segment_prefix(prefix);
    }
    let rip = mode.hole(index);
    let mut encoder = Encoder::new(mode.bits());
    encoder.encode(&insn, rip).ok()?;
    let bytes = encoder.take_buffer();
    let insn = Decoder::with_ip(mode.bits(), &bytes, rip, DecoderOptions::NONE).decode();
    if insn.is_invalid() || insn.len() != bytes.len() {
        return None;
    }
    let mut input = fit::registers(rng, place.segments);
    fit::fit(&insn, &mut input, rng, &place);
    if super::compare::undefined_result(&insn, &input) || is_split_lock(&insn, &input, &place) {
        return None;
    }
    Some(Case {
        mode,
        insn,
        bytes,
        input,
    })
}

/// Whether a locked access of compatibility mode crosses a cache line. Such ones hold up the whole machine, and for
/// seconds under a hypervisor that takes a trap for each; 64-bit mode has enough of them.
fn is_split_lock(insn: &Instruction, input: &Registers, place: &Place) -> bool {
    const LINE: u64 = 64;
    let locked = insn.has_lock_prefix() || insn.mnemonic() == iced_x86::Mnemonic::Xchg;
    let operand = (0..insn.op_count()).find(|operand| insn.op_kind(*operand) == OpKind::Memory);
    let (false, true, Some(operand)) = (place.mode.is_long(), locked, operand) else {
        return false;
    };
    let linear = insn.virtual_address(operand, 0, |register, _, _| {
        Some(if register.is_segment_register() {
            place.base(register)
        } else {
            let value = input.gpr[register.full_register().number()];
            if register.size() == 2 { value & 0xffff } else { value }
        })
    });
    let length = insn.memory_size().size() as u64;
    linear.is_some_and(|linear| linear % LINE + length > LINE)
}
