//! Segment registers: `mov`, `pop`, `lds` and relatives, `lar lsl verr verw`, `arpl`, and FS/GS bases.

use super::descriptor::{gp, is_null, not_present, selector_code, system};
use super::environment::{AccessKind, Memory, Platform, Stop};
use super::exception::{self, Exception};
use super::flags::{ZF, when};
use super::state::cr4;
use super::width::Width;
use super::{Cpu, Flow};
use crate::regs::Segment;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

impl<E: Memory + Platform> Cpu<E> {
    /// Loads a data or stack segment register by the rules of the present mode (SDM vol. 2 MOV, vol. 3A section 5.6).
    pub(super) fn load_segment_register(&mut self, register: Register, selector: u16) -> Result<(), Stop> {
        if self.state.real_segments() {
            let paragraph = real_segment(self.state.segment(register), selector, self.state.virtual_8086());
            *self.state.segment_mut(register) = paragraph;
            return Ok(());
        }
        let cpl = self.state.cpl();
        let rpl = (selector & 3) as u8;
        if is_null(selector) {
            if register == Register::SS && !(self.state.long_code() && cpl < 3 && rpl == cpl) {
                return Err(Exception::gp(0).into());
            }
            *self.state.segment_mut(register) = null_segment(selector, if register == Register::SS { cpl } else { 0 });
            return Ok(());
        }
        let mut descriptor = self.descriptor(selector, exception::GP)?;
        if register == Register::SS {
            if rpl != cpl || !descriptor.is_writable_data() || descriptor.dpl() != cpl {
                return Err(gp(selector));
            }
            if !descriptor.present() {
                return Err(Exception::with_code(exception::SS, selector_code(selector)).into());
            }
        } else {
            let privileged = !descriptor.is_conforming() && (rpl > descriptor.dpl() || cpl > descriptor.dpl());
            if !descriptor.is_readable() || privileged {
                return Err(gp(selector));
            }
            if !descriptor.present() {
                return Err(not_present(selector));
            }
        }
        self.mark_accessed(&mut descriptor)?;
        *self.state.segment_mut(register) = descriptor.segment(selector);
        Ok(())
    }

    /// `mov` from a segment register: 16 bits to memory, zero-extended into a register.
    pub(super) fn mov_from_segment(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let value = u64::from(self.state.segment(insn.op1_register()).selector);
        if insn.op0_kind() == OpKind::Register {
            self.state.set(insn.op0_register(), value);
        } else {
            self.set_value(insn, 0, Width::B2, value)?;
        }
        Ok(Flow::Next)
    }

    /// `mov` to a segment register. A load of SS holds off interrupts for an instruction.
    pub(super) fn mov_to_segment(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let register = insn.op0_register();
        if register == Register::CS {
            return Err(Exception::UD.into());
        }
        let value = self.value(insn, 1, Width::B2)?;
        self.load_segment_register(register, value as u16)?;
        Ok(if register == Register::SS {
            Flow::NextWithShadow { traps: false }
        } else {
            Flow::Next
        })
    }

    /// `lds les lfs lgs lss`.
    pub(super) fn load_far_pointer(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let register = match insn.mnemonic() {
            Mnemonic::Lds => Register::DS,
            Mnemonic::Les => Register::ES,
            Mnemonic::Lfs => Register::FS,
            Mnemonic::Lgs => Register::GS,
            _ => Register::SS,
        };
        let (offset, selector) = self.far_operand(insn)?;
        self.load_segment_register(register, selector)?;
        self.state.set(insn.op0_register(), offset);
        Ok(Flow::Next)
    }

    /// The offset and selector of a far pointer in memory.
    pub(super) fn far_operand(&mut self, insn: &Instruction) -> Result<(u64, u16), Stop> {
        let length = insn.memory_size().size();
        let width = Width::of(length - 2);
        let at = self.memory_operand(insn, length, AccessKind::Read)?;
        let access = self.access(AccessKind::Read);
        let mut bytes = [0; 10];
        self.read_memory(at, &mut bytes[..length], access)?;
        let mut offset = [0; 8];
        offset[..width.size()].copy_from_slice(&bytes[..width.size()]);
        let selector = u16::from_le_bytes([bytes[width.size()], bytes[width.size() + 1]]);
        Ok((u64::from_le_bytes(offset), selector))
    }

    /// `lar lsl`: ZF says whether the program could use the selector.
    pub(super) fn describe_selector(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        if self.state.real_segments() {
            return Err(Exception::UD.into());
        }
        let selector = self.value(insn, 1, Width::B2)? as u16;
        let limit_wanted = insn.mnemonic() == Mnemonic::Lsl;
        let found = self.visible_descriptor(selector, |kind, long| {
            let segment_like = matches!(kind, system::LDT | system::TSS) || kind == system::TSS | system::BUSY;
            let legacy = matches!(kind, system::TSS_16 | 3);
            let gate =
                matches!(kind, system::CALL_GATE) || !long && matches!(kind, system::CALL_GATE_16 | system::TASK_GATE);
            segment_like || !long && legacy || !limit_wanted && gate
        })?;
        if let Some(raw) = found {
            let descriptor = super::descriptor::Descriptor {
                raw,
                at: umbra_memslots::Gva::new(0),
            };
            let value = if limit_wanted {
                u64::from(descriptor.segment(selector).limit)
            } else {
                raw >> 32 & 0x00ff_ff00
            };
            self.state.set(insn.op0_register(), value);
        }
        self.state.set_flags(ZF, when(found.is_some(), ZF));
        Ok(Flow::Next)
    }

    /// `verr verw`.
    pub(super) fn verify_segment(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        if self.state.real_segments() {
            return Err(Exception::UD.into());
        }
        let selector = self.value(insn, 0, Width::B2)? as u16;
        let write = insn.mnemonic() == Mnemonic::Verw;
        let usable = self.visible_descriptor(selector, |_, _| false)?.is_some_and(|raw| {
            let descriptor = super::descriptor::Descriptor {
                raw,
                at: umbra_memslots::Gva::new(0),
            };
            if write {
                descriptor.is_writable_data()
            } else {
                descriptor.is_readable()
            }
        });
        self.state.set_flags(ZF, when(usable, ZF));
        Ok(Flow::Next)
    }

    /// The descriptor of `selector` if there is one of an acceptable type that CPL and RPL may see.
    fn visible_descriptor(
        &mut self,
        selector: u16,
        acceptable_system: impl Fn(u8, bool) -> bool,
    ) -> Result<Option<u64>, Stop> {
        if is_null(selector) {
            return Ok(None);
        }
        let descriptor = match self.descriptor(selector, exception::GP) {
            Ok(descriptor) => descriptor,
            Err(Stop::Fault(Exception {
                vector: exception::GP, ..
            })) => return Ok(None),
            Err(stop) => return Err(stop),
        };
        if !descriptor.non_system() && !acceptable_system(descriptor.kind(), self.state.long_mode()) {
            return Ok(None);
        }
        let least = self.state.cpl().max((selector & 3) as u8);
        let seen = descriptor.is_conforming() || least <= descriptor.dpl();
        Ok(seen.then_some(descriptor.raw))
    }

    /// `arpl`: raises a selector's RPL to the caller's. What it leaves alone is only read.
    pub(super) fn arpl(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        if self.state.real_segments() {
            return Err(Exception::UD.into());
        }
        let rpl = self.value(insn, 1, Width::B2)? & 3;
        // Bits of a register above the selector stay.
        let selector = match insn.op0_kind() {
            OpKind::Register => self.state.get(insn.op0_register()),
            _ => self.value(insn, 0, Width::B2)?,
        };
        let raise = selector & 3 < rpl;
        if raise {
            self.set_value(insn, 0, Width::B2, selector & !3 | rpl)?;
        }
        self.state.set_flags(ZF, when(raise, ZF));
        Ok(Flow::Next)
    }

    /// `rdfsbase rdgsbase wrfsbase wrgsbase`.
    pub(super) fn segment_base(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        if !self.state.long_code() || self.state.sys.cr4 & cr4::FSGSBASE == 0 {
            return Err(Exception::UD.into());
        }
        let fs = matches!(insn.mnemonic(), Mnemonic::Rdfsbase | Mnemonic::Wrfsbase);
        let segment = if fs { Register::FS } else { Register::GS };
        let register = insn.op0_register();
        if matches!(insn.mnemonic(), Mnemonic::Rdfsbase | Mnemonic::Rdgsbase) {
            let base = self.state.segment(segment).base;
            self.state.set(register, base);
            return Ok(Flow::Next);
        }
        let base = self.state.get(register);
        if !self.state.canonical(base) {
            return Err(Exception::gp(0).into());
        }
        self.state.segment_mut(segment).base = base;
        Ok(Flow::Next)
    }
}

/// A segment register loaded in real mode (limit and type stay what they were, SDM vol. 3A section 9.9) or in
/// virtual-8086 mode (everything is as on an 8086).
pub(super) const fn real_segment(old: &Segment, selector: u16, virtual_8086: bool) -> Segment {
    let base = (selector as u64) << 4;
    if virtual_8086 {
        Segment {
            selector,
            base,
            limit: 0xffff,
            kind: 3,
            dpl: 3,
            non_system: true,
            present: true,
            available: false,
            long: false,
            db: false,
            granularity: false,
            unusable: false,
        }
    } else {
        Segment {
            selector,
            base,
            unusable: false,
            ..*old
        }
    }
}

/// A segment register that holds a null selector. SS keeps the privilege level there.
pub(super) const fn null_segment(selector: u16, dpl: u8) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: 0,
        kind: 0,
        dpl,
        non_system: false,
        present: false,
        available: false,
        long: false,
        db: false,
        granularity: false,
        unusable: true,
    }
}
