//! `mov` with control and debug registers, `lmsw smsw clts` (SDM vol. 3A sections 2.5, 2.8, vol. 3B section 18.2, vol. 2 MOV).

use super::environment::{Memory, Platform, Stop, Translation};
use super::exception::{self, Exception};
use super::state::{cr0, cr4, dr7, efer, pae_paging};
use super::width::Width;
use super::{Cpu, Flow};
use crate::regs::SystemRegs;
use iced_x86::{Instruction, OpKind, Register};

/// CR4 bits that the core knows, each with what announces it: leaf, register (EAX is 0) and bit of CPUID. The others are
/// reserved (SDM vol. 3A section 2.5, vol. 2 CPUID). Of the virtual interrupt flags the core knows only that they are there:
/// an instruction for which they count is [`Stop::Unsupported`].
const CR4_FEATURES: [(u64, u32, usize, u32); 17] = [
    (cr4::VME | cr4::PVI, 1, 3, 1),
    (cr4::TSD, 1, 3, 4),
    (cr4::DE, 1, 3, 2),
    (cr4::PSE, 1, 3, 3),
    (cr4::PAE, 1, 3, 6),
    (cr4::MCE, 1, 3, 7),
    (cr4::PGE, 1, 3, 13),
    (cr4::OSFXSR, 1, 3, 24),
    (cr4::OSXMMEXCPT, 1, 3, 25),
    (cr4::PCIDE, 1, 2, 17),
    (cr4::OSXSAVE, 1, 2, 26),
    (cr4::FSGSBASE, 7, 1, 0),
    (cr4::SMEP, 7, 1, 7),
    (cr4::SMAP, 7, 1, 20),
    (cr4::UMIP, 7, 2, 2),
    (cr4::PKE, 7, 2, 3),
    (cr4::LA57, 7, 2, 16),
];
/// CR0 bits that exist; writes to the others in the low half are ignored.
const CR0_KNOWN: u64 =
    cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;

const GP0: Stop = Stop::Fault(Exception::gp(0));

impl<E: Memory + Platform> Cpu<E> {
    /// #GP(0) unless at CPL 0.
    pub(super) fn require_cpl0(&self) -> Result<(), Stop> {
        if self.state.cpl() == 0 { Ok(()) } else { Err(GP0) }
    }

    /// The width of a `mov` with a control or debug register: the mode's, not the prefix's.
    fn system_width(&self) -> Width {
        if self.state.long_code() { Width::B8 } else { Width::B4 }
    }

    pub(super) fn mov_from_control(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let priority = self.env.task_priority();
        let sys = &self.state.sys;
        let value = match insn.op1_register() {
            Register::CR0 => sys.cr0,
            Register::CR2 => sys.cr2,
            Register::CR3 => sys.cr3,
            Register::CR4 => sys.cr4,
            Register::CR8 => priority.unwrap_or(sys.cr8),
            _ => return Err(Exception::UD.into()),
        };
        self.require_cpl0()?;
        self.state.set(insn.op0_register(), value);
        Ok(Flow::Next)
    }

    pub(super) fn mov_to_control(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let value = self.state.get(insn.op1_register());
        let register = insn.op0_register();
        if !matches!(
            register,
            Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4 | Register::CR8
        ) {
            return Err(Exception::UD.into());
        }
        self.require_cpl0()?;
        match register {
            Register::CR0 => self.write_cr0(value)?,
            Register::CR2 => self.state.sys.cr2 = value,
            Register::CR3 => self.write_cr3(value)?,
            Register::CR4 => self.write_cr4(value)?,
            _ if value > 15 => return Err(GP0),
            _ => {
                self.state.sys.cr8 = value;
                self.env.set_task_priority(value);
            }
        }
        Ok(Flow::Next)
    }

    fn write_cr0(&mut self, value: u64) -> Result<(), Stop> {
        let old = self.state.sys.cr0;
        let new = (value & CR0_KNOWN) | cr0::ET;
        let has = |bit| new & bit != 0;
        let inconsistent = has(cr0::PG) && !has(cr0::PE) || has(cr0::NW) && !has(cr0::CD);
        if value >> 32 != 0 || inconsistent {
            return Err(GP0);
        }
        let mut sys = self.state.sys;
        if has(cr0::PG) && old & cr0::PG == 0 && sys.efer & efer::LME != 0 {
            if sys.cr4 & cr4::PAE == 0 || sys.cs.long {
                return Err(GP0);
            }
            sys.efer |= efer::LMA;
        }
        if !has(cr0::PG) && old & cr0::PG != 0 {
            if self.state.long_code() || sys.cr4 & cr4::PCIDE != 0 {
                return Err(GP0);
            }
            sys.efer &= !efer::LMA;
        }
        sys.cr0 = new;
        let reload = (old ^ new) & (cr0::CD | cr0::NW | cr0::PG) != 0;
        let pdptes = self.pdptes_for(&sys, reload)?;
        if old & cr0::PE != 0 && new & cr0::PE == 0 {
            // Real mode is always at level 0.
            sys.ss.dpl = 0;
        }
        self.state.sys = sys;
        self.state.pdptes = pdptes;
        self.env.translation(Translation::ControlsChanged, &self.state);
        Ok(())
    }

    /// The PDPTE registers to go on with when `sys` takes effect; read from memory if that is one of the moments for it.
    ///
    /// # Errors
    /// #GP(0) if they can't be loaded.
    pub(super) fn pdptes_for(&mut self, sys: &SystemRegs, reload: bool) -> Result<[u64; 4], Stop> {
        if reload && pae_paging(sys) {
            self.env.load_pdptes(sys)
        } else {
            Ok(self.state.pdptes)
        }
    }

    fn write_cr3(&mut self, value: u64) -> Result<(), Stop> {
        let mut value = value;
        if self.state.long_mode() {
            if self.state.sys.cr4 & cr4::PCIDE != 0 {
                // Bit 63 only says that entries of the address space may be kept.
                value &= !(1 << 63);
            }
            if value >> self.env.physical_width() != 0 {
                return Err(GP0);
            }
        }
        let sys = SystemRegs {
            cr3: value,
            ..self.state.sys
        };
        self.state.pdptes = self.pdptes_for(&sys, true)?;
        self.state.sys = sys;
        self.env.translation(Translation::ControlsChanged, &self.state);
        Ok(())
    }

    /// CR4 bits that exist.
    fn cr4_bits(&mut self) -> u64 {
        let (basic, structured) = (self.env.cpuid(1, 0), self.env.cpuid(7, 0));
        CR4_FEATURES
            .into_iter()
            .filter(|(_, leaf, register, bit)| {
                let registers = if *leaf == 1 { &basic } else { &structured };
                registers[*register] >> bit & 1 != 0
            })
            // Of performance counters there may be none, and the bit is there.
            .fold(cr4::PCE, |bits, (bit, ..)| bits | bit)
    }

    fn write_cr4(&mut self, value: u64) -> Result<(), Stop> {
        let exist = self.cr4_bits();
        let old = self.state.sys.cr4;
        let changed = old ^ value;
        let long = self.state.long_mode();
        let leaves_pae = long && value & cr4::PAE == 0;
        let moves_levels = long && changed & cr4::LA57 != 0;
        let starts_pcid = value & !old & cr4::PCIDE != 0 && (!long || self.state.sys.cr3 & 0xfff != 0);
        if value & !exist != 0 || leaves_pae || moves_levels || starts_pcid {
            return Err(GP0);
        }
        let sys = SystemRegs {
            cr4: value,
            ..self.state.sys
        };
        let reload = changed & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0;
        self.state.pdptes = self.pdptes_for(&sys, reload)?;
        self.state.sys = sys;
        self.env.translation(Translation::ControlsChanged, &self.state);
        Ok(())
    }

    pub(super) fn mov_from_debug(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let number = self.debug_register(insn.op1_register())?;
        let value = self.state.debug[number];
        self.state.set(insn.op0_register(), value);
        Ok(Flow::Next)
    }

    pub(super) fn mov_to_debug(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let number = self.debug_register(insn.op0_register())?;
        let value = self.state.get(insn.op1_register());
        let status = number >= 6;
        if status && value >> 32 != 0 && self.system_width() == Width::B8 {
            return Err(GP0);
        }
        self.state.debug[number] = match number {
            6 => value & 0xe00f | 0xffff_0ff0,
            7 => value & 0xffff_23ff | dr7::FIXED,
            _ => value,
        };
        Ok(Flow::Next)
    }

    /// The number of a debug register that may be accessed now; 4 and 5 are other names of 6 and 7.
    fn debug_register(&mut self, register: Register) -> Result<usize, Stop> {
        let number = register.number();
        let number = match number {
            4 | 5 if self.state.sys.cr4 & cr4::DE != 0 => return Err(Exception::UD.into()),
            4 | 5 => number + 2,
            0..=7 => number,
            _ => return Err(Exception::UD.into()),
        };
        self.require_cpl0()?;
        if self.state.debug[7] & dr7::GENERAL_DETECT != 0 {
            return Err(Exception::debug(exception::debug_cause::REGISTER_ACCESS).into());
        }
        Ok(number)
    }

    pub(super) fn smsw(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.forbid_by_umip()?;
        let value = self.state.sys.cr0;
        if insn.op0_kind() == OpKind::Register {
            self.state.set(insn.op0_register(), value);
        } else {
            self.set_value(insn, 0, Width::B2, value)?;
        }
        Ok(Flow::Next)
    }

    /// Loads PE (which it can't clear), MP, EM and TS.
    pub(super) fn lmsw(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.require_cpl0()?;
        let value = self.value(insn, 0, Width::B2)?;
        let old = self.state.sys.cr0;
        let low = cr0::MP | cr0::EM | cr0::TS;
        let new = old & !low | value & (low | cr0::PE);
        self.write_cr0(new)?;
        Ok(Flow::Next)
    }

    pub(super) fn clts(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        self.require_cpl0()?;
        self.state.sys.cr0 &= !cr0::TS;
        Ok(Flow::Next)
    }

    /// UMIP keeps programs from reading where tables lie.
    pub(super) fn forbid_by_umip(&self) -> Result<(), Stop> {
        if self.state.sys.cr4 & cr4::UMIP != 0 && self.state.cpl() > 0 {
            return Err(GP0);
        }
        Ok(())
    }
}
