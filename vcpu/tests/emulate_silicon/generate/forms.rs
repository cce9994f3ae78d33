//! Which forms of instructions can be held against the silicon.

use super::super::mode::Mode;
use iced_x86::{Code, EncodingKind, Instruction, Mnemonic as M, OpCodeInfo, OpCodeOperandKind as K, OpKind, Register};
use umbra_vcpu::emulate;

/// Whether CPL 3 code can run it with a result that depends on nothing but its operands.
pub fn testable(code: Code, mode: Mode) -> bool {
    let info = code.op_code();
    let exists = match mode {
        Mode::Long => info.mode64(),
        Mode::Compat32 => info.compatibility_mode() && info.mode32(),
        Mode::Compat16 => info.compatibility_mode() && info.mode16(),
    };
    if !info.is_instruction() || !exists || info.encoding() != EncodingKind::Legacy || info.is_privileged() {
        return false;
    }
    if info
        .op_kinds()
        .iter()
        .any(|kind| matches!(kind, K::cr_reg | K::dr_reg | K::tr_reg))
    {
        return false;
    }
    // Of processors long gone.
    if matches!(
        code,
        Code::Popw_CS | Code::Cmpxchg486_rm8_r8 | Code::Cmpxchg486_rm16_r16 | Code::Cmpxchg486_rm32_r32
    ) {
        return false;
    }
    if of_the_system(code.mnemonic())
        || mode.is_long() && (touches_segments(code, info) || differs_by_vendor(code, info))
    {
        return false;
    }
    emulate::knows(&sample(code, info))
}

/// What a kernel would see, or what depends on it.
fn of_the_system(mnemonic: M) -> bool {
    matches!(
        mnemonic,
        M::Int
            | M::Int1
            | M::Syscall
            | M::Sysenter
            | M::Sysexit
            | M::Sysexitq
            | M::Sysret
            | M::Sysretq
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
            | M::Rdpmc
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
            | M::Hlt
            | M::Ud0
            | M::Ud1
            | M::Ud2
            | M::Monitor
            | M::Mwait
            | M::Vmcall
            | M::Vmmcall
    )
}

/// Loads of segment registers, far transfers and what looks at descriptors: run in compatibility mode, where the
/// harness has a descriptor table of its own.
fn touches_segments(code: Code, info: &OpCodeInfo) -> bool {
    let registers = info
        .op_kinds()
        .iter()
        .any(|kind| matches!(kind, K::seg_reg | K::fs | K::gs));
    registers
        || matches!(
            code.mnemonic(),
            M::Retf
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
                | M::Int3
        )
        || matches!(
            code,
            Code::Jmp_m1616
                | Code::Jmp_m1632
                | Code::Jmp_m1664
                | Code::Call_m1616
                | Code::Call_m1632
                | Code::Call_m1664
        )
}

/// In 64-bit mode, near branches with a 16-bit operand and a `movsxd` to one.
fn differs_by_vendor(code: Code, info: &OpCodeInfo) -> bool {
    matches!(
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
    ) || info.op_kinds().iter().any(|kind| matches!(kind, K::br16_1 | K::br16_2))
}

/// The instruction with operands of the right kind, as far as the core's choice of a handler looks at them.
fn sample(code: Code, info: &OpCodeInfo) -> Instruction {
    let mut insn = Instruction::default();
    insn.set_code(code);
    for operand in 0..info.op_count() {
        let register = match info.op_kind(operand) {
            K::mem => continue,
            K::xmm_reg | K::xmm_rm | K::xmm_or_mem => Register::XMM0,
            K::mm_reg | K::mm_rm | K::mm_or_mem => Register::MM0,
            K::st0 | K::sti_opcode => Register::ST0,
            K::seg_reg | K::ds => Register::DS,
            K::imm8 | K::imm8_const_1 | K::imm16 | K::imm32 => continue,
            _ => Register::EAX,
        };
        insn.set_op_kind(operand, OpKind::Register);
        insn.set_op_register(operand, register);
    }
    insn
}
