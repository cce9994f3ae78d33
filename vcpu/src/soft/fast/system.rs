//! What changes the privilege level in 64-bit mode – `syscall sysret swapgs int iretq` – and `stac clac`.
//!
//! What they do is said by the instruction core, whose functions change nothing if they fail. A failure leaves the
//! instruction to the core as a whole, which finds the same once more and says what comes of it.

use super::branch::next;
use super::memory::load;
use super::{Op, Run, Went, crossed, follow, settle_flags, slow};
use crate::emulate::state::RSP;
use crate::emulate::{Cpu, Stop, flags};
use crate::soft::world::World;
use iced_x86::{Instruction, Mnemonic as M};

/// The op is done, with RIP set, unless it failed.
#[inline(always)]
fn done(result: Result<(), Stop>, op: &Op, rest: &[Op]) -> Went {
    match result {
        Ok(()) => crossed(op, rest),
        Err(_) => slow(rest),
    }
}

fn system_call(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    settle_flags(cpu);
    let back = next(cpu, op);
    done(cpu.call_system(back), op, rest)
}

fn system_return<const LONG: bool>(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    // The status flags come from R11.
    settle_flags(cpu);
    done(cpu.return_from_system(LONG), op, rest)
}

fn swap_bases(cpu: &mut Cpu<World>, _op: &Op, rest: &[Op]) -> Went {
    match cpu.swap_gs_bases() {
        Ok(()) => follow(cpu, rest),
        Err(_) => slow(rest),
    }
}

/// `int n`.
fn interrupt(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if cpu.state.real_segments() {
        return slow(rest);
    }
    settle_flags(cpu);
    let back = next(cpu, op);
    done(cpu.call_handler(op.from, back), op, rest)
}

/// `iretq`, if its frame is where the TLB knows it.
fn interrupt_return(cpu: &mut Cpu<World>, op: &Op, rest: &[Op]) -> Went {
    if cpu.state.real_segments() || cpu.state.flag(flags::NT) {
        return slow(rest);
    }
    let word = |number: u64| load::<64>(cpu, cpu.state.gpr[RSP].wrapping_add(8 * number));
    let (Some(target), Some(selector), Some(flags), Some(pointer), Some(stack)) =
        (word(0), word(1), word(2), word(3), word(4))
    else {
        return slow(rest);
    };
    settle_flags(cpu);
    done(cpu.return_with(target, selector, flags, pointer, stack), op, rest)
}

/// `stac` and `clac`. Code is fetched as before, so that the block goes on.
fn alignment_flag<const SET: bool>(cpu: &mut Cpu<World>, _op: &Op, rest: &[Op]) -> Went {
    if cpu.state.cpl() != 0 {
        return slow(rest);
    }
    cpu.state.set_flags(flags::AC, flags::when(SET, flags::AC));
    cpu.env.tlb.set_rights(1 + u8::from(SET));
    follow(cpu, rest)
}

/// Finds the function of the op, and sets the op's operands.
pub(super) fn find(op: &mut Op, insn: &Instruction, long: bool) -> Option<Run> {
    let run: Run = match insn.mnemonic() {
        M::Stac => alignment_flag::<true>,
        M::Clac => alignment_flag::<false>,
        _ if !long => return None,
        M::Syscall => system_call,
        M::Sysretq => system_return::<true>,
        M::Sysret => system_return::<false>,
        M::Swapgs => swap_bases,
        M::Int => {
            op.from = insn.immediate8();
            interrupt
        }
        M::Iretq => interrupt_return,
        _ => return None,
    };
    Some(run)
}
