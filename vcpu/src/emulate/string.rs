//! String instructions: `movs stos lods cmps scas ins outs` with `rep`, `repe`, `repne`.
//!
//! Each element is an instruction of its own as far as faults go: registers always say how far it came. A step does at
//! most [`BURST`] elements, so that interrupts and kicks are seen.

use super::environment::{AccessKind, Memory, Platform, Stop};
use super::flags::{self, DF, TF, ZF};
use super::state::{RAX, RCX, RDI, RDX, RSI};
use super::width::Width;
use super::{Cpu, Flow};
use iced_x86::{Instruction, OpKind, Register};
use umbra_devices::IoSize;
use umbra_memslots::Gva;

/// Elements per step: as many bytes as a page has.
pub(crate) const BURST: usize = 4096;

/// The parts of a string instruction that do not change from element to element.
struct Shape {
    element: Width,
    address: Width,
    /// Segment of the source.
    segment: Register,
}

impl<E: Memory + Platform> Cpu<E> {
    fn shape(insn: &Instruction, memory: u32) -> Shape {
        let address = match insn.op_kind(memory) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Width::B2,
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Width::B4,
            _ => Width::B8,
        };
        let segment = match insn.segment_prefix() {
            Register::None => Register::DS,
            segment => segment,
        };
        Shape {
            element: Width::of(insn.memory_size().size()),
            address,
            segment,
        }
    }

    fn source(&self, shape: &Shape) -> Result<Gva, Stop> {
        let offset = self.state.low(RSI, shape.address);
        self.linear(shape.segment, offset, shape.element.size(), AccessKind::Read)
    }

    fn destination(&self, shape: &Shape, kind: AccessKind) -> Result<Gva, Stop> {
        let offset = self.state.low(RDI, shape.address);
        self.linear(Register::ES, offset, shape.element.size(), kind)
    }

    fn advance(&mut self, index: usize, shape: &Shape) {
        let step = shape.element.bytes();
        let old = self.state.gpr[index];
        let new = if self.state.flag(DF) {
            old.wrapping_sub(step)
        } else {
            old.wrapping_add(step)
        };
        self.state.set_low(index, new, shape.address);
    }

    /// Runs `element` once, or as often as the prefix and RCX say. `element` tells whether to go on.
    fn repeat(
        &mut self,
        insn: &Instruction,
        shape: &Shape,
        mut element: impl FnMut(&mut Self, &Shape) -> Result<bool, Stop>,
    ) -> Result<Flow, Stop> {
        if !insn.has_rep_prefix() && !insn.has_repne_prefix() {
            element(self, shape)?;
            return Ok(Flow::Next);
        }
        // There are traps after each iteration.
        let burst = if self.state.flag(TF) { 1 } else { BURST };
        for done in 0..burst {
            let count = self.state.low(RCX, shape.address);
            if count == 0 {
                return Ok(Flow::Next);
            }
            let held = self.state.pending_debug;
            let result = element(self, shape);
            if result.is_err() {
                // It did not happen: what it met so far is met again when it does.
                self.state.pending_debug = held;
            }
            match result {
                Ok(go_on) => {
                    self.state.set_low(RCX, count - 1, shape.address);
                    if !go_on || count == 1 {
                        return Ok(Flow::Next);
                    }
                    if self.state.pending_debug != 0 {
                        return Ok(Flow::Repeat);
                    }
                }
                // What was done stays done; the element that stopped is looked at afresh by the next step.
                Err(Stop::Pending(_)) if done > 0 => return Ok(Flow::Repeat),
                Err(stop) => return Err(stop),
            }
        }
        Ok(Flow::Repeat)
    }

    pub(super) fn movs(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let shape = Self::shape(insn, 1);
        self.repeat(insn, &shape, |cpu, shape| {
            let from = cpu.source(shape)?;
            let value = cpu.load(from, shape.element, AccessKind::Read)?;
            let to = cpu.destination(shape, AccessKind::Write)?;
            cpu.store(to, value, shape.element)?;
            cpu.advance(RSI, shape);
            cpu.advance(RDI, shape);
            Ok(true)
        })
    }

    pub(super) fn stos(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let shape = Self::shape(insn, 0);
        self.repeat(insn, &shape, |cpu, shape| {
            let to = cpu.destination(shape, AccessKind::Write)?;
            let value = cpu.state.low(RAX, shape.element);
            cpu.store(to, value, shape.element)?;
            cpu.advance(RDI, shape);
            Ok(true)
        })
    }

    pub(super) fn lods(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let shape = Self::shape(insn, 1);
        self.repeat(insn, &shape, |cpu, shape| {
            let from = cpu.source(shape)?;
            let value = cpu.load(from, shape.element, AccessKind::Read)?;
            cpu.state.set_low(RAX, value, shape.element);
            cpu.advance(RSI, shape);
            Ok(true)
        })
    }

    pub(super) fn cmps(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let shape = Self::shape(insn, 0);
        let wanted = insn.has_rep_prefix();
        self.repeat(insn, &shape, |cpu, shape| {
            let right = cpu.destination(shape, AccessKind::Read)?;
            let b = cpu.load(right, shape.element, AccessKind::Read)?;
            let left = cpu.source(shape)?;
            let a = cpu.load(left, shape.element, AccessKind::Read)?;
            cpu.set_status(flags::sub(a, b, 0, shape.element).1);
            cpu.advance(RSI, shape);
            cpu.advance(RDI, shape);
            Ok(cpu.state.flag(ZF) == wanted)
        })
    }

    pub(super) fn scas(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let shape = Self::shape(insn, 1);
        let wanted = insn.has_rep_prefix();
        self.repeat(insn, &shape, |cpu, shape| {
            let at = cpu.destination(shape, AccessKind::Read)?;
            let b = cpu.load(at, shape.element, AccessKind::Read)?;
            let a = cpu.state.low(RAX, shape.element);
            cpu.set_status(flags::sub(a, b, 0, shape.element).1);
            cpu.advance(RDI, shape);
            Ok(cpu.state.flag(ZF) == wanted)
        })
    }

    pub(super) fn ins(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let shape = Self::shape(insn, 0);
        let port = self.state.low(RDX, Width::B2) as u16;
        let size = port_size(shape.element);
        self.check_port(port, size)?;
        self.repeat(insn, &shape, |cpu, shape| {
            // The port is read only if the memory can take the value.
            let to = cpu.destination(shape, AccessKind::Write)?;
            let access = cpu.access(AccessKind::Write);
            cpu.check_alignment(to, shape.element.bytes())?;
            cpu.env.probe(to, shape.element.size(), access)?;
            let value = cpu.read_port(port, size)?;
            cpu.store(to, u64::from(value), shape.element)?;
            cpu.advance(RDI, shape);
            Ok(true)
        })
    }

    pub(super) fn outs(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let shape = Self::shape(insn, 1);
        let port = self.state.low(RDX, Width::B2) as u16;
        let size = port_size(shape.element);
        self.check_port(port, size)?;
        self.repeat(insn, &shape, |cpu, shape| {
            let from = cpu.source(shape)?;
            let value = cpu.load(from, shape.element, AccessKind::Read)?;
            cpu.write_port(port, size, value as u32)?;
            cpu.advance(RSI, shape);
            Ok(true)
        })
    }
}

/// Ports are 1, 2 or 4 bytes wide.
pub(super) const fn port_size(width: Width) -> IoSize {
    match width {
        Width::B1 => IoSize::B1,
        Width::B2 => IoSize::B2,
        _ => IoSize::B4,
    }
}
