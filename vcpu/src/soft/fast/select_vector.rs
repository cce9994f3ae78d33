//! From a decoded instruction on XMM registers to its op.

use super::select::memory;
use super::vector::{self, Operation, Way};
use super::{Op, Run, scalar};
use crate::emulate::sse::{lanes, parts, shuffle};
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

/// Finds the function of the op, and sets the op's operands.
pub(super) fn find(op: &mut Op, insn: &Instruction, long: bool) -> Option<Run> {
    let way = match (insn.op0_kind(), insn.op1_kind()) {
        (OpKind::Register, OpKind::Memory) => Way::Load,
        (OpKind::Memory, OpKind::Register) => Way::Store,
        (OpKind::Register, _) => Way::Registers,
        _ => return None,
    };
    let registers = [insn.op0_register(), insn.op1_register()];
    let [to, from] = registers.map(|register| register.number() as u8 & 15);
    (op.to, op.from) = (to, from);
    if way != Way::Registers {
        memory(op, insn, long)?;
    }
    let [to_xmm, from_xmm] = registers.map(|register| register == Register::None || register.is_xmm());
    if let M::Movd | M::Movq = insn.mnemonic() {
        return movement(op, registers, way, insn.mnemonic() == M::Movq);
    }
    if insn.mnemonic() == M::Pmovmskb && from_xmm {
        return Some(vector::sign_mask);
    }
    if let Some(run) = converted(op, insn, way, registers) {
        return Some(run);
    }
    if !to_xmm || !from_xmm {
        return None;
    }
    let run = match insn.mnemonic() {
        M::Movaps | M::Movapd | M::Movdqa => vector::whole_moves(op, way, true),
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => vector::whole_moves(op, way, false),
        M::Movss => vector::scalar_moves(op, way, false),
        M::Movsd => vector::scalar_moves(op, way, true),
        _ if way == Way::Store => return None,
        M::Ucomiss | M::Comiss => scalar::comparisons::<f32>(op, way == Way::Load),
        M::Ucomisd | M::Comisd => scalar::comparisons::<f64>(op, way == Way::Load),
        M::Sqrtss => scalar::roots::<f32>(op, way == Way::Load),
        M::Sqrtsd => scalar::roots::<f64>(op, way == Way::Load),
        M::Cvtss2sd => scalar::widenings(op, way == Way::Load),
        _ => return computed(op, insn, way == Way::Load),
    };
    Some(run)
}

/// Conversions with a general-purpose register.
fn converted(op: &Op, insn: &Instruction, way: Way, [to, from]: [Register; 2]) -> Option<Run> {
    let memory = way == Way::Load;
    Some(match insn.mnemonic() {
        M::Cvtsi2ss | M::Cvtsi2sd if from.is_gpr() => {
            scalar::from_integers(from.is_gpr64(), insn.mnemonic() == M::Cvtsi2sd)
        }
        M::Cvttss2si => scalar::to_integers::<f32>(op, false, memory, to.is_gpr64()),
        M::Cvttsd2si => scalar::to_integers::<f64>(op, false, memory, to.is_gpr64()),
        M::Cvtss2si => scalar::to_integers::<f32>(op, true, memory, to.is_gpr64()),
        M::Cvtsd2si => scalar::to_integers::<f64>(op, true, memory, to.is_gpr64()),
        _ => return None,
    })
}

/// `movd` and `movq`.
fn movement(op: &Op, [to, from]: [Register; 2], way: Way, quad: bool) -> Option<Run> {
    if to.is_mm() || from.is_mm() {
        return None;
    }
    if way == Way::Registers && to.is_gpr() {
        return Some(vector::crossing_moves(true, to.is_gpr64()));
    }
    if way == Way::Registers && from.is_gpr() {
        return Some(vector::crossing_moves(false, from.is_gpr64()));
    }
    vector::integer_moves(op, way, quad)
}

/// Defines operations of which the core has the functions, and the choice among them.
macro_rules! choose {
    ($function:ident, $source:path, $apply:expr, $($name:ident)*) => {
        fn $function(op: &Op, mnemonic: M, memory: bool) -> Option<Run> {
            match mnemonic {
                $(M::$name => {
                    struct This;
                    impl Operation for This {
                        #[inline(always)]
                        fn apply(a: u128, b: u128, immediate: u8) -> Option<u128> {
                            match const { $source(M::$name) } {
                                Some(function) => $apply(function, a, b, immediate),
                                None => unreachable!("a mnemonic that is not the function's"),
                            }
                        }
                    }
                    Some(vector::operations::<This>(op, memory))
                })*
                _ => None,
            }
        }
    };
}

choose!(
    lane_operation, lanes::operation, |function: lanes::Binary, a, b, _| Some(function(a, b)),
    Pand Pandn Por Pxor Andps Andpd Andnps Andnpd Orps Orpd Xorps Xorpd
    Paddb Paddw Paddd Paddq Psubb Psubw Psubd Psubq Paddusb Paddusw Psubusb Psubusw Paddsw Psubsw
    Pcmpeqb Pcmpeqw Pcmpeqd Pcmpgtb Pcmpgtw Pcmpgtd
    Pminub Pmaxub Pminsw Pmaxsw Pavgb Pavgw Pmullw Pmulld Pmulhw Pmulhuw Pmuludq Pmaddwd Psadbw
);
choose!(
    shift_operation, lanes::shift,
    |function: lanes::ByCount, a, _, count: u8| Some(function(a, count.into())),
    Psllw Pslld Psllq Psrlw Psrld Psrlq Psraw Psrad Pslldq Psrldq
);
choose!(
    shuffle_operation, shuffle::operation, |function: shuffle::Shuffle, a, b, order| Some(function(a, b, order)),
    Punpcklbw Punpcklwd Punpckldq Punpcklqdq Punpckhbw Punpckhwd Punpckhdq Punpckhqdq
    Unpcklps Unpcklpd Unpckhps Unpckhpd Pshufd Pshuflw Pshufhw Shufps Shufpd Pshufb Palignr
    Packuswb Packsswb Packssdw
);
choose!(
    pick_operation, parts::pick, |function: shuffle::Pick, a, b, order| function(a, b, order),
    Pshufd Pshuflw Pshufhw Shufps Shufpd Pshufb
);

fn computed(op: &mut Op, insn: &Instruction, memory: bool) -> Option<Run> {
    let mnemonic = insn.mnemonic();
    if let Some(run) = arithmetic(op, mnemonic, memory).or_else(|| lane_operation(op, mnemonic, memory)) {
        return Some(run);
    }
    if insn.op_count() == 2 && insn.op1_kind() == OpKind::Immediate8 {
        op.extra.set(insn.immediate8().into());
        return shift_operation(op, mnemonic, false);
    }
    if insn.op_count() == 3 {
        op.extra.set(insn.immediate8().into());
    }
    let picked = parts::can_pick()
        .then(|| pick_operation(op, mnemonic, memory))
        .flatten();
    picked.or_else(|| shuffle_operation(op, mnemonic, memory))
}

fn arithmetic(op: &Op, mnemonic: M, memory: bool) -> Option<Run> {
    use vector::{ADD, DIV, MUL, SUB};
    let (operation, double, scalar) = match mnemonic {
        M::Addps => (ADD, false, false),
        M::Addpd => (ADD, true, false),
        M::Addss => (ADD, false, true),
        M::Addsd => (ADD, true, true),
        M::Subps => (SUB, false, false),
        M::Subpd => (SUB, true, false),
        M::Subss => (SUB, false, true),
        M::Subsd => (SUB, true, true),
        M::Mulps => (MUL, false, false),
        M::Mulpd => (MUL, true, false),
        M::Mulss => (MUL, false, true),
        M::Mulsd => (MUL, true, true),
        M::Divps => (DIV, false, false),
        M::Divpd => (DIV, true, false),
        M::Divss => (DIV, false, true),
        M::Divsd => (DIV, true, true),
        _ => return None,
    };
    Some(vector::arithmetic(op, operation, double, scalar, memory))
}
