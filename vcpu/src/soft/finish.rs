//! [`Finish`]: what is left of a plain `mov` once a device has answered.
//!
//! An instruction that waits for a device is begun anew with the answer ([`crate::fallback::replay`]). Most accesses to
//! devices are a `mov` of one register in a block of fast ops, of which nothing is left to be done but to put the answer
//! where it belongs and to go on: no second execution is needed.

use super::fast::number;
use super::vcpu::SoftVcpu;
use crate::emulate::Request;
use crate::emulate::state::{self, CpuState};
use crate::emulate::width::Width;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use umbra_devices::IoOp;

/// How a waiting instruction ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finish {
    mnemonic: Mnemonic,
    /// How wide its access is.
    access: Width,
    /// What the answer goes into, if it is a read; wider than the access for `movzx` and `movsx`.
    register: Option<(usize, Width)>,
    signed: bool,
    /// RIP of the instruction behind it.
    next: u64,
}

impl Finish {
    /// How `instruction` ends, before `next`, if it is one of those that are so simple, and this is its whole access.
    pub fn of(instruction: &Instruction, next: u64, request: &Request) -> Option<Self> {
        let (Request::Mmio { size, op, .. }, kinds) = (request, [0, 1].map(|index| instruction.op_kind(index))) else {
            return None;
        };
        let (signed, register) = match (instruction.mnemonic(), kinds) {
            (Mnemonic::Mov, [OpKind::Memory, _]) => (false, None),
            (Mnemonic::Mov | Mnemonic::Movzx, [OpKind::Register, OpKind::Memory]) => {
                (false, Some(whole_or_low(instruction.op0_register())?))
            }
            (Mnemonic::Movsx | Mnemonic::Movsxd, [OpKind::Register, OpKind::Memory]) => {
                (true, Some(whole_or_low(instruction.op0_register())?))
            }
            _ => return None,
        };
        let access = Width::of(instruction.memory_size().size());
        let is_whole = size.bytes() as usize == access.size() && matches!(op, IoOp::Read) == register.is_some();
        is_whole.then_some(Self {
            mnemonic: instruction.mnemonic(),
            access,
            register,
            signed,
            next,
        })
    }

    /// Does what is left.
    fn apply(self, state: &mut CpuState, answer: u64) {
        if let Some((index, width)) = self.register {
            let answer = self.access.cut(answer);
            let value = if self.signed {
                self.access.extend(answer)
            } else {
                answer
            };
            state.set_low(index, value, width);
        }
        state.rip = self.next;
    }
}

/// A general-purpose register, and how much of it from bit 0 on.
fn whole_or_low(register: Register) -> Option<(usize, Width)> {
    number(register).map(|number| (number.into(), state::register_width(register)))
}

impl SoftVcpu {
    /// Takes the answer to what the instruction at RIP asked for; `None` says that it faults. Says whether it is to be begun
    /// anew: otherwise it is finished.
    pub(super) fn answer(&mut self, request: Request, answer: Option<u64>) -> bool {
        let env = &mut self.cpu.env;
        if let (Some(finish), Some(answer)) = (env.finish.take(), answer) {
            finish.apply(&mut self.cpu.state, answer);
            env.counts.core(finish.mnemonic);
            self.executed += 1;
            return false;
        }
        env.replay.answer(request, answer);
        true
    }
}
