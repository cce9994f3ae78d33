//! What must be equal between silicon and core, and what the manuals leave open.

use super::generate::Case;
use super::machine::{Ended, How, Registers, pad};
use iced_x86::{Instruction, Mnemonic as M, OpKind, RflagsBits};
use umbra_vcpu::emulate::flags::{AF, CF, DF, OF, PF, SF, ZF};
use umbra_vcpu::emulate::{CpuState, Step};

/// The core's state that has these registers.
pub fn state(case: &Case, template: &CpuState) -> CpuState {
    let mut state = template.clone();
    state.gpr = case.input.gpr;
    state.rflags = case.input.rflags | 0x202;
    state.rip = case.insn.ip();
    let fx = &case.input.fx;
    state.fpu.xmm_from_image(fx, 16);
    state.fpu.x87_from_image(fx, true);
    state.fpu.mxcsr = u32::from_le_bytes([fx[24], fx[25], fx[26], fx[27]]);
    state
}

/// Whether the case leaves something open that the harness would see: `enter` may have pushed before it faults, and
/// which MXCSR bits exist differs.
fn open_ended(case: &Case, how: How) -> bool {
    matches!(case.insn.mnemonic(), M::Enter | M::Ldmxcsr) && how != How::Next
}

/// What the core says, in the silicon's terms; `None` if it can't say.
pub fn ended(step: Step, state: &CpuState, case: &Case, index: usize) -> Option<Ended> {
    // A trap after the next instruction would end in the harness.
    if state.flag(umbra_vcpu::emulate::flags::TF) {
        return None;
    }
    let how = match step {
        Step::Done { .. } if state.rip == case.insn.next_ip() => How::Next,
        Step::Done { .. } if state.rip == pad(index) => How::Taken,
        Step::Fault(fault) => How::Fault {
            vector: fault.vector,
            code: fault.error_code.unwrap_or(0),
            cr2: fault.cr2.map(umbra_memslots::Gva::get),
        },
        _ => return None,
    };
    if open_ended(case, how) {
        return None;
    }
    let mut fx = [0; 512];
    state.fpu.xmm_to_image(&mut fx, 16);
    state.fpu.x87_to_image(&mut fx, true);
    state.fpu.mxcsr_to_image(&mut fx);
    let registers = Registers {
        gpr: state.gpr,
        rflags: state.rflags,
        fx,
    };
    Some(Ended { registers, how })
}

/// Status flags that the instruction leaves undefined.
fn undefined_flags(insn: &Instruction, input: &Registers) -> u64 {
    let bits = insn.rflags_undefined();
    let mut undefined = 0;
    for (bit, flag) in [
        (RflagsBits::OF, OF),
        (RflagsBits::SF, SF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::AF, AF),
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
    ] {
        if bits & bit != 0 {
            undefined |= flag;
        }
    }
    let size = match insn.op0_kind() {
        OpKind::Register => insn.op0_register().size() as u32 * 8,
        _ => insn.memory_size().size() as u32 * 8,
    };
    let mask = if size == 64 { 63 } else { 31 };
    let last = insn.op_count().saturating_sub(1);
    let count = match insn.op_kind(last) {
        OpKind::Register => input.gpr[1] as u32,
        _ => u32::from(insn.immediate8()),
    } & mask;
    match insn.mnemonic() {
        M::Shl | M::Sal | M::Shr | M::Sar => {
            undefined = match count {
                0 => 0,
                1 => AF,
                _ => AF | OF,
            };
            if count > size || (count == size && size < 32) {
                undefined |= CF;
            }
        }
        M::Shld | M::Shrd => {
            undefined = match count {
                0 => 0,
                1 => AF,
                _ => AF | OF,
            };
            if count > size {
                undefined |= CF | PF | ZF | SF;
            }
        }
        M::Rol | M::Ror | M::Rcl | M::Rcr => undefined = if count <= 1 { 0 } else { OF },
        _ => {}
    }
    undefined
}

/// The parts of an FXSAVE image that are compared: all but the pointers to the last x87 instruction, which AMD stores
/// only while an exception waits.
const STATE: [(&str, std::ops::Range<usize>, usize); 6] = [
    ("control", 0..2, 2),
    ("status", 2..4, 2),
    ("tags", 4..5, 1),
    ("st", 32..160, 16),
    ("xmm", 160..416, 16),
    ("mxcsr", 24..28, 4),
];

/// Little-endian bytes as one number.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}

/// Differences, in words; empty if there are none.
pub fn differences(case: &Case, silicon: &Ended, core: &Ended) -> Vec<String> {
    let mut found = Vec::new();
    if silicon.how != core.how && !hidden_by_kvm(silicon.how, core.how) && !either_operand(case, silicon.how, core.how)
    {
        found.push(format!("silicon {:x?}, core {:x?}", silicon.how, core.how));
    }
    let insn = &case.insn;
    for (number, (left, right)) in silicon.registers.gpr.iter().zip(&core.registers.gpr).enumerate() {
        if left != right {
            found.push(format!("gpr {number}: silicon {left:#x}, core {right:#x}"));
        }
    }
    let faulted = matches!(silicon.how, How::Fault { .. });
    let mmx = (0..insn.op_count()).any(|operand| insn.op_register(operand).is_mm());
    for (what, range, step) in STATE {
        // AMD's processors have marked the x87 registers already when some of these fault.
        if faulted && mmx && range.end <= 160 && range.start != 24 {
            continue;
        }
        let (left, right) = (&silicon.registers.fx[range.clone()], &core.registers.fx[range]);
        for (index, (left, right)) in left.chunks(step).zip(right.chunks(step)).enumerate() {
            if left != right && !super::approximate::close(insn, what, left, right) {
                found.push(format!("{what} {index}: silicon {}, core {}", hex(left), hex(right)));
            }
        }
    }
    let mut mask = CF | PF | AF | ZF | SF | DF | OF;
    if !faulted {
        mask &= !undefined_flags(insn, &case.input);
    }
    if (silicon.registers.rflags ^ core.registers.rflags) & mask != 0 {
        let (left, right) = (silicon.registers.rflags & mask, core.registers.rflags & mask);
        found.push(format!("flags: silicon {left:#x}, core {right:#x}"));
    }
    found
}

/// `cmps` reads its two operands in no fixed order: if both fault, either may be reported. Likewise the fields of an x87
/// environment.
fn either_operand(case: &Case, silicon: How, core: How) -> bool {
    let page_fault = |how| matches!(how, How::Fault { vector: 14, .. });
    let parts = match case.insn.mnemonic() {
        M::Fldenv | M::Frstor => true,
        _ => case.insn.is_string_instruction() && case.insn.op_count() == 2,
    };
    parts && page_fault(silicon) && page_fault(core)
}

/// Whether a case ended in #UD.
pub fn is_ud(ended: &Ended) -> bool {
    matches!(ended.how, How::Fault { vector: 6, .. })
}

/// KVM looks at a guest's #GP and #SS before the guest does; where it takes guests' CPL 0 for its own work it tries to
/// emulate the instruction, and answers #UD if its emulator does not know it.
fn hidden_by_kvm(silicon: How, core: How) -> bool {
    matches!(silicon, How::Fault { vector: 6, .. })
        && matches!(
            core,
            How::Fault {
                vector: 12 | 13,
                code: 0,
                ..
            }
        )
}

/// Of `f2xm1` and `fyl2xp1`, whose argument in ST(0) has to lie around zero.
fn out_of_domain(insn: &Instruction, input: &Registers) -> bool {
    let magnitude = u16::from_le_bytes([input.fx[40], input.fx[41]]) & 0x7fff;
    let limit = match insn.mnemonic() {
        M::F2xm1 => 0x3fff,
        M::Fyl2xp1 => 0x3ffd,
        _ => return false,
    };
    magnitude >= limit && magnitude != 0x7fff
}

/// `shld` and `shrd` of words by more than 16 have no defined result, nor have some functions out of their domain.
pub fn undefined_result(insn: &Instruction, input: &Registers) -> bool {
    if out_of_domain(insn, input) {
        return true;
    }
    if !matches!(insn.mnemonic(), M::Shld | M::Shrd) {
        return false;
    }
    let word = insn.op1_kind() == OpKind::Register && insn.op1_register().size() == 2;
    let count = match insn.op2_kind() {
        OpKind::Register => input.gpr[1],
        _ => u64::from(insn.immediate8()),
    };
    word && count & 31 > 16
}
