//! From a decoded instruction to its handler. A cache of decoded code keeps the handler beside the instruction.

use super::environment::{Memory, Platform, Stop};
use super::{Cpu, Flow};
use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};

/// What executes one kind of instruction.
pub(super) type Handler<E> = fn(&mut Cpu<E>, &Instruction) -> Result<Flow, Stop>;

/// The handler for `insn`, if the core knows the instruction.
pub(super) fn handler<E: Memory + Platform>(insn: &Instruction) -> Option<Handler<E>> {
    let handler: Handler<E> = match insn.mnemonic() {
        M::Mov => return mov(insn),
        M::Add => Cpu::add,
        M::Adc => Cpu::adc,
        M::Sub => Cpu::sub,
        M::Sbb => Cpu::sbb,
        M::Cmp => Cpu::cmp,
        M::Inc => Cpu::inc,
        M::Dec => Cpu::dec,
        M::Neg => Cpu::neg,
        M::Xadd => Cpu::xadd,
        M::Cmpxchg => Cpu::cmpxchg,
        M::Cmpxchg8b | M::Cmpxchg16b => Cpu::cmpxchg_wide,
        M::Cbw | M::Cwde | M::Cdqe => Cpu::extend_accumulator,
        M::Cwd | M::Cdq | M::Cqo => Cpu::extend_into_data,
        M::And => Cpu::and,
        M::Or => Cpu::or,
        M::Xor => Cpu::xor,
        M::Test => Cpu::test,
        M::Not => Cpu::not,
        M::Shl | M::Sal => Cpu::shl,
        M::Shr => Cpu::shr,
        M::Sar => Cpu::sar,
        M::Rol => Cpu::rol,
        M::Ror => Cpu::ror,
        M::Rcl => Cpu::rcl,
        M::Rcr => Cpu::rcr,
        M::Shld => Cpu::shld,
        M::Shrd => Cpu::shrd,
        M::Mul => Cpu::mul,
        M::Imul => Cpu::imul,
        M::Div => Cpu::div,
        M::Idiv => Cpu::idiv,
        _ => return handler_of_rest(insn),
    };
    Some(handler)
}

/// `mov` has four kinds of operand.
fn mov<E: Memory + Platform>(insn: &Instruction) -> Option<Handler<E>> {
    let register = |kind, register: Register| {
        if kind == OpKind::Register {
            register
        } else {
            Register::None
        }
    };
    let to = register(insn.op0_kind(), insn.op0_register());
    let from = register(insn.op1_kind(), insn.op1_register());
    let handler: Handler<E> = if to.is_segment_register() {
        Cpu::mov_to_segment
    } else if from.is_segment_register() {
        Cpu::mov_from_segment
    } else if to.is_cr() {
        Cpu::mov_to_control
    } else if from.is_cr() {
        Cpu::mov_from_control
    } else if to.is_dr() {
        Cpu::mov_to_debug
    } else if from.is_dr() {
        Cpu::mov_from_debug
    } else if to.is_tr() || from.is_tr() {
        return None;
    } else {
        Cpu::mov
    };
    Some(handler)
}

fn handler_of_rest<E: Memory + Platform>(insn: &Instruction) -> Option<Handler<E>> {
    let handler: Handler<E> = match insn.mnemonic() {
        M::Movzx => Cpu::movzx,
        M::Movsx | M::Movsxd => Cpu::movsx,
        M::Movbe => Cpu::movbe,
        M::Bswap => Cpu::bswap,
        M::Xchg => Cpu::xchg,
        M::Lea => Cpu::lea,
        M::Xlatb => Cpu::xlat,
        M::Bt => Cpu::bt,
        M::Bts => Cpu::bts,
        M::Btr => Cpu::btr,
        M::Btc => Cpu::btc,
        M::Bsf => Cpu::bsf,
        M::Bsr => Cpu::bsr,
        M::Popcnt => Cpu::popcnt,
        M::Lzcnt => Cpu::lzcnt,
        M::Tzcnt => Cpu::tzcnt,
        M::Push => Cpu::push,
        M::Pop => Cpu::pop,
        M::Pusha | M::Pushad => Cpu::pusha,
        M::Popa | M::Popad => Cpu::popa,
        M::Pushf | M::Pushfd | M::Pushfq => Cpu::pushf,
        M::Popf | M::Popfd | M::Popfq => Cpu::popf,
        M::Enter => Cpu::enter,
        M::Leave => Cpu::leave,
        M::Movsb | M::Movsw | M::Movsq => Cpu::movs,
        M::Movsd if insn.is_string_instruction() => Cpu::movs,
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => Cpu::stos,
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => Cpu::lods,
        M::Cmpsb | M::Cmpsw | M::Cmpsq => Cpu::cmps,
        M::Cmpsd if insn.is_string_instruction() => Cpu::cmps,
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => Cpu::scas,
        M::Insb | M::Insw | M::Insd => Cpu::ins,
        M::Outsb | M::Outsw | M::Outsd => Cpu::outs,
        M::In => Cpu::port_in,
        M::Out => Cpu::port_out,
        M::Daa | M::Das => Cpu::decimal_packed,
        M::Aaa | M::Aas => Cpu::decimal_unpacked,
        M::Aam => Cpu::aam,
        M::Aad => Cpu::aad,
        M::Clc | M::Stc | M::Cmc | M::Cld | M::Std => Cpu::flag_op,
        M::Cli | M::Sti => Cpu::interrupt_flag,
        M::Clac | M::Stac => Cpu::alignment_flag,
        M::Lahf => Cpu::lahf,
        M::Sahf => Cpu::sahf,
        M::Salc => Cpu::salc,
        _ => return control(insn),
    };
    Some(handler)
}

fn control<E: Memory + Platform>(insn: &Instruction) -> Option<Handler<E>> {
    use Code::{
        Call_m1616, Call_m1632, Call_m1664, Call_ptr1616, Call_ptr1632, Jmp_m1616, Jmp_m1632, Jmp_m1664, Jmp_ptr1616,
        Jmp_ptr1632,
    };
    let handler: Handler<E> = match insn.mnemonic() {
        M::Jmp
            if matches!(
                insn.code(),
                Jmp_ptr1616 | Jmp_ptr1632 | Jmp_m1616 | Jmp_m1632 | Jmp_m1664
            ) =>
        {
            Cpu::jmp_far
        }
        M::Jmp => Cpu::jmp_near,
        M::Call
            if matches!(
                insn.code(),
                Call_ptr1616 | Call_ptr1632 | Call_m1616 | Call_m1632 | Call_m1664
            ) =>
        {
            Cpu::call_far
        }
        M::Call => Cpu::call_near,
        M::Ret => Cpu::ret_near,
        M::Retf => Cpu::ret_far,
        M::Jcxz | M::Jecxz | M::Jrcxz => Cpu::jcxz,
        M::Loop | M::Loope | M::Loopne => Cpu::loop_,
        M::Into => Cpu::into,
        M::Bound => Cpu::bound,
        M::Int => |cpu, insn| cpu.software_interrupt(insn, insn.immediate8()),
        M::Int3 => |cpu, insn| cpu.software_interrupt(insn, super::exception::BP),
        M::Int1 => Cpu::int1,
        M::Iret | M::Iretd | M::Iretq => Cpu::iret,
        M::Syscall => Cpu::syscall,
        M::Sysret | M::Sysretq => Cpu::sysret,
        M::Sysenter => Cpu::sysenter,
        M::Sysexit | M::Sysexitq => Cpu::sysexit,
        M::Swapgs => Cpu::swapgs,
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => Cpu::load_far_pointer,
        M::Lar | M::Lsl => Cpu::describe_selector,
        M::Verr | M::Verw => Cpu::verify_segment,
        M::Arpl => Cpu::arpl,
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => Cpu::segment_base,
        M::Nop | M::Endbr32 | M::Endbr64 | M::Lfence | M::Sfence => Cpu::nothing,
        M::Mfence => Cpu::mfence,
        M::Pause => Cpu::pause,
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchw | M::Prefetch => Cpu::nothing,
        // Hints and instructions of extensions that are off: processors without them do nothing.
        M::Reservednop | M::Rdsspd | M::Rdsspq | M::Cldemote => Cpu::nothing,
        M::Ud0 | M::Ud1 | M::Ud2 => |_, _| Err(super::Exception::UD.into()),
        _ => return system(insn),
    };
    Some(handler)
}

fn system<E: Memory + Platform>(insn: &Instruction) -> Option<Handler<E>> {
    let handler: Handler<E> = match insn.mnemonic() {
        M::Lgdt | M::Lidt => Cpu::load_table,
        M::Sgdt | M::Sidt => Cpu::store_table,
        M::Sldt | M::Str => Cpu::store_selector,
        M::Lldt | M::Ltr => Cpu::load_system_segment,
        M::Smsw => Cpu::smsw,
        M::Lmsw => Cpu::lmsw,
        M::Clts => Cpu::clts,
        M::Invlpg => Cpu::invlpg,
        M::Invpcid => Cpu::invpcid,
        M::Cpuid => Cpu::cpuid,
        M::Rdtsc | M::Rdtscp => Cpu::read_time,
        M::Rdpid => Cpu::rdpid,
        M::Rdmsr => Cpu::rdmsr,
        M::Wrmsr => Cpu::wrmsr,
        M::Hlt => Cpu::hlt,
        M::Invd | M::Wbinvd | M::Wbnoinvd => Cpu::flush_caches,
        M::Clflush | M::Clflushopt | M::Clwb => Cpu::flush_line,
        M::Fxsave | M::Fxsave64 => Cpu::fxsave,
        M::Fxrstor | M::Fxrstor64 => Cpu::fxrstor,
        M::Ldmxcsr => Cpu::ldmxcsr,
        M::Stmxcsr => Cpu::stmxcsr,
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64 | M::Xsaves | M::Xsaves64 => {
            Cpu::xsave
        }
        M::Xrstor | M::Xrstor64 | M::Xrstors | M::Xrstors64 => Cpu::xrstor,
        M::Xgetbv => Cpu::xgetbv,
        M::Xsetbv => Cpu::xsetbv,
        mnemonic => return super::x87::handler(mnemonic).or_else(|| conditional(insn)),
    };
    Some(handler)
}

fn conditional<E: Memory + Platform>(insn: &Instruction) -> Option<Handler<E>> {
    if insn.condition_code() == iced_x86::ConditionCode::None {
        return super::sse::handler(insn);
    }
    if insn.is_jcc_short_or_near() {
        return Some(Cpu::jcc);
    }
    // What is left of conditional instructions: 8-bit destinations are `setcc`, the others `cmovcc`.
    match insn.op_count() {
        1 => Some(Cpu::setcc),
        _ if insn.op0_register().is_gpr() => Some(Cpu::cmov),
        _ => None,
    }
}

/// Whether there is a handler.
pub(super) fn known(insn: &Instruction) -> bool {
    handler::<super::environment::Nowhere>(insn).is_some()
}

#[cfg(test)]
mod tests {
    use iced_x86::{Code, CpuidFeature as F, EncodingKind, Instruction, OpCodeOperandKind as K, OpKind, Register};

    /// What x86-64-v2 consists of, and what else the software CPU announces.
    fn announced(feature: F) -> bool {
        matches!(
            feature,
            F::INTEL8086
                | F::INTEL8086_ONLY
                | F::INTEL186
                | F::INTEL286
                | F::INTEL386
                | F::INTEL486
                | F::X64
                | F::FPU
                | F::FPU287
                | F::FPU387
                | F::CPUID
                | F::CMOV
                | F::CX8
                | F::CMPXCHG16B
                | F::FXSR
                | F::MMX
                | F::MSR
                | F::MULTIBYTENOP
                | F::PAUSE
                | F::POPCNT
                | F::MOVBE
                | F::LZCNT
                | F::RDTSCP
                | F::SEP
                | F::SYSCALL
                | F::SSE
                | F::SSE2
                | F::SSE3
                | F::SSSE3
                | F::SSE4_1
                | F::SSE4_2
                | F::TSC
                | F::FSGSBASE
                | F::INVPCID
                | F::SMAP
                | F::CLFSH
                | F::CLFLUSHOPT
                | F::CLWB
                | F::RDPID
        )
    }

    /// An instruction with operands of the right kind, as far as the choice of a handler looks at them.
    fn sample(code: Code) -> Instruction {
        let mut insn = Instruction::default();
        insn.set_code(code);
        for (operand, kind) in code.op_code().op_kinds().iter().enumerate() {
            let register = match kind {
                K::xmm_reg | K::xmm_rm | K::xmm_or_mem => Register::XMM0,
                K::mm_reg | K::mm_rm | K::mm_or_mem => Register::MM0,
                K::seg_reg => Register::DS,
                K::cr_reg => Register::CR0,
                K::dr_reg => Register::DR0,
                K::tr_reg => Register::TR3,
                K::mem => {
                    insn.set_op_kind(operand as u32, OpKind::Memory);
                    continue;
                }
                _ => Register::EAX,
            };
            insn.set_op_register(operand as u32, register);
        }
        insn
    }

    #[test]
    fn everything_that_is_announced_is_known() {
        let unknown: Vec<Code> = Code::values()
            .filter(|code| {
                let info = code.op_code();
                // What iced writes as `wait` and a second instruction never comes out of a decoder.
                info.is_instruction() && info.encoding() == EncodingKind::Legacy && !info.fwait()
            })
            .filter(|code| code.cpuid_features().iter().all(|feature| announced(*feature)))
            .filter(|code| !super::known(&sample(*code)))
            .collect();
        // An alias of `fstp` that no manual defines.
        assert_eq!(unknown, [Code::Fstpnce_sti]);
    }
}
