//! Segment and system descriptors: how they look in memory and how they are fetched (SDM vol. 3A sections 3.4.5, 3.5,
//! 5.8.3, 7.2.3).

use super::Cpu;
use super::address::kind;
use super::environment::{AccessKind, Memory, Platform, Stop};
use super::exception::{self, Exception};
use super::width::Width;
use crate::regs::Segment;
use umbra_memslots::Gva;

/// Types of system descriptors that instructions meet.
pub(super) mod system {
    pub(crate) const TSS_16: u8 = 1;
    pub(crate) const LDT: u8 = 2;
    pub(crate) const BUSY: u8 = 2;
    pub(crate) const CALL_GATE_16: u8 = 4;
    pub(crate) const TASK_GATE: u8 = 5;
    pub(crate) const INTERRUPT_GATE_16: u8 = 6;
    pub(crate) const TRAP_GATE_16: u8 = 7;
    pub(crate) const TSS: u8 = 9;
    pub(crate) const CALL_GATE: u8 = 12;
    pub(crate) const INTERRUPT_GATE: u8 = 14;
    pub(crate) const TRAP_GATE: u8 = 15;
}

/// The first eight bytes of a descriptor, and where they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) raw: u64,
    pub(super) at: Gva,
}

impl Descriptor {
    pub(super) const fn kind(self) -> u8 {
        (self.raw >> 40) as u8 & 15
    }

    /// Code or data.
    pub(super) const fn non_system(self) -> bool {
        self.raw & 1 << 44 != 0
    }

    pub(super) const fn dpl(self) -> u8 {
        (self.raw >> 45) as u8 & 3
    }

    pub(super) const fn present(self) -> bool {
        self.raw & 1 << 47 != 0
    }

    pub(super) const fn is_code(self) -> bool {
        self.non_system() && self.kind() & kind::CODE != 0
    }

    pub(super) const fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & kind::DOWN_OR_CONFORMING != 0
    }

    pub(super) const fn is_writable_data(self) -> bool {
        self.non_system() && self.kind() & (kind::CODE | kind::WRITE_OR_READ) == kind::WRITE_OR_READ
    }

    /// Data, or code that may be read.
    pub(super) const fn is_readable(self) -> bool {
        self.non_system() && (self.kind() & kind::CODE == 0 || self.kind() & kind::WRITE_OR_READ != 0)
    }

    /// L: 64-bit code.
    pub(super) const fn long(self) -> bool {
        self.raw & 1 << 53 != 0
    }

    /// D/B.
    pub(super) const fn db(self) -> bool {
        self.raw & 1 << 54 != 0
    }

    /// The hidden part of a segment register loaded with this and `selector`.
    #[inline(always)]
    pub(super) const fn segment(self, selector: u16) -> Segment {
        let raw = self.raw;
        let granularity = raw & 1 << 55 != 0;
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        Segment {
            selector,
            base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
            limit: if granularity { limit << 12 | 0xfff } else { limit },
            kind: self.kind(),
            dpl: self.dpl(),
            non_system: self.non_system(),
            present: self.present(),
            available: raw & 1 << 52 != 0,
            long: self.long(),
            db: self.db(),
            granularity,
            unusable: false,
        }
    }

    /// Target selector of a gate.
    pub(super) const fn gate_selector(self) -> u16 {
        (self.raw >> 16) as u16
    }

    /// Low 32 bits of a gate's target offset.
    pub(super) const fn gate_offset(self) -> u64 {
        self.raw & 0xffff | self.raw >> 32 & 0xffff_0000
    }
}

/// The error code that names a selector: its RPL does not belong to it.
pub(super) const fn selector_code(selector: u16) -> u32 {
    (selector & !3) as u32
}

/// Whether a selector is null.
pub(super) const fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// #GP(selector).
pub(super) const fn gp(selector: u16) -> Stop {
    Stop::Fault(Exception::gp(selector_code(selector)))
}

/// #NP(selector).
pub(super) const fn not_present(selector: u16) -> Stop {
    Stop::Fault(Exception::with_code(exception::NP, selector_code(selector)))
}

impl<E: Memory + Platform> Cpu<E> {
    /// Fetches the descriptor that `selector` names, or raises `vector` with the selector.
    #[inline(always)]
    pub(super) fn descriptor(&mut self, selector: u16, vector: u8) -> Result<Descriptor, Stop> {
        let outside = Stop::Fault(Exception::with_code(vector, selector_code(selector)));
        let (base, limit) = if selector & 4 == 0 {
            (self.state.sys.gdt.base, u64::from(self.state.sys.gdt.limit))
        } else {
            let table = self.state.sys.ldt;
            if table.unusable || !table.present || is_null(table.selector) {
                return Err(outside);
            }
            (table.base, u64::from(table.limit))
        };
        let offset = u64::from(selector & !7);
        if offset + 7 > limit {
            return Err(outside);
        }
        let at = Gva::new(self.wrap_linear(base.wrapping_add(offset)));
        let raw = self.load_as(at, Width::B8, Self::implicit(AccessKind::Read))?;
        Ok(Descriptor { raw, at })
    }

    /// The upper half of a 16-byte descriptor of long mode.
    #[inline]
    pub(super) fn descriptor_high(&mut self, descriptor: Descriptor) -> Result<u64, Stop> {
        let at = descriptor.at.wrapping_add(8);
        self.load_as(at, Width::B8, Self::implicit(AccessKind::Read))
    }

    /// Marks a code or data descriptor as used.
    #[inline]
    pub(super) fn mark_accessed(&mut self, descriptor: &mut Descriptor) -> Result<(), Stop> {
        if descriptor.kind() & kind::ACCESSED == 0 {
            descriptor.raw |= u64::from(kind::ACCESSED) << 40;
            self.write_type(*descriptor)?;
        }
        Ok(())
    }

    /// Writes the type byte of a descriptor back.
    pub(super) fn write_type(&mut self, descriptor: Descriptor) -> Result<(), Stop> {
        let access = Self::implicit(AccessKind::Write);
        self.store_as(descriptor.at.wrapping_add(5), descriptor.raw >> 40, Width::B1, access)
    }

    /// Linear addresses have 32 bits outside long mode.
    pub(super) const fn wrap_linear(&self, address: u64) -> u64 {
        if self.state.long_mode() {
            address
        } else {
            address & 0xffff_ffff
        }
    }
}
