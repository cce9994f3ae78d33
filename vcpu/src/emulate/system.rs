//! The rest of the system instructions: descriptor tables, task register, TLB, `cpuid`, time, `hlt`, caches.

use super::descriptor::{gp, is_null, not_present, system};
use super::environment::{AccessKind, Memory, Platform, Stop, Translation};
use super::exception::{self, Exception};
use super::segment::null_segment;
use super::state::{RAX, RBX, RCX, RDX, cr4};
use super::width::Width;
use super::{Cpu, Flow};
use crate::regs::DescriptorTable;
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use umbra_memslots::Gva;

const GP0: Stop = Stop::Fault(Exception::gp(0));

impl<E: Memory + Platform> Cpu<E> {
    /// `lgdt lidt`.
    pub(super) fn load_table(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.require_cpl0()?;
        let base_width = if self.state.long_code() { Width::B8 } else { Width::B4 };
        let at = self.memory_operand(insn, 2 + base_width.size(), AccessKind::Read)?;
        let access = self.access(AccessKind::Read);
        let limit = self.load_as(at, Width::B2, access)? as u16;
        let mut base = self.load_as(at.wrapping_add(2), base_width, access)?;
        if matches!(insn.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
            base &= 0xff_ffff;
        }
        if !self.state.canonical(base) && base_width == Width::B8 {
            return Err(GP0);
        }
        let table = DescriptorTable { base, limit };
        if insn.mnemonic() == Mnemonic::Lgdt {
            self.state.sys.gdt = table;
        } else {
            self.state.sys.idt = table;
        }
        Ok(Flow::Next)
    }

    /// `sgdt sidt`.
    pub(super) fn store_table(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.forbid_by_umip()?;
        let sys = &self.state.sys;
        let table = if insn.mnemonic() == Mnemonic::Sgdt {
            sys.gdt
        } else {
            sys.idt
        };
        let length = if self.state.long_code() { 10 } else { 6 };
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
        bytes[2..].copy_from_slice(&table.base.to_le_bytes());
        let at = self.memory_operand(insn, length, AccessKind::Write)?;
        let access = self.access(AccessKind::Write);
        self.write_memory(at, &bytes[..length], access)?;
        Ok(Flow::Next)
    }

    /// `sldt str`: the selector, like a `mov` from a segment register.
    pub(super) fn store_selector(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        if self.state.real_segments() {
            return Err(Exception::UD.into());
        }
        self.forbid_by_umip()?;
        let sys = &self.state.sys;
        let selector = if insn.mnemonic() == Mnemonic::Sldt {
            sys.ldt.selector
        } else {
            sys.tr.selector
        };
        if insn.op0_kind() == OpKind::Register {
            self.state.set(insn.op0_register(), u64::from(selector));
        } else {
            self.set_value(insn, 0, Width::B2, u64::from(selector))?;
        }
        Ok(Flow::Next)
    }

    /// `lldt ltr`.
    pub(super) fn load_system_segment(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        if self.state.real_segments() {
            return Err(Exception::UD.into());
        }
        self.require_cpl0()?;
        let task = insn.mnemonic() == Mnemonic::Ltr;
        let selector = self.value(insn, 0, Width::B2)? as u16;
        if is_null(selector) {
            if task {
                return Err(GP0);
            }
            self.state.sys.ldt = null_segment(selector, 0);
            return Ok(Flow::Next);
        }
        if selector & 4 != 0 {
            return Err(gp(selector));
        }
        let mut descriptor = self.descriptor(selector, exception::GP)?;
        let long = self.state.long_mode();
        let wanted = match descriptor.kind() {
            system::LDT => !task,
            system::TSS => task,
            system::TSS_16 => task && !long,
            _ => false,
        };
        if descriptor.non_system() || !wanted {
            return Err(gp(selector));
        }
        if !descriptor.present() {
            return Err(not_present(selector));
        }
        let mut segment = descriptor.segment(selector);
        if long {
            let high = self.descriptor_high(descriptor)?;
            segment.base |= high << 32;
            if high >> 40 & 0x1f != 0 || !self.state.canonical(segment.base) {
                return Err(gp(selector));
            }
        }
        if task {
            descriptor.raw |= u64::from(system::BUSY) << 40;
            self.write_type(descriptor)?;
            segment.kind |= system::BUSY;
            self.state.sys.tr = segment;
        } else {
            self.state.sys.ldt = segment;
        }
        Ok(Flow::Next)
    }

    pub(super) fn invlpg(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.require_cpl0()?;
        let offset = self.effective_address(insn);
        // An address that is not canonical is not an error here; there is just nothing to forget.
        let base = match self.operand_segment(insn) {
            segment @ (iced_x86::Register::FS | iced_x86::Register::GS) => self.state.segment(segment).base,
            _ if self.state.long_code() => 0,
            segment => self.state.segment(segment).base,
        };
        let address = self.wrap_linear(base.wrapping_add(offset));
        self.env
            .translation(Translation::InvalidateAddress(Gva::new(address)), &self.state);
        Ok(Flow::Next)
    }

    pub(super) fn invpcid(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.require_cpl0()?;
        let width = if self.state.long_code() { Width::B8 } else { Width::B4 };
        let kind = width.cut(self.state.get(insn.op0_register()));
        let at = self.memory_operand(insn, 16, AccessKind::Read)?;
        let access = self.access(AccessKind::Read);
        let space = self.load_as(at, Width::B8, access)?;
        let address = self.load_as(at.wrapping_add(8), Width::B8, access)?;
        let has_spaces = self.state.sys.cr4 & cr4::PCIDE != 0;
        if kind > 3 || space >> 12 != 0 || (kind < 2 && space != 0 && !has_spaces) {
            return Err(GP0);
        }
        let change = if kind == 0 {
            if !self.state.canonical(address) {
                return Err(GP0);
            }
            Translation::InvalidateAddress(Gva::new(address))
        } else {
            Translation::InvalidateAll
        };
        self.env.translation(change, &self.state);
        Ok(Flow::Next)
    }

    pub(super) fn cpuid(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        let leaf = self.state.low(RAX, Width::B4) as u32;
        let subleaf = self.state.low(RCX, Width::B4) as u32;
        let [a, mut b, mut c, d] = self.env.cpuid(leaf, subleaf);
        let cr4 = self.state.sys.cr4;
        // Two bits say what the operating system has turned on, and two numbers how large that is.
        let mirror = |register: u32, bit: u32, on: bool| register & !(1 << bit) | u32::from(on) << bit;
        match (leaf, subleaf) {
            (1, _) => c = mirror(c, 27, cr4 & cr4::OSXSAVE != 0),
            (0xd, 0 | 1) => b = self.area_in_use(subleaf, a, b),
            (7, 0) => c = mirror(c, 4, cr4 & cr4::PKE != 0),
            _ => {}
        }
        for (index, value) in [(RAX, a), (RBX, b), (RCX, c), (RDX, d)] {
            self.state.gpr[index] = u64::from(value);
        }
        Ok(Flow::Next)
    }

    /// `rdtsc rdtscp`.
    pub(super) fn read_time(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        if self.state.sys.cr4 & cr4::TSD != 0 && self.state.cpl() != 0 {
            return Err(GP0);
        }
        let now = self.env.tsc();
        self.set_edx_eax(now);
        if insn.mnemonic() == Mnemonic::Rdtscp {
            self.state.gpr[RCX] = self.state.msrs.tsc_aux & 0xffff_ffff;
        }
        Ok(Flow::Next)
    }

    pub(super) fn rdpid(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let value = self.state.msrs.tsc_aux & 0xffff_ffff;
        self.state.set(insn.op0_register(), value);
        Ok(Flow::Next)
    }

    pub(super) fn hlt(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        self.require_cpl0()?;
        Ok(Flow::Halt)
    }

    /// `invd wbinvd wbnoinvd`: memory here is always coherent.
    pub(super) fn flush_caches(&mut self, _insn: &Instruction) -> Result<Flow, Stop> {
        self.require_cpl0()?;
        Ok(Flow::Next)
    }

    /// `clflush clflushopt clwb`: checked like a read of one byte, without effect.
    pub(super) fn flush_line(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let at = self.memory_operand(insn, 1, AccessKind::Read)?;
        let access = self.access(AccessKind::Read);
        self.env.probe(at, 1, access)?;
        Ok(Flow::Next)
    }
}
