//! Random instructions of every form that the core knows and CPL 3 may run, with operands that make sense.

use super::machine::{READ_ONLY, READ_ONLY_END, Registers, WINDOW, WINDOW_SIZE, pad, pad_pointer};
use super::rng::Rng;
use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, Mnemonic, OpCodeInfo, OpCodeOperandKind as K,
    OpKind, Register,
};
use umbra_vcpu::emulate;

pub struct Generator {
    codes: Vec<Code>,
}

/// One case: an instruction at its place and the registers to run it with.
#[derive(Clone)]
pub struct Case {
    pub insn: Instruction,
    pub bytes: Vec<u8>,
    pub input: Registers,
}

impl Generator {
    pub fn new(only: Option<&str>) -> Self {
        let codes: Vec<Code> = Code::values()
            .filter(|code| testable(*code))
            .filter(|code| only.is_none_or(|only| matches(&format!("{:?}", code.mnemonic()), only)))
            .collect();
        assert!(!codes.is_empty(), "no such instruction");
        Self { codes }
    }

    /// A random case for slot `index`.
    pub fn case(&self, rng: &mut Rng, index: usize) -> Case {
        loop {
            let code = rng.pick(&self.codes);
            if let Some(case) = build(code, rng, index) {
                return case;
            }
        }
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

/// Whether CPL 3 code can run it with a result that depends on nothing but its operands.
fn testable(code: Code) -> bool {
    use Mnemonic as M;
    let info = code.op_code();
    if !info.is_instruction() || !info.mode64() || info.encoding() != EncodingKind::Legacy || info.is_privileged() {
        return false;
    }
    if info
        .op_kinds()
        .iter()
        .any(|kind| matches!(kind, K::seg_reg | K::cr_reg | K::dr_reg | K::tr_reg | K::fs | K::gs))
    {
        return false;
    }
    let system = matches!(
        code.mnemonic(),
        M::Int
            | M::Int3
            | M::Int1
            | M::Syscall
            | M::Sysenter
            | M::Sysexit
            | M::Sysexitq
            | M::Retf
            | M::Iret
            | M::Iretd
            | M::Iretq
            | M::Lar
            | M::Lsl
            | M::Verr
            | M::Verw
            | M::Lfs
            | M::Lgs
            | M::Lss
            | M::Swapgs
            | M::In
            | M::Out
            | M::Insb
            | M::Insw
            | M::Insd
            | M::Outsb
            | M::Outsw
            | M::Outsd
            | M::Cli
            | M::Sti
            | M::Clac
            | M::Stac
            | M::Cpuid
            | M::Rdtsc
            | M::Rdtscp
            | M::Rdpid
            | M::Rdfsbase
            | M::Rdgsbase
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Xgetbv
            | M::Xsetbv
            | M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Str
            | M::Smsw
            | M::Xsave
            | M::Xsave64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xsavec
            | M::Xsavec64
            | M::Xrstor
            | M::Xrstor64
            | M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Fnstenv
            | M::Fnsave
            | M::Sysret
            | M::Sysretq
            | M::Hlt
            | M::Ud0
            | M::Ud1
            | M::Ud2
            | M::Rdpmc
            | M::Bound
            | M::Arpl
            | M::Monitor
            | M::Mwait
            | M::Vmcall
            | M::Vmmcall
    );
    // Near branches with a 16-bit operand and a `movsxd` to one differ between vendors, far branches change the code segment.
    let odd_branch = matches!(
        code,
        Code::Movsxd_r16_rm16
            | Code::Jmp_rm16
            | Code::Jmp_rm32
            | Code::Call_rm16
            | Code::Call_rm32
            | Code::Jmp_rel16
            | Code::Call_rel16
            | Code::Retnw
            | Code::Retnw_imm16
            | Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
    ) || info.op_kinds().iter().any(|kind| matches!(kind, K::br16_1 | K::br16_2));
    let mut insn = Instruction::default();
    insn.set_code(code);
    for operand in 0..info.op_count() {
        let register = match info.op_kind(operand) {
            K::mem => continue,
            K::xmm_reg | K::xmm_rm | K::xmm_or_mem => Register::XMM0,
            K::mm_reg | K::mm_rm | K::mm_or_mem => Register::MM0,
            K::st0 | K::sti_opcode => Register::ST0,
            K::imm8 | K::imm8_const_1 | K::imm16 | K::imm32 => continue,
            _ => Register::EAX,
        };
        insn.set_op_kind(operand, OpKind::Register);
        insn.set_op_register(operand, register);
    }
    !system && !odd_branch && emulate::knows(&insn)
}

fn build(code: Code, rng: &mut Rng, index: usize) -> Option<Case> {
    let info = code.op_code();
    let mut insn = Instruction::default();
    insn.set_code(code);
    for operand in 0..info.op_count() {
        set_operand(&mut insn, info, operand, rng, index);
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
    if memory && rng.chance(3) {
        insn.set_segment_prefix(rng.pick(&[Register::FS, Register::GS, Register::DS, Register::SS]));
    }
    let rip = super::machine::hole(index);
    let mut encoder = Encoder::new(64);
    encoder.encode(&insn, rip).ok()?;
    let bytes = encoder.take_buffer();
    let insn = Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE).decode();
    if insn.is_invalid() || insn.len() != bytes.len() {
        return None;
    }
    let mut input = registers(rng);
    fit_registers(&insn, &mut input, rng, index);
    if super::compare::undefined_result(&insn, &input) {
        return None;
    }
    Some(Case { insn, bytes, input })
}

const GPR: [(Register, u64); 4] = [
    (Register::AL, 20),
    (Register::AX, 16),
    (Register::EAX, 16),
    (Register::RAX, 16),
];

fn register(rng: &mut Rng, family: usize) -> Register {
    let (first, count) = GPR[family];
    nth(first, rng.below(count))
}

fn nth(first: Register, index: u64) -> Register {
    Register::try_from(first as usize + index as usize).unwrap()
}

fn set_operand(insn: &mut Instruction, info: &OpCodeInfo, operand: u32, rng: &mut Rng, index: usize) {
    let kind = info.op_kind(operand);
    let to_register = |insn: &mut Instruction, register: Register| {
        insn.set_op_kind(operand, OpKind::Register);
        insn.set_op_register(operand, register);
    };
    let family = match kind {
        K::r8_or_mem | K::r8_reg | K::r8_opcode => Some(0),
        K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => Some(1),
        K::r32_or_mem | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode => Some(2),
        K::r64_or_mem | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode => Some(3),
        _ => None,
    };
    let may_be_memory = matches!(
        kind,
        K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::xmm_or_mem | K::mm_or_mem | K::mem
    );
    if kind == K::mem || (may_be_memory && rng.chance(60)) {
        memory_form(insn, operand, rng);
        return;
    }
    if let Some(family) = family {
        return to_register(insn, register(rng, family));
    }
    let random = rng.next();
    match kind {
        K::al => to_register(insn, Register::AL),
        K::cl => to_register(insn, Register::CL),
        K::ax => to_register(insn, Register::AX),
        K::dx => to_register(insn, Register::DX),
        K::eax => to_register(insn, Register::EAX),
        K::rax => to_register(insn, Register::RAX),
        K::st0 => to_register(insn, Register::ST0),
        K::sti_opcode => to_register(insn, nth(Register::ST0, random % 8)),
        K::mm_reg | K::mm_rm | K::mm_or_mem => to_register(insn, nth(Register::MM0, random % 8)),
        K::xmm_reg | K::xmm_rm | K::xmm_or_mem => to_register(insn, nth(Register::XMM0, random % 16)),
        K::imm8 if operand > 0 && insn.op_kind(operand - 1) == OpKind::Immediate8 => {
            insn.set_op_kind(operand, OpKind::Immediate8_2nd);
            insn.set_immediate8_2nd(random as u8);
        }
        K::imm8 if operand > 0 && insn.op_kind(operand - 1) == OpKind::Immediate16 => {
            insn.set_op_kind(operand, OpKind::Immediate8_2nd);
            insn.set_immediate8_2nd(if rng.chance(80) {
                random as u8 & 3
            } else {
                random as u8 & 15
            });
        }
        K::imm8 | K::imm8_const_1 => {
            insn.set_op_kind(operand, OpKind::Immediate8);
            insn.set_immediate8(if kind == K::imm8_const_1 { 1 } else { random as u8 });
        }
        K::imm8sex16 => {
            insn.set_op_kind(operand, OpKind::Immediate8to16);
            insn.set_immediate8to16(i16::from(random as i8));
        }
        K::imm8sex32 => {
            insn.set_op_kind(operand, OpKind::Immediate8to32);
            insn.set_immediate8to32(i32::from(random as i8));
        }
        K::imm8sex64 => {
            insn.set_op_kind(operand, OpKind::Immediate8to64);
            insn.set_immediate8to64(i64::from(random as i8));
        }
        K::imm16 => {
            insn.set_op_kind(operand, OpKind::Immediate16);
            insn.set_immediate16(
                rng.value() as u16
                    & if insn.mnemonic() == Mnemonic::Enter {
                        0x3ff
                    } else {
                        0xffff
                    },
            );
        }
        K::imm32 => {
            insn.set_op_kind(operand, OpKind::Immediate32);
            insn.set_immediate32(rng.value() as u32);
        }
        K::imm32sex64 => {
            insn.set_op_kind(operand, OpKind::Immediate32to64);
            insn.set_immediate32to64(i64::from(rng.value() as i32));
        }
        K::imm64 => {
            insn.set_op_kind(operand, OpKind::Immediate64);
            insn.set_immediate64(rng.value());
        }
        K::mem_offs => {
            insn.set_op_kind(operand, OpKind::Memory);
            insn.set_memory_displ_size(8);
            insn.set_memory_displacement64(target(rng, 8));
        }
        K::seg_rSI => insn.set_op_kind(
            operand,
            if random & 7 == 0 {
                OpKind::MemorySegESI
            } else {
                OpKind::MemorySegRSI
            },
        ),
        K::es_rDI => {
            // Source and destination use the same address size.
            let narrow = if operand > 0 {
                insn.op_kind(0) == OpKind::MemorySegESI
            } else {
                random & 7 == 0
            };
            insn.set_op_kind(
                operand,
                if narrow {
                    OpKind::MemoryESEDI
                } else {
                    OpKind::MemoryESRDI
                },
            );
        }
        K::seg_rDI => insn.set_op_kind(operand, OpKind::MemorySegRDI),
        K::seg_rBX_al => {
            insn.set_op_kind(operand, OpKind::Memory);
            insn.set_memory_base(Register::RBX);
            insn.set_memory_index(Register::AL);
        }
        K::br64_1 | K::br64_4 => {
            insn.set_op_kind(operand, OpKind::NearBranch64);
            insn.set_near_branch64(pad(index));
        }
        _ => {}
    }
    if kind == K::seg_rSI && operand == 1 && insn.op_kind(0) == OpKind::MemoryESEDI {
        insn.set_op_kind(1, OpKind::MemorySegESI);
    } else if kind == K::seg_rSI && operand == 1 && insn.op_kind(0) == OpKind::MemoryESRDI {
        insn.set_op_kind(1, OpKind::MemorySegRSI);
    }
}

/// Gives a memory operand one of the addressing forms. What it points to is arranged in `fit_registers`.
fn memory_form(insn: &mut Instruction, operand: u32, rng: &mut Rng) {
    insn.set_op_kind(operand, OpKind::Memory);
    let narrow = rng.chance(8);
    let family = if narrow { Register::EAX } else { Register::RAX };
    match rng.below(10) {
        0 => {
            insn.set_memory_base(Register::RIP);
            insn.set_memory_displ_size(8);
            insn.set_memory_displacement64(target(rng, 8));
        }
        1 => {
            insn.set_memory_displ_size(if narrow { 4 } else { 8 });
            insn.set_memory_displacement64(target(rng, 8));
        }
        form => {
            let base = rng.below(16);
            insn.set_memory_base(nth(family, base));
            if form > 5 {
                let index = rng.below(16);
                if index != 4 && index != base {
                    insn.set_memory_index(nth(family, index));
                    insn.set_memory_index_scale(1 << rng.below(4));
                }
            }
            let displacement = match rng.below(3) {
                0 => 0,
                1 => i64::from(rng.next() as i8),
                _ => i64::from(rng.next() as i32),
            };
            if displacement != 0 {
                insn.set_memory_displ_size(if i8::try_from(displacement).is_ok() {
                    1
                } else {
                    if narrow { 4 } else { 8 }
                });
                insn.set_memory_displacement64(displacement as u64);
            }
        }
    }
}

/// An address for `length` bytes: mostly in the window, sometimes at its edges, beyond, or not canonical.
fn target(rng: &mut Rng, length: u64) -> u64 {
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

fn registers(rng: &mut Rng) -> Registers {
    let mut gpr = [0; 16];
    for register in &mut gpr {
        *register = rng.value();
    }
    // CF PF AF ZF SF DF OF; bit 1 and IF are always set at CPL 3 here.
    let rflags = rng.next() & 0xcd5 | 2;
    let mut fx = [0; 512];
    super::numbers::random_fx(rng, &mut fx);
    Registers { gpr, rflags, fx }
}

/// Makes the registers such that memory operands point to where they should.
fn fit_registers(insn: &Instruction, input: &mut Registers, rng: &mut Rng, index: usize) {
    use Mnemonic as M;
    let gpr = &mut input.gpr;
    gpr[4] = WINDOW + 0x400 + 8 * rng.below(0x400);
    if rng.chance(5) {
        gpr[4] = target(rng, 8);
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
        M::Xlatb => gpr[3] = target(rng, 256),
        M::Enter | M::Leave => gpr[5] = WINDOW + 0x800 + 8 * rng.below(0x200),
        M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b if rng.chance(40) => (gpr[0], gpr[2]) = (0, 0),
        M::Bt | M::Bts | M::Btr | M::Btc
            if insn.op0_kind() == OpKind::Memory && insn.op1_kind() == OpKind::Register =>
        {
            let number = rng.below(1 << 13) as i64 - (1 << 12);
            gpr[insn.op1_register().full_register().number()] = number as u64;
        }
        M::Jrcxz | M::Jecxz | M::Loop | M::Loope | M::Loopne if rng.chance(50) => gpr[1] = rng.below(3),
        M::Ret if rng.chance(95) => gpr[4] = pad_pointer(index),
        M::Maskmovq | M::Maskmovdqu => gpr[7] = target(rng, 16),
        M::Pcmpestri | M::Pcmpestri64 | M::Pcmpestrm | M::Pcmpestrm64 if rng.chance(80) => {
            (gpr[0], gpr[2]) = (rng.below(20).wrapping_sub(2), rng.below(20).wrapping_sub(2));
        }
        _ => {}
    }
    if insn.is_string_instruction() {
        let narrow =
            (0..insn.op_count()).any(|o| matches!(insn.op_kind(o), OpKind::MemorySegESI | OpKind::MemoryESEDI));
        let high = if narrow { rng.next() << 32 } else { 0 };
        gpr[6] = target(rng, 8) | high;
        gpr[7] = if rng.chance(20) {
            gpr[6].wrapping_add(rng.below(64))
        } else {
            target(rng, 8) | high
        };
        gpr[1] = rng.below(40) | if narrow { rng.next() << 32 } else { 0 };
    }
    let branch = matches!(insn.mnemonic(), M::Jmp | M::Call);
    if branch && insn.op0_kind() == OpKind::Register {
        gpr[insn.op0_register().full_register().number()] = if rng.chance(95) {
            pad(index)
        } else {
            1 << 62 | rng.next() >> 16
        };
    }
    let Some(_) = (0..insn.op_count()).find(|o| insn.op_kind(*o) == OpKind::Memory) else {
        return;
    };
    if insn.mnemonic() == M::Xlatb {
        return;
    }
    let length = insn.memory_size().size().max(1) as u64;
    let mut wanted = if branch {
        pad_pointer(index)
    } else {
        target(rng, length)
    };
    let base = insn.memory_base();
    let narrow = base.size() == 4;
    if !branch && !narrow && rng.chance(1) {
        wanted = 1 << 62 | rng.next() >> 8;
    }
    if matches!(base, Register::None | Register::RIP | Register::EIP) {
        return;
    }
    let mut rest = insn.memory_displacement64();
    if insn.memory_index() != Register::None {
        let value = gpr[insn.memory_index().full_register().number()];
        let value = if narrow { value & 0xffff_ffff } else { value };
        rest = rest.wrapping_add(value.wrapping_mul(u64::from(insn.memory_index_scale())));
    }
    let number = base.full_register().number();
    gpr[number] = wanted.wrapping_sub(rest);
    if narrow {
        gpr[number] = gpr[number] & 0xffff_ffff | rng.next() << 32;
    }
}
