//! `in` and `out`, and who may use a port (SDM vol. 1 section 19.5).

use super::environment::{AccessKind, Memory, Platform, Stop};
use super::exception::Exception;
use super::state::{RAX, RDX};
use super::string::port_size;
use super::width::Width;
use super::{Cpu, Flow};
use iced_x86::{Instruction, OpKind};
use umbra_devices::IoSize;
use umbra_memslots::Gva;

/// Where a TSS of 386 format or later says at which offset its I/O permission bitmap starts.
const BITMAP_OFFSET_FIELD: u64 = 0x66;

impl<E: Memory + Platform> Cpu<E> {
    /// #GP(0) unless the program may access `size` bytes of ports from `port` on.
    pub(super) fn check_port(&mut self, port: u16, size: IoSize) -> Result<(), Stop> {
        if !self.state.protected() || (!self.state.virtual_8086() && self.state.cpl() <= self.state.iopl()) {
            return Ok(());
        }
        let denied: Stop = Exception::gp(0).into();
        let task = self.state.sys.tr;
        let limit = u64::from(task.limit);
        // A 286 TSS has no bitmap.
        if !task.present || !matches!(task.kind, 9 | 11) || limit < BITMAP_OFFSET_FIELD + 1 {
            return Err(denied);
        }
        let access = Self::implicit(AccessKind::Read);
        let field = Gva::new(task.base.wrapping_add(BITMAP_OFFSET_FIELD));
        let bitmap = self.load_as(field, Width::B2, access)?;
        let offset = bitmap + u64::from(port >> 3);
        // Two bytes are always read, so that an access may straddle.
        if offset + 1 > limit {
            return Err(denied);
        }
        let bits = self.load_as(Gva::new(task.base.wrapping_add(offset)), Width::B2, access)?;
        let wanted = ((1 << size.bytes()) - 1) << (port & 7);
        if bits & wanted != 0 { Err(denied) } else { Ok(()) }
    }

    fn port_operand(&self, insn: &Instruction, index: u32) -> u16 {
        if insn.op_kind(index) == OpKind::Register {
            self.state.low(RDX, Width::B2) as u16
        } else {
            u16::from(insn.immediate8())
        }
    }

    pub(super) fn port_in(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 0);
        let (port, size) = (self.port_operand(insn, 1), port_size(width));
        self.check_port(port, size)?;
        let value = self.read_port(port, size)?;
        self.state.set_low(RAX, u64::from(value), width);
        Ok(Flow::Next)
    }

    pub(super) fn port_out(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let width = Self::width(insn, 1);
        let (port, size) = (self.port_operand(insn, 0), port_size(width));
        self.check_port(port, size)?;
        let value = self.state.low(RAX, width) as u32;
        self.write_port(port, size, value)?;
        Ok(Flow::Next)
    }
}
