//! The unit's image in memory: `fnstenv fldenv fnsave frstor` (SDM vol. 1 section 8.1.10, figures 8-9 to 8-12).

use super::super::environment::{AccessKind, Memory, Platform, Stop};
use super::super::float::{Kind, Number};
use super::super::fpu::FpuState;
use super::super::{Cpu, Flow};
use super::load_store::{extended, image};
use iced_x86::Instruction;

/// The longest image: 28 bytes of environment and eight registers.
const LONGEST: usize = 108;
const REGISTERS: usize = 80;

/// How an environment lies in memory.
#[derive(Clone, Copy)]
struct Layout {
    /// Fields of 4 bytes rather than 2.
    wide: bool,
    /// Pointers as linear addresses of 20 or 32 bits rather than with selectors.
    real: bool,
}

impl Layout {
    const fn length(self) -> usize {
        if self.wide { 28 } else { 14 }
    }

    /// The seven fields.
    fn write(self, fpu: &FpuState, bytes: &mut [u8]) {
        let (ip, dp) = (fpu.instruction as u32, fpu.data as u32);
        let opcode = u32::from(fpu.opcode & 0x7ff);
        let reserved = if self.wide { 0xffff_0000 } else { 0 };
        let mut fields = [
            reserved | u32::from(fpu.control),
            reserved | u32::from(fpu.status),
            reserved | u32::from(full_tags(fpu)),
            ip,
            0,
            dp,
            reserved,
        ];
        match (self.wide, self.real) {
            (true, false) => fields[4] = opcode << 16,
            (true, true) => {
                fields[3] = reserved | ip & 0xffff;
                fields[4] = (ip >> 16) << 12 | opcode;
                fields[5] = reserved | dp & 0xffff;
                fields[6] = (dp >> 16) << 12;
            }
            (false, true) => {
                fields[4] = (ip >> 16 & 15) << 12 | opcode;
                fields[6] = (dp >> 16 & 15) << 12;
            }
            (false, false) => {}
        }
        let size = self.length() / 7;
        for (place, field) in bytes.chunks_exact_mut(size).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes()[..size]);
        }
    }

    fn read(self, fpu: &mut FpuState, bytes: &[u8]) {
        let size = self.length() / 7;
        let mut fields = [0_u32; 7];
        for (field, place) in fields.iter_mut().zip(bytes.chunks_exact(size)) {
            *field = super::super::fpu::number(place) as u32;
        }
        fpu.control = fields[0] as u16 & 0x1f7f | 0x40;
        fpu.status = fields[1] as u16;
        fpu.tags = short_tags(fields[2] as u16);
        let high = |field: u32| field >> 12 << 16;
        let (ip, dp, opcode) = match (self.wide, self.real) {
            (true, false) => (fields[3], fields[5], fields[4] >> 16),
            (_, true) => (
                fields[3] & 0xffff | high(fields[4]),
                fields[5] & 0xffff | high(fields[6]),
                fields[4],
            ),
            (false, false) => (fields[3], fields[5], 0),
        };
        fpu.instruction = ip.into();
        fpu.data = dp.into();
        fpu.opcode = opcode as u16 & 0x7ff;
    }
}

/// Two bits for each register: 0 a number, 1 zero, 2 anything else, 3 empty.
fn full_tags(fpu: &FpuState) -> u16 {
    (0..8).fold(0, |tags, register| {
        let number = Number::from_f80(fpu.x87[register]);
        let tag = match number.kind {
            _ if fpu.tags >> register & 1 == 0 => 3,
            Kind::Zero => 1,
            Kind::Finite if !number.denormal => 0,
            _ => 2,
        };
        tags | tag << (2 * register)
    })
}

fn short_tags(full: u16) -> u8 {
    (0..8).fold(0, |tags, register| {
        let used = full >> (2 * register) & 3 != 3;
        tags | u8::from(used) << register
    })
}

impl<E: Memory + Platform> Cpu<E> {
    fn layout(&self, insn: &Instruction) -> Layout {
        Layout {
            wide: matches!(insn.memory_size().size(), 28 | 108),
            real: self.state.real_segments(),
        }
    }

    fn write_image(&mut self, insn: &Instruction, bytes: &[u8]) -> Result<(), Stop> {
        let at = self.memory_operand(insn, bytes.len(), AccessKind::Write)?;
        let access = self.access(AccessKind::Write);
        self.write_memory(at, bytes, access)
    }

    fn read_image(&mut self, insn: &Instruction, bytes: &mut [u8]) -> Result<(), Stop> {
        let at = self.memory_operand(insn, bytes.len(), AccessKind::Read)?;
        let access = self.access(AccessKind::Read);
        self.read_memory(at, bytes, access)
    }

    /// `fnstenv`, which masks every exception afterwards.
    pub(in super::super) fn fnstenv(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_x87()?;
        let layout = self.layout(insn);
        let mut bytes = [0; LONGEST];
        layout.write(&self.state.fpu, &mut bytes[..layout.length()]);
        self.write_image(insn, &bytes[..layout.length()])?;
        self.state.fpu.control |= 0x3f;
        self.summarise();
        Ok(Flow::Next)
    }

    pub(in super::super) fn fldenv(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let layout = self.layout(insn);
        let mut bytes = [0; LONGEST];
        self.read_image(insn, &mut bytes[..layout.length()])?;
        layout.read(&mut self.state.fpu, &bytes);
        self.summarise();
        Ok(Flow::Next)
    }

    /// `fnsave`, which initialises the unit afterwards.
    pub(in super::super) fn fnsave(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.check_x87()?;
        let layout = self.layout(insn);
        let length = layout.length();
        let mut bytes = [0; LONGEST];
        let fpu = &self.state.fpu;
        layout.write(fpu, &mut bytes[..length]);
        for (index, place) in bytes[length..length + REGISTERS].chunks_exact_mut(10).enumerate() {
            place.copy_from_slice(&image(fpu.x87[(fpu.top() + index) & 7]));
        }
        self.write_image(insn, &bytes[..length + REGISTERS])?;
        self.state.fpu.init_x87();
        Ok(Flow::Next)
    }

    pub(in super::super) fn frstor(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        self.x87_begin()?;
        let layout = self.layout(insn);
        let length = layout.length();
        let mut bytes = [0; LONGEST];
        self.read_image(insn, &mut bytes[..length + REGISTERS])?;
        let fpu = &mut self.state.fpu;
        layout.read(fpu, &bytes);
        for (index, place) in bytes[length..length + REGISTERS].chunks_exact(10).enumerate() {
            let mut register = [0; 10];
            register.copy_from_slice(place);
            let top = fpu.top();
            fpu.x87[(top + index) & 7] = extended(&register);
        }
        self.summarise();
        Ok(Flow::Next)
    }
}
