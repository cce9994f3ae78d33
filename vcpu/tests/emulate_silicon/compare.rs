//! What must be equal between silicon and core, and what the manuals leave open.

use super::generate::Case;
use super::layout::{PAD, PAD_16, PAD_64, slot};
use super::machine::{Ended, How, Registers};
use super::mode::Mode;
use super::segments;
use super::vendor;
use iced_x86::{Instruction, Mnemonic as M, OpKind, RflagsBits};
use umbra_vcpu::emulate::flags::{AF, CF, DF, OF, PF, SF, ZF};
use umbra_vcpu::emulate::{CpuState, Step};

/// The core's state that has these registers.
pub fn state(case: &Case, template: &CpuState) -> CpuState {
    let mut state = template.clone();
    state.gpr = case.input.gpr;
    state.rflags = case.input.rflags | 0x202;
    state.rip = case.insn.ip();
    if !case.mode.is_long() {
        let [es, cs, ss, ds, fs, gs] = case.input.segments.map(segments::hidden);
        let sys = &mut state.sys;
        (sys.es, sys.cs, sys.ss, sys.ds, sys.fs, sys.gs) = (es, cs, ss, ds, fs, gs);
    }
    let fx = &case.input.fx;
    state.fpu.xmm_from_image(fx, 16);
    state.fpu.x87_from_image(fx, true);
    state.fpu.mxcsr = u32::from_le_bytes([fx[24], fx[25], fx[26], fx[27]]);
    state
}

/// Whether the case leaves something open that the harness would see. (Which MXCSR bits exist differs.)
fn open_ended(case: &Case, how: How) -> bool {
    vendor::may_have_begun(case, how) || (case.insn.mnemonic() == M::Ldmxcsr && how != How::Next)
}

fn fell_through(state: &CpuState, case: &Case) -> bool {
    let same_code = case.mode.is_long() || state.sys.cs.selector == case.input.segments[1];
    same_code && state.rip == case.insn.next_ip()
}

/// Whether the core is at a pad of its slot, in code of the pad's kind.
fn landed(state: &CpuState, mode: Mode, index: usize) -> bool {
    if mode.is_long() {
        return state.rip == mode.pad(index);
    }
    let cs = &state.sys.cs;
    let pad = match (cs.long, cs.db) {
        (true, _) => PAD_64,
        (false, true) => PAD,
        (false, false) => PAD_16,
    };
    cs.base + state.rip == slot(index) + pad
}

/// The vector of `int3` and of `into`.
fn soft_vector(case: &Case) -> Option<u8> {
    match case.insn.mnemonic() {
        M::Int3 => Some(3),
        M::Into => Some(4),
        _ => None,
    }
}

/// What the core says, in the silicon's terms; `None` if it can't say.
pub fn ended(step: Step, state: &CpuState, case: &Case, index: usize) -> Option<Ended> {
    // A trap after the next instruction would end in the harness.
    if state.flag(umbra_vcpu::emulate::flags::TF) {
        return None;
    }
    let how = match step {
        Step::Done { .. } if fell_through(state, case) => How::Next,
        Step::Done { .. } if landed(state, case.mode, index) => How::Taken,
        // There is no IDT: the core stops at the gate, where the silicon goes through.
        Step::Fault(fault)
            if let Some(vector) = soft_vector(case)
                && fault.error_code == Some(u32::from(vector) * 8 + 2) =>
        {
            How::Fault {
                vector,
                code: 0,
                cr2: None,
            }
        }
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
        segments: selectors(state, case.mode),
    };
    Some(Ended { registers, how })
}

/// What can be seen of segment registers. CS is told apart by where a case lands.
fn selectors(state: &CpuState, mode: Mode) -> [u16; 6] {
    if mode.is_long() {
        return [0; 6];
    }
    let sys = &state.sys;
    [
        sys.es.selector,
        0,
        sys.ss.selector,
        sys.ds.selector,
        sys.fs.selector,
        sys.gs.selector,
    ]
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
    let allowed =
        vendor::same_end(case, silicon.how, core.how) || (case.mode.is_long() && hidden_by_kvm(silicon.how, core.how));
    if vendor::store_gave_way(case, silicon, core) {
        return found;
    }
    if silicon.how != core.how && !allowed {
        found.push(format!("silicon {:x?}, core {:x?}", silicon.how, core.how));
    }
    let insn = &case.insn;
    for (number, (left, right)) in silicon.registers.gpr.iter().zip(&core.registers.gpr).enumerate() {
        if (left ^ right) & vendor::agreed_bits(case, number, *left) != 0 {
            found.push(format!("gpr {number}: silicon {left:#x}, core {right:#x}"));
        }
    }
    // Where the kernel came back from an interrupt, null selectors are zero.
    let null = |selector: u16| if selector < 4 { 0 } else { selector };
    let (left, right) = (silicon.registers.segments.map(null), core.registers.segments.map(null));
    if left != right {
        found.push(format!("segments: silicon {left:x?}, core {right:x?}"));
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
            let close =
                super::approximate::close(insn, what, left, right) || vendor::same_nans(insn, what, left, right);
            if left != right && !close {
                found.push(format!("{what} {index}: silicon {}, core {}", hex(left), hex(right)));
            }
        }
    }
    let mut mask = CF | PF | AF | ZF | SF | DF | OF;
    if !faulted {
        mask &= !undefined_flags(insn, &case.input);
    }
    let beginning = vendor::flags_of_beginning(case, silicon, mask);
    if (silicon.registers.rflags ^ core.registers.rflags) & mask != 0 && !beginning {
        let (left, right) = (silicon.registers.rflags & mask, core.registers.rflags & mask);
        found.push(format!("flags: silicon {left:#x}, core {right:#x}"));
    }
    found
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
