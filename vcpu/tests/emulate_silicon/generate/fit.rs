//! Registers at random, and such that memory operands and branches point to where they should.

use super::super::layout::{
    READ_ONLY, READ_ONLY_END, WINDOW, WINDOW_SIZE, data_pointer, far_frame, pad_pointer, record,
};
use super::super::machine::Registers;
use super::super::rng::Rng;
use super::super::segments;
use super::Place;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// An address for `length` bytes: mostly in the window, sometimes at its edges, beyond, or not canonical.
pub(super) fn target(rng: &mut Rng, length: u64) -> u64 {
    match rng.below(100) {
        0..2 => WINDOW - rng.below(length + 1),
        2..4 => READ_ONLY - rng.below(length + 1),
        4 => READ_ONLY_END - rng.below(length + 1),
        5 => READ_ONLY_END + rng.below(0x10000),
        6..50 => WINDOW + 16 * rng.below(WINDOW_SIZE as u64 / 16 - 8),
        50..60 => WINDOW + 0x1000 * (1 + rng.below(2)) - rng.below(length + 1),
        _ => WINDOW + rng.below(WINDOW_SIZE as u64 - 128),
    }
}

pub(super) fn registers(rng: &mut Rng, segments: [u16; 6]) -> Registers {
    let mut gpr = [0; 16];
    for register in &mut gpr {
        *register = rng.value();
    }
    // CF PF AF ZF SF DF OF; bit 1 and IF are always set at CPL 3 here.
    let rflags = rng.next() & 0xcd5 | 0x202;
    let mut fx = [0; 512];
    super::super::numbers::random_fx(rng, &mut fx);
    Registers {
        gpr,
        rflags,
        fx,
        segments,
    }
}

/// The slice of a register that addresses use gets `offset`, the rest anything.
fn set_address(register: &mut u64, offset: u64, bytes: usize, rng: &mut Rng) {
    let mask = match bytes {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    };
    *register = offset & mask | rng.next() & !mask;
}

/// Width in bytes of the addresses that a string instruction or an operand with registers uses.
fn address_bytes(insn: &Instruction) -> usize {
    let of_kind = (0..insn.op_count()).find_map(|operand| match insn.op_kind(operand) {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(8),
        _ => None,
    });
    of_kind.unwrap_or(insn.memory_base().size())
}

/// Makes the registers such that memory operands point to where they should.
pub(super) fn fit(insn: &Instruction, input: &mut Registers, rng: &mut Rng, place: &Place) {
    let gpr = &mut input.gpr;
    fit_special(insn, gpr, rng, place);
    if insn.is_string_instruction() {
        fit_string(insn, gpr, rng, place);
    }
    let branch = matches!(insn.mnemonic(), Mnemonic::Jmp | Mnemonic::Call);
    if branch && insn.op0_kind() == OpKind::Register {
        gpr[insn.op0_register().full_register().number()] = if rng.chance(95) {
            place.mode.pad(place.index)
        } else {
            1 << 62 | rng.next() >> 16
        };
    }
    fit_operand(insn, gpr, rng, place);
    if !place.mode.is_long() {
        fit_compatibility(gpr, place);
    }
}

/// What some mnemonics find in their registers.
fn fit_special(insn: &Instruction, gpr: &mut [u64; 16], rng: &mut Rng, place: &Place) {
    use Mnemonic as M;
    let stack = |linear: u64| linear.wrapping_sub(place.base(Register::SS));
    let index = place.index;
    gpr[4] = stack(WINDOW + 0x400 + 8 * rng.below(0x400));
    if rng.chance(5) {
        gpr[4] = stack(target(rng, 8));
    }
    match insn.mnemonic() {
        M::Div | M::Idiv if rng.chance(75) => {
            let negative = insn.mnemonic() == M::Idiv && rng.chance(50);
            gpr[2] = if negative { u64::MAX } else { rng.below(3) };
            gpr[0] = if negative {
                rng.next() | 1 << 63
            } else {
                rng.next() >> rng.below(64)
            };
        }
        M::Xlatb => {
            let offset = target(rng, 256).wrapping_sub(place.base(insn.memory_segment()));
            set_address(&mut gpr[3], offset, insn.memory_base().size(), rng);
        }
        M::Enter | M::Leave => gpr[5] = stack(WINDOW + 0x800 + 8 * rng.below(0x200)),
        M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b if rng.chance(40) => (gpr[0], gpr[2]) = (0, 0),
        M::Bt | M::Bts | M::Btr | M::Btc
            if insn.op0_kind() == OpKind::Memory && insn.op1_kind() == OpKind::Register =>
        {
            let number = rng.below(1 << 13) as i64 - (1 << 12);
            gpr[insn.op1_register().full_register().number()] = number as u64;
        }
        M::Jcxz | M::Jrcxz | M::Jecxz | M::Loop | M::Loope | M::Loopne if rng.chance(50) => gpr[1] = rng.below(3),
        M::Ret if rng.chance(95) => gpr[4] = stack(pad_pointer(place.mode, index)),
        M::Retf | M::Iret | M::Iretd if rng.chance(90) => {
            let wide = matches!(insn.code(), Code::Retfd | Code::Retfd_imm16 | Code::Iretd);
            gpr[4] = stack(far_frame(index, wide));
        }
        M::Pop if insn.op0_register().is_segment_register() && rng.chance(80) => {
            gpr[4] = stack(data_pointer(index) + 4);
        }
        M::Lar | M::Lsl | M::Verr | M::Verw | M::Mov | M::Arpl => {
            // A selector where one is looked for.
            let operand = insn.op_count() - 1;
            let wanted = insn.mnemonic() != M::Mov || insn.op0_register().is_segment_register();
            let selector_in_register = insn.op_kind(operand) == OpKind::Register;
            if wanted && selector_in_register && rng.chance(80) {
                let register = insn.op_register(operand).full_register().number();
                set_address(
                    &mut gpr[register],
                    u64::from(segments::any_selector(rng.below(96) as usize)),
                    2,
                    rng,
                );
            }
        }
        M::Maskmovq | M::Maskmovdqu => {
            let bytes = address_bytes(insn);
            let offset = target(rng, 16).wrapping_sub(place.base(insn.memory_segment()));
            set_address(&mut gpr[7], offset, bytes, rng);
        }
        M::Pcmpestri | M::Pcmpestri64 | M::Pcmpestrm | M::Pcmpestrm64 if rng.chance(80) => {
            (gpr[0], gpr[2]) = (rng.below(20).wrapping_sub(2), rng.below(20).wrapping_sub(2));
        }
        _ => {}
    }
}

fn fit_string(insn: &Instruction, gpr: &mut [u64; 16], rng: &mut Rng, place: &Place) {
    let bytes = address_bytes(insn);
    let source = target(rng, 8);
    let destination = if rng.chance(20) {
        source.wrapping_add(rng.below(64))
    } else {
        target(rng, 8)
    };
    let segment = if insn.segment_prefix() == Register::None {
        Register::DS
    } else {
        insn.segment_prefix()
    };
    set_address(&mut gpr[6], source.wrapping_sub(place.base(segment)), bytes, rng);
    set_address(
        &mut gpr[7],
        destination.wrapping_sub(place.base(Register::ES)),
        bytes,
        rng,
    );
    set_address(&mut gpr[1], rng.below(40), bytes, rng);
}

/// The linear address that a memory operand is to have.
fn wanted(insn: &Instruction, rng: &mut Rng, place: &Place) -> u64 {
    use Mnemonic as M;
    let long = place.mode.is_long();
    let far = matches!(
        insn.code(),
        Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Call_m1616 | Code::Call_m1632
    );
    match insn.mnemonic() {
        M::Jmp | M::Call if far => far_frame(place.index, insn.memory_size().size() == 6),
        M::Jmp | M::Call => pad_pointer(place.mode, place.index),
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss if rng.chance(80) => {
            data_pointer(place.index) + if insn.memory_size().size() == 6 { 0 } else { 2 }
        }
        M::Lar | M::Lsl | M::Verr | M::Verw if rng.chance(60) => data_pointer(place.index) + 4,
        M::Mov if !long && insn.op0_register().is_segment_register() && rng.chance(80) => data_pointer(place.index) + 4,
        _ => target(rng, insn.memory_size().size().max(1) as u64),
    }
}

/// Lets the base register point a memory operand to where it should.
fn fit_operand(insn: &Instruction, gpr: &mut [u64; 16], rng: &mut Rng, place: &Place) {
    let memory = (0..insn.op_count()).any(|operand| insn.op_kind(operand) == OpKind::Memory);
    let base = insn.memory_base();
    if !memory || insn.mnemonic() == Mnemonic::Xlatb {
        return;
    }
    let mut linear = wanted(insn, rng, place);
    let branch = matches!(insn.mnemonic(), Mnemonic::Jmp | Mnemonic::Call);
    if !branch && base.size() == 8 && rng.chance(1) {
        linear = 1 << 62 | rng.next() >> 8;
    }
    if matches!(base, Register::None | Register::RIP | Register::EIP) {
        return;
    }
    let mut rest = insn.memory_displacement64();
    if insn.memory_index() != Register::None {
        let value = gpr[insn.memory_index().full_register().number()];
        let value = if base.size() == 4 { value & 0xffff_ffff } else { value };
        rest = rest.wrapping_add(value.wrapping_mul(u64::from(insn.memory_index_scale())));
    }
    let offset = linear
        .wrapping_sub(place.base(insn.memory_segment()))
        .wrapping_sub(rest);
    set_address(&mut gpr[base.full_register().number()], offset, base.size(), rng);
}

/// Registers have 32 bits; and an `iretq` to a 16-bit stack does not load the upper half of ESP, which stays what the
/// harness had there.
fn fit_compatibility(gpr: &mut [u64; 16], place: &Place) {
    for register in gpr.iter_mut() {
        *register &= 0xffff_ffff;
    }
    if !segments::hidden(place.segments[2]).db {
        gpr[4] = gpr[4] & 0xffff | (record(place.index) & 0xffff_0000);
    }
}
