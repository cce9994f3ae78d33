//! x87 (SDM vol. 1 chapter 8): the register stack, and how an instruction begins and ends.
//!
//! Every instruction that computes goes the same way: [`Cpu::x87_begin`] (#NM, or #MF for an exception that waits), its
//! memory operand, the computation in an [`Env`], [`Cpu::x87_end`], which notes flags and says whether there is a
//! result. An exception that is not masked is noted in the status word and reported by the next instruction that waits.
//! With CR0.NE = 0 it goes out by FERR#, for the board to make an interrupt of. The pointers to the last instruction and its operand are kept for instructions that raise such an exception; that is what AMD's processors show.
//!
//! Files: `load_store`, `arith`, `compare`, `scale` (`fprem fscale fxtract frndint`), `stack`, `transcendental` (by the
//! `series` of `wide` numbers), `control` and `image` (`fnstenv` and relatives).

mod arith;
mod compare;
mod control;
mod image;
mod load_store;
mod scale;
mod series;
mod stack;
mod transcendental;
mod wide;

use super::Cpu;
use super::dispatch::Handler;
use super::environment::{Memory, Platform, Stop};
use super::exception::{self, Exception};
use super::float::{Env, Format, Kind, Mode, Number, flag};
use super::fpu::F80;
use super::state::cr0;
use iced_x86::{Instruction, Mnemonic as M, OpKind};

/// The handler for an x87 instruction that the core knows.
pub(super) fn handler<E: Memory + Platform>(mnemonic: M) -> Option<Handler<E>> {
    let handler: Handler<E> = match mnemonic {
        M::Fninit => Cpu::fninit,
        M::Fnclex => Cpu::fnclex,
        M::Emms => Cpu::emms,
        M::Wait => Cpu::fwait,
        M::Fnstcw => Cpu::fnstcw,
        M::Fnstsw => Cpu::fnstsw,
        M::Fldcw => Cpu::fldcw,
        M::Fnstenv => Cpu::fnstenv,
        M::Fldenv => Cpu::fldenv,
        M::Fnsave => Cpu::fnsave,
        M::Frstor => Cpu::frstor,
        M::Fld => Cpu::fld,
        M::Fild => Cpu::fild,
        M::Fbld => Cpu::fbld,
        M::Fst | M::Fstp => Cpu::fst,
        M::Fist | M::Fistp | M::Fisttp => Cpu::fist,
        M::Fbstp => Cpu::fbstp,
        M::Fld1 | M::Fldz | M::Fldpi | M::Fldl2e | M::Fldl2t | M::Fldlg2 | M::Fldln2 => Cpu::fld_constant,
        M::Fadd | M::Faddp | M::Fiadd | M::Fmul | M::Fmulp | M::Fimul => Cpu::x87_arithmetic,
        M::Fsub | M::Fsubp | M::Fisub | M::Fsubr | M::Fsubrp | M::Fisubr => Cpu::x87_arithmetic,
        M::Fdiv | M::Fdivp | M::Fidiv | M::Fdivr | M::Fdivrp | M::Fidivr => Cpu::x87_arithmetic,
        M::Fsqrt => Cpu::fsqrt,
        M::Fabs | M::Fchs => Cpu::x87_sign,
        M::Fcom | M::Fcomp | M::Fcompp | M::Fucom | M::Fucomp | M::Fucompp => Cpu::fcom,
        M::Ficom | M::Ficomp | M::Ftst => Cpu::fcom,
        M::Fcomi | M::Fcomip | M::Fucomi | M::Fucomip => Cpu::fcomi,
        M::Fxam => Cpu::fxam,
        M::Frndint => Cpu::frndint,
        M::Fscale => Cpu::fscale,
        M::Fxtract => Cpu::fxtract,
        M::Fprem | M::Fprem1 => Cpu::fprem,
        M::Fxch => Cpu::fxch,
        M::Ffree | M::Ffreep => Cpu::ffree,
        M::Fincstp | M::Fdecstp => Cpu::x87_rotate,
        M::Fnop => Cpu::fnop,
        M::Fneni | M::Fndisi | M::Fnsetpm => Cpu::x87_nothing,
        M::Fcmovb | M::Fcmove | M::Fcmovbe | M::Fcmovu => Cpu::fcmov,
        M::Fcmovnb | M::Fcmovne | M::Fcmovnbe | M::Fcmovnu => Cpu::fcmov,
        M::F2xm1 | M::Fsin | M::Fcos => Cpu::x87_function,
        M::Fyl2x | M::Fyl2xp1 | M::Fpatan => Cpu::x87_function_of_two,
        M::Fptan | M::Fsincos => Cpu::x87_two_results,
        _ => return None,
    };
    Some(handler)
}

/// Stack fault, beside the exception flags.
const STACK_FAULT: u16 = 1 << 6;
/// ES: an unmasked exception waits.
const ERROR_SUMMARY: u16 = 1 << 7;
/// Condition codes.
const C0: u16 = 1 << 8;
const C1: u16 = flag::UP;
const C2: u16 = 1 << 10;
const C3: u16 = 1 << 14;
/// B, which follows ES.
const BUSY: u16 = 1 << 15;

impl<E: Memory + Platform> Cpu<E> {
    /// #NM if the unit is absent or belongs to another task.
    fn check_x87(&self) -> Result<(), Stop> {
        if self.state.sys.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(Exception::new(exception::NM).into());
        }
        Ok(())
    }

    /// #MF if an exception waits and is reported that way. Otherwise FERR# reports it, and the CPU freezes until the
    /// interrupt comes that this makes (SDM vol. 1 appendix D).
    pub(super) fn check_x87_error(&mut self) -> Result<(), Stop> {
        let pending = self.state.fpu.status & ERROR_SUMMARY != 0;
        match self.state.sys.cr0 & cr0::NE != 0 {
            true if pending => Err(Exception::new(exception::MF).into()),
            false if !self.env.fpu_error(pending) && pending => Err(Stop::Frozen),
            _ => Ok(()),
        }
    }

    /// What comes first in every instruction that waits.
    fn x87_begin(&mut self) -> Result<(), Stop> {
        self.check_x87()?;
        self.check_x87_error()
    }

    /// An environment as the control word says.
    fn x87_env(&self) -> Env {
        let control = self.state.fpu.control;
        Env {
            mode: Mode::of(u32::from(control >> 10)),
            masks: control & flag::ALL,
            daz: false,
            ftz: false,
            x87: true,
            flags: 0,
        }
    }

    /// The format of arithmetic results: full range, the precision that the control word asks for.
    fn x87_format(&self) -> Format {
        Format::extended_with(match self.state.fpu.control >> 8 & 3 {
            0 => 24,
            2 => 53,
            _ => 64,
        })
    }

    /// Notes what `env` has raised, and C1. Whether the instruction has a result, which is then to be written; it is the
    /// masked response if the exception was an invalid operation.
    fn x87_end(&mut self, insn: &Instruction, env: &Env) -> bool {
        let fpu = &mut self.state.fpu;
        fpu.status = fpu.status & !C1 | env.flags & (flag::ALL | STACK_FAULT | C1);
        if env.flags & flag::ALL & !env.masks != 0 {
            fpu.status |= ERROR_SUMMARY | BUSY;
            let data = if (0..insn.op_count()).any(|operand| insn.op_kind(operand) == OpKind::Memory) {
                self.effective_address(insn)
            } else {
                0
            };
            let fpu = &mut self.state.fpu;
            (fpu.instruction, fpu.data) = (self.state.rip, data);
        }
        !env.refused()
    }

    /// As [`Cpu::x87_end`], for instructions that touch C1 only if the stack is at fault.
    fn x87_end_keeping_c1(&mut self, insn: &Instruction, env: &Env) -> bool {
        let before = self.state.fpu.status & C1;
        let goes_on = self.x87_end(insn, env);
        if env.flags & STACK_FAULT == 0 {
            self.set_conditions(C1, before);
        }
        goes_on
    }

    /// Whether a result for memory must not be stored because its overflow or underflow is not masked.
    fn out_of_range(env: &Env) -> bool {
        env.flags & (flag::OE | flag::UE) & !env.masks != 0
    }

    /// The condition codes in `mask`.
    fn set_conditions(&mut self, mask: u16, value: u16) {
        self.state.fpu.status = self.state.fpu.status & !mask | value & mask;
    }

    /// ST(`index`), if it is not empty.
    fn st(&self, index: usize) -> Option<F80> {
        let fpu = &self.state.fpu;
        let register = (fpu.top() + index) & 7;
        (fpu.tags >> register & 1 != 0).then(|| fpu.x87[register])
    }

    /// ST(`index`) as a number. An empty one is a stack fault, whose result is the indefinite NaN.
    fn operand(&self, env: &mut Env, index: usize) -> Option<Number> {
        let number = self.st(index).map(Number::from_f80);
        if number.is_none() {
            env.flags |= flag::IE | STACK_FAULT;
        }
        number
    }

    fn set_st(&mut self, index: usize, value: F80) {
        let fpu = &mut self.state.fpu;
        let register = (fpu.top() + index) & 7;
        fpu.tags |= 1 << register;
        fpu.x87[register] = value;
    }

    /// A new top of the stack.
    fn push_st(&mut self, value: F80) {
        let top = self.state.fpu.top();
        self.state.fpu.set_top((top + 7) & 7);
        self.set_st(0, value);
    }

    /// Flags a stack overflow if there is no room for a push.
    fn check_room(&self, env: &mut Env) -> bool {
        let room = self.st(7).is_none();
        if !room {
            env.flags |= flag::IE | STACK_FAULT | C1;
        }
        room
    }

    fn pop_st(&mut self) {
        let fpu = &mut self.state.fpu;
        let top = fpu.top();
        fpu.tags &= !(1 << top);
        fpu.set_top((top + 1) & 7);
    }
}

/// Flags a denormal operand. Whether that stops the instruction.
fn denormal_stops(env: &mut Env, number: &Number) -> bool {
    if number.denormal {
        env.flags |= flag::DE;
    }
    env.refused()
}

/// The result of an operation on a single operand that is no number.
fn no_number(env: &mut Env, number: &Number) -> Option<Number> {
    match number.kind {
        Kind::Unsupported => Some(super::float::ops::invalid(env)),
        Kind::Nan => Some(super::float::ops::propagate(env, number, number)),
        _ => None,
    }
}
