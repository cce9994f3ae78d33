//! From an instruction's memory operand to a linear address: effective address, segment, limits, canonical form,
//! alignment (SDM vol. 1 section 3.7.5, vol. 3A chapters 3 and 5).

use super::Cpu;
use super::environment::{Access, AccessKind, Memory, Platform, Stop};
use super::exception::{self, Exception};
use super::flags;
use super::state::cr0;
use super::width::Width;
use crate::regs::Segment;
use iced_x86::{Instruction, Register};
use umbra_memslots::Gva;

/// Bits of a code or data descriptor's type (SDM vol. 3A section 3.4.5.1).
pub(super) mod kind {
    /// Code, not data.
    pub(crate) const CODE: u8 = 8;
    /// Data: limit is a lower bound. Code: conforming.
    pub(crate) const DOWN_OR_CONFORMING: u8 = 4;
    /// Data: writable. Code: readable.
    pub(crate) const WRITE_OR_READ: u8 = 2;
    /// Was used.
    pub(crate) const ACCESSED: u8 = 1;
}

impl<E: Memory + Platform> Cpu<E> {
    /// The width of the addresses that `insn`'s memory operand is computed with.
    pub(super) fn address_width(insn: &Instruction) -> Width {
        let register = match insn.memory_base() {
            Register::None => insn.memory_index(),
            base => base,
        };
        match register {
            Register::None => Width::of(insn.memory_displ_size() as usize),
            Register::RIP => Width::B8,
            Register::EIP => Width::B4,
            register => Width::of(register.size()),
        }
    }

    /// The offset within its segment of `insn`'s memory operand.
    #[inline]
    pub(super) fn effective_address(&self, insn: &Instruction) -> u64 {
        let mut address = insn.memory_displacement64();
        match insn.memory_base() {
            // iced has already added the instruction pointer.
            Register::None | Register::RIP | Register::EIP => {}
            base => address = address.wrapping_add(self.state.get(base)),
        }
        if insn.memory_index() != Register::None {
            let index = self.state.get(insn.memory_index());
            address = address.wrapping_add(index.wrapping_mul(u64::from(insn.memory_index_scale())));
        }
        Self::address_width(insn).cut(address)
    }

    /// The segment of the memory operand. In 64-bit mode overrides other than FS and GS do nothing, except that one of
    /// SS makes #GP into #SS (measured on AMD silicon).
    #[inline]
    pub(super) fn operand_segment(&self, insn: &Instruction) -> Register {
        let segment = insn.memory_segment();
        if !self.state.long_code() || matches!(segment, Register::FS | Register::GS | Register::SS) {
            return segment;
        }
        match insn.memory_base() {
            Register::ESP | Register::RSP | Register::EBP | Register::RBP => Register::SS,
            _ => Register::DS,
        }
    }

    /// The linear address of `length` bytes at `offset` in `segment`, with the segment's checks for `kind`.
    pub(super) fn linear(&self, segment: Register, offset: u64, length: usize, kind: AccessKind) -> Result<Gva, Stop> {
        let hidden = self.state.segment(segment);
        if self.state.long_code() {
            let base = match segment {
                Register::FS | Register::GS => hidden.base,
                _ => 0,
            };
            let first = base.wrapping_add(offset);
            let last = first.wrapping_add(length as u64 - 1);
            if !self.state.canonical(first) || !self.state.canonical(last) {
                return Err(segment_fault(segment).into());
            }
            return Ok(Gva::new(first));
        }
        if !self.state.real_segments() && !permits(hidden, kind) {
            return Err(segment_fault(segment).into());
        }
        if !within_limit(hidden, offset, length as u64) {
            return Err(segment_fault(segment).into());
        }
        Ok(Gva::new(hidden.base.wrapping_add(offset) & 0xffff_ffff))
    }

    /// How the paging unit is to see an explicit access at the present privilege level.
    #[inline]
    pub(crate) fn access(&self, kind: AccessKind) -> Access {
        Access {
            kind,
            user: self.state.cpl() == 3,
            implicit: false,
            alignment_flag: self.state.flag(flags::AC),
        }
    }

    /// An access with supervisor rights, as the CPU itself makes to descriptor tables (SDM vol. 3A section 4.6).
    #[inline]
    pub(super) const fn implicit(kind: AccessKind) -> Access {
        Access {
            kind,
            user: false,
            implicit: true,
            alignment_flag: false,
        }
    }

    /// #AC if alignment is checked here and `at` is not a multiple of `alignment` (a power of two).
    #[inline]
    pub(super) fn check_alignment(&self, at: Gva, alignment: u64) -> Result<(), Stop> {
        if at.get() & (alignment - 1) != 0
            && self.state.flag(flags::AC)
            && self.state.sys.cr0 & cr0::AM != 0
            && self.state.cpl() == 3
        {
            return Err(Exception::with_code(exception::AC, 0).into());
        }
        Ok(())
    }

    /// The linear address of an operand of `length` bytes.
    #[inline]
    pub(super) fn memory_operand(&self, insn: &Instruction, length: usize, kind: AccessKind) -> Result<Gva, Stop> {
        let offset = self.effective_address(insn);
        self.linear(self.operand_segment(insn), offset, length, kind)
    }

    /// Reads an integer from linear memory.
    #[inline]
    pub(super) fn load(&mut self, at: Gva, width: Width, kind: AccessKind) -> Result<u64, Stop> {
        self.check_alignment(at, width.bytes())?;
        let access = self.access(kind);
        self.load_as(at, width, access)
    }

    /// Reads an integer from linear memory with given rights.
    #[inline]
    pub(super) fn load_as(&mut self, at: Gva, width: Width, access: Access) -> Result<u64, Stop> {
        let mut bytes = [0; 8];
        match width {
            Width::B1 => self.read_memory(at, &mut bytes[..1], access)?,
            Width::B2 => self.read_memory(at, &mut bytes[..2], access)?,
            Width::B4 => self.read_memory(at, &mut bytes[..4], access)?,
            Width::B8 => self.read_memory(at, &mut bytes, access)?,
        }
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes an integer to linear memory.
    #[inline]
    pub(super) fn store(&mut self, at: Gva, value: u64, width: Width) -> Result<(), Stop> {
        self.check_alignment(at, width.bytes())?;
        let access = self.access(AccessKind::Write);
        self.store_as(at, value, width, access)
    }

    /// Writes an integer to linear memory with given rights.
    #[inline]
    pub(super) fn store_as(&mut self, at: Gva, value: u64, width: Width, access: Access) -> Result<(), Stop> {
        let bytes = value.to_le_bytes();
        match width {
            Width::B1 => self.write_memory(at, &bytes[..1], access),
            Width::B2 => self.write_memory(at, &bytes[..2], access),
            Width::B4 => self.write_memory(at, &bytes[..4], access),
            Width::B8 => self.write_memory(at, &bytes, access),
        }
    }
}

/// #SS(0) for the stack segment, #GP(0) for the others.
pub(super) fn segment_fault(segment: Register) -> Exception {
    if segment == Register::SS {
        Exception::with_code(exception::SS, 0)
    } else {
        Exception::gp(0)
    }
}

/// Whether a segment of protected mode may be used so.
fn permits(segment: &Segment, access: AccessKind) -> bool {
    if segment.unusable || !segment.present {
        return false;
    }
    let code = segment.kind & kind::CODE != 0;
    let bit = segment.kind & kind::WRITE_OR_READ != 0;
    match access {
        AccessKind::Read => !code || bit,
        AccessKind::Write => !code && bit,
        AccessKind::Fetch => code,
    }
}

/// Whether bytes `offset .. offset + length` lie within the limit.
fn within_limit(segment: &Segment, offset: u64, length: u64) -> bool {
    let last = offset + (length - 1);
    let limit = u64::from(segment.limit);
    if segment.kind & (kind::CODE | kind::DOWN_OR_CONFORMING) == kind::DOWN_OR_CONFORMING {
        let top = if segment.db { 0xffff_ffff } else { 0xffff };
        offset > limit && last <= top
    } else {
        last <= limit
    }
}
