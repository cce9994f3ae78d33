//! Near transfers: `jmp call ret jcc loop jcxz`, and `bound`, `into`.

use super::environment::{Memory, Platform, Stop};
use super::exception::{self, Exception};
use super::flags::{OF, ZF};
use super::state::RCX;
use super::width::Width;
use super::{Cpu, Flow};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

impl<E: Memory + Platform> Cpu<E> {
    /// A jump within the code segment, or #GP(0) if there is no code at `target`.
    #[inline]
    pub(super) fn jump(&self, target: u64) -> Result<Flow, Stop> {
        let reachable = if self.state.long_code() {
            self.state.canonical(target)
        } else {
            target <= u64::from(self.state.sys.cs.limit)
        };
        if reachable {
            Ok(Flow::Jump(target))
        } else {
            Err(Exception::gp(0).into())
        }
    }

    /// The target of a near branch: relative, or the value of the operand.
    fn branch_target(&mut self, insn: &Instruction) -> Result<(u64, Width), Stop> {
        Ok(match insn.op0_kind() {
            OpKind::NearBranch16 => (insn.near_branch_target(), Width::B2),
            OpKind::NearBranch32 => (insn.near_branch_target(), Width::B4),
            OpKind::NearBranch64 => (insn.near_branch_target(), Width::B8),
            _ => {
                let width = Self::width(insn, 0);
                (self.value(insn, 0, width)?, width)
            }
        })
    }

    pub(super) fn jmp_near(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let (target, _) = self.branch_target(insn)?;
        self.jump(target)
    }

    pub(super) fn call_near(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let (target, width) = self.branch_target(insn)?;
        // A stack that can't take the return address counts before a target that is no code.
        self.probe_push(width)?;
        let flow = self.jump(target)?;
        let back = self.next_rip(insn);
        self.push_value(back, width)?;
        Ok(flow)
    }

    pub(super) fn ret_near(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = match insn.code() {
            Code::Retnw | Code::Retnw_imm16 => Width::B2,
            Code::Retnd | Code::Retnd_imm16 => Width::B4,
            _ => Width::B8,
        };
        let extra = if insn.op_count() == 1 {
            u64::from(insn.immediate16())
        } else {
            0
        };
        let target = self.peek(0, width)?;
        let flow = self.jump(target)?;
        self.release(width.bytes() + extra);
        Ok(flow)
    }

    pub(super) fn jcc(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        if self.condition(insn) {
            self.jump(insn.near_branch_target())
        } else {
            Ok(Flow::Next)
        }
    }

    /// The width of the counter, which is the address size.
    fn counter_width(code: Code) -> Width {
        use Code::{
            Jcxz_rel8_16, Jcxz_rel8_32, Jecxz_rel8_16, Jecxz_rel8_32, Jecxz_rel8_64, Loop_rel8_16_CX, Loop_rel8_16_ECX,
            Loop_rel8_32_CX, Loop_rel8_32_ECX, Loop_rel8_64_ECX, Loope_rel8_16_CX, Loope_rel8_16_ECX, Loope_rel8_32_CX,
            Loope_rel8_32_ECX, Loope_rel8_64_ECX, Loopne_rel8_16_CX, Loopne_rel8_16_ECX, Loopne_rel8_32_CX,
            Loopne_rel8_32_ECX, Loopne_rel8_64_ECX,
        };
        match code {
            Jcxz_rel8_16 | Jcxz_rel8_32 | Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX
            | Loopne_rel8_16_CX | Loopne_rel8_32_CX => Width::B2,
            Jecxz_rel8_16 | Jecxz_rel8_32 | Jecxz_rel8_64 | Loop_rel8_16_ECX | Loop_rel8_32_ECX | Loop_rel8_64_ECX
            | Loope_rel8_16_ECX | Loope_rel8_32_ECX | Loope_rel8_64_ECX | Loopne_rel8_16_ECX | Loopne_rel8_32_ECX
            | Loopne_rel8_64_ECX => Width::B4,
            _ => Width::B8,
        }
    }

    pub(super) fn jcxz(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        if self.state.low(RCX, Self::counter_width(insn.code())) == 0 {
            self.jump(insn.near_branch_target())
        } else {
            Ok(Flow::Next)
        }
    }

    pub(super) fn loop_(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::counter_width(insn.code());
        let count = width.cut(self.state.low(RCX, width).wrapping_sub(1));
        let zero = self.state.flag(ZF);
        let taken = count != 0
            && match insn.mnemonic() {
                Mnemonic::Loope => zero,
                Mnemonic::Loopne => !zero,
                _ => true,
            };
        let flow = if taken {
            self.jump(insn.near_branch_target())?
        } else {
            Flow::Next
        };
        self.state.set_low(RCX, count, width);
        Ok(flow)
    }

    pub(super) fn into(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        if self.state.flag(OF) {
            return self.software_interrupt(insn, exception::OF);
        }
        Ok(Flow::Next)
    }

    pub(super) fn bound(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = register_operand_width(insn);
        let index = width.extend(self.state.get(insn.op0_register())) as i64;
        let kind = super::environment::AccessKind::Read;
        let at = self.memory_operand(insn, 2 * width.size(), kind)?;
        let low = width.extend(self.load(at, width, kind)?) as i64;
        let high = width.extend(self.load(at.wrapping_add(width.bytes()), width, kind)?) as i64;
        if index < low || index > high {
            return Err(Exception::new(exception::BR).into());
        }
        Ok(Flow::Next)
    }
}

fn register_operand_width(insn: &Instruction) -> Width {
    Width::of(insn.op0_register().size())
}
