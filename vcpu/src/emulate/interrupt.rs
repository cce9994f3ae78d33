//! Delivery of interrupts and exceptions through the IDT in every mode, and double and triple faults (SDM vol. 3A
//! chapter 6, sections 20.1.4, 20.3).

use super::descriptor::{Descriptor, gp, is_null, not_present, system};
use super::environment::{AccessKind, Memory, Platform, Stop, Translation};
use super::exception::{self, Exception};
use super::far::NewStack;
use super::flags::{AC, IF, NT, RF, TF, VM};
use super::segment::null_segment;
use super::state::{RSP, cr4, dr7};
use super::task::Cause;
use super::width::Width;
use super::{Cpu, Flow};
use crate::regs::Segment;
use iced_x86::{Instruction, Mnemonic, Register};
use umbra_memslots::Gva;

/// Where an event comes from: it decides what is checked and which error codes say "external".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// A fault or trap of the CPU.
    Exception,
    /// An interrupt from outside, or NMI.
    External,
    /// `int n`, `int3`, `into`: the gate's privilege level is checked.
    Software,
}

/// Something to deliver through the IDT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Vector, error code and CR2.
    pub exception: Exception,
    /// Where it comes from.
    pub source: Source,
}

impl<E: Memory + Platform> Cpu<E> {
    /// Delivers an exception or interrupt; RIP is the one to return to. Exceptions that arise on the way become double
    /// faults as the architecture says (SDM vol. 3A table 6-5). Afterwards another exception may be [`Cpu::due`].
    ///
    /// # Errors
    /// [`Stop::TripleFault`]; [`Stop::Pending`] or [`Stop::Unsupported`], with nothing changed but CR2.
    pub fn deliver(&mut self, event: Event) -> Result<(), Stop> {
        let mut event = event;
        loop {
            let back = self.state.rip;
            self.note(&event.exception);
            let held = self.state.pending_debug;
            let (second, switched) = match self.whole(|cpu| cpu.enter_handler(event, back)) {
                // Another task's handler could not be entered: that task's exception is delivered next.
                Ok(_) => match self.state.late_fault.take() {
                    Some(second) => (second, true),
                    None => return Ok(()),
                },
                Err(stop) => {
                    self.state.pending_debug = held;
                    let Stop::Fault(second) = stop else { return Err(stop) };
                    (second, false)
                }
            };
            let first = event.exception.vector;
            let genuine = event.source == Source::Exception;
            if genuine && first == exception::DF {
                return Err(Stop::TripleFault);
            }
            self.note(&second);
            let exception = if genuine && doubles(first, second.vector) {
                Exception::with_code(exception::DF, 0)
            } else {
                second
            };
            if switched {
                self.state.late_fault = Some(exception);
                return Ok(());
            }
            event = Event {
                exception,
                source: Source::Exception,
            };
        }
    }

    /// What an exception leaves in CR2, DR6 and DR7.
    fn note(&mut self, exception: &Exception) {
        if let Some(address) = exception.cr2 {
            self.state.sys.cr2 = address.get();
        }
        // The causes are new each time, except those that only the program clears.
        if exception.debug != 0 {
            let debug = &mut self.state.debug;
            debug[6] = debug[6] & !exception::debug_cause::BREAKPOINTS | exception.debug;
            debug[7] &= !dr7::GENERAL_DETECT;
        }
    }

    /// `int n`, `int3`, `into`.
    pub(super) fn software_interrupt(&mut self, insn: &Instruction, vector: u8) -> Result<Flow, Stop> {
        if self.state.virtual_8086() && insn.mnemonic() == Mnemonic::Int {
            // With CR4.VME, a map in the TSS decides at every IOPL.
            if self.state.iopl() < 3 || self.state.sys.cr4 & cr4::VME != 0 {
                return Err(self.denied_by_iopl(Width::B2));
            }
        }
        let event = Event {
            exception: Exception::new(vector),
            source: Source::Software,
        };
        let back = self.next_rip(insn);
        self.whole(|cpu| cpu.enter_handler(event, back))
    }

    /// `int1`: a debug exception that checks no privilege.
    pub(super) fn int1(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let event = Event {
            exception: Exception::new(exception::DB),
            source: Source::External,
        };
        let back = self.next_rip(insn);
        self.whole(|cpu| {
            cpu.state.set_flags(RF, 0);
            cpu.enter_handler(event, back)
        })
    }

    fn enter_handler(&mut self, event: Event, back: u64) -> Result<Flow, Stop> {
        match event.source {
            Source::Exception if event.exception.is_fault() => self.state.set_flags(RF, RF),
            Source::Software => self.state.set_flags(RF, 0),
            _ => {}
        }
        let flow = if self.state.protected() {
            self.enter_protected(event, back)
        } else {
            self.enter_real(event.exception.vector, back)
        };
        match flow {
            Ok(Flow::Jump(target)) => {
                self.state.rip = target;
                self.state.interrupt_shadow = false;
                self.env.translation(Translation::PrivilegeChanged, &self.state);
                Ok(Flow::Done)
            }
            Ok(flow) => {
                self.state.interrupt_shadow = false;
                self.state.late_fault = self.state.late_fault.map(|fault| external(event, fault));
                Ok(flow)
            }
            Err(Stop::Fault(fault)) => Err(Stop::Fault(external(event, fault))),
            other => other,
        }
    }

    fn enter_real(&mut self, vector: u8, back: u64) -> Result<Flow, Stop> {
        let entry = u64::from(vector) * 4;
        if entry + 3 > u64::from(self.state.sys.idt.limit) {
            return Err(Exception::gp(0).into());
        }
        let at = Gva::new(self.state.sys.idt.base.wrapping_add(entry));
        let target = self.load_as(at, Width::B4, Self::implicit(AccessKind::Read))?;
        let frame = [self.state.rflags, u64::from(self.state.sys.cs.selector), back];
        let access = self.access(AccessKind::Write);
        self.push_frame(&frame, Width::B2, access)?;
        self.state.set_flags(IF | TF | AC | RF, 0);
        self.set_real_cs((target >> 16) as u16);
        Ok(Flow::Jump(target & 0xffff))
    }

    /// The gate for `vector`, checked.
    fn gate(&mut self, vector: u8, software: bool) -> Result<(Descriptor, u64), Stop> {
        let long = self.state.long_mode();
        let size = if long { 16 } else { 8 };
        let code = u32::from(vector) * 8 + 2;
        let offset = u64::from(vector) * size;
        if offset + size - 1 > u64::from(self.state.sys.idt.limit) {
            return Err(Exception::gp(code).into());
        }
        let at = Gva::new(self.wrap_linear(self.state.sys.idt.base.wrapping_add(offset)));
        let raw = self.load_as(at, Width::B8, Self::implicit(AccessKind::Read))?;
        let gate = Descriptor { raw, at };
        let wanted = match gate.kind() {
            system::INTERRUPT_GATE | system::TRAP_GATE => true,
            system::INTERRUPT_GATE_16 | system::TRAP_GATE_16 | system::TASK_GATE => !long,
            _ => false,
        };
        if gate.non_system() || !wanted || (software && gate.dpl() < self.state.cpl()) {
            return Err(Exception::gp(code).into());
        }
        if !gate.present() {
            return Err(Exception::with_code(exception::NP, code).into());
        }
        let high = if long { self.descriptor_high(gate)? } else { 0 };
        let target = match gate.kind() {
            system::INTERRUPT_GATE_16 | system::TRAP_GATE_16 => gate.gate_offset() & 0xffff,
            _ => gate.gate_offset() | high << 32,
        };
        Ok((gate, target))
    }

    fn enter_protected(&mut self, event: Event, back: u64) -> Result<Flow, Stop> {
        let software = event.source == Source::Software;
        let (gate, target) = self.gate(event.exception.vector, software)?;
        let selector = gate.gate_selector();
        if gate.kind() == system::TASK_GATE {
            let code = event.exception.error_code;
            return self.switch_task(selector, Cause::Event { code }, back);
        }
        if is_null(selector) {
            return Err(Exception::gp(0).into());
        }
        let code = self.descriptor(selector, exception::GP)?;
        let cpl = self.state.cpl();
        let long = self.state.long_mode();
        if !code.is_code() || code.dpl() > cpl || (long && (!code.long() || code.db())) {
            return Err(gp(selector));
        }
        if !code.present() {
            return Err(not_present(selector));
        }
        let level = if code.is_conforming() { cpl } else { code.dpl() };
        let from_virtual = self.state.virtual_8086();
        if from_virtual && level != 0 {
            return Err(gp(selector));
        }
        let old = Interrupted {
            ss: self.state.sys.ss,
            rsp: self.state.gpr[RSP],
            frame: [self.state.rflags, u64::from(self.state.sys.cs.selector), back],
        };
        let entry = Entry {
            gate,
            code,
            target,
            level,
            changes_level: level != cpl,
            old,
            error_code: event.exception.error_code.map(u64::from),
        };
        let flow = if long {
            self.switch_long_stack(&entry)?
        } else {
            self.switch_legacy_stack(&entry)?
        };
        let interrupt_gate = matches!(gate.kind(), system::INTERRUPT_GATE | system::INTERRUPT_GATE_16);
        let cleared = TF | NT | RF | VM | if interrupt_gate { IF } else { 0 };
        self.state.set_flags(cleared, 0);
        Ok(flow)
    }

    /// Long mode: the stack pointer may come from the IST or the TSS, and is always pushed.
    fn switch_long_stack(&mut self, entry: &Entry) -> Result<Flow, Stop> {
        let Entry {
            gate,
            code,
            target,
            level,
            changes_level,
            old,
            error_code,
        } = *entry;
        let ist = gate.raw >> 32 & 7;
        let pointer = if ist != 0 {
            self.long_stack(0x24 + 8 * (ist - 1))?
        } else if changes_level {
            self.long_stack(4 + 8 * u64::from(level))?
        } else {
            old.rsp
        };
        let flow = self.enter_code(code, gate.gate_selector(), level, target)?;
        if changes_level {
            self.state.sys.ss = null_segment(u16::from(level), level);
        }
        self.state.gpr[RSP] = pointer & !15;
        let [flags, selector, back] = old.frame;
        let words = [
            u64::from(old.ss.selector),
            old.rsp,
            flags,
            selector,
            back,
            error_code.unwrap_or(0),
        ];
        let count = words.len() - usize::from(error_code.is_none());
        let access = super::environment::Access {
            user: level == 3,
            ..Self::implicit(AccessKind::Write)
        };
        self.push_frame(&words[..count], Width::B8, access)?;
        Ok(flow)
    }

    fn switch_legacy_stack(&mut self, entry: &Entry) -> Result<Flow, Stop> {
        let Entry {
            gate,
            code,
            target,
            level,
            changes_level,
            old,
            error_code,
        } = *entry;
        let width = if gate.kind() & 8 != 0 { Width::B4 } else { Width::B2 };
        let from_virtual = self.state.virtual_8086();
        let mut words = Vec::with_capacity(10);
        let mut stack: Option<NewStack> = None;
        if changes_level {
            stack = Some(self.stack_from_tss(level)?);
            if from_virtual {
                let sys = &self.state.sys;
                words.extend([sys.gs, sys.fs, sys.ds, sys.es].map(|segment| u64::from(segment.selector)));
            }
            words.extend([u64::from(old.ss.selector), old.rsp]);
        }
        words.extend(old.frame);
        words.extend(error_code);
        if from_virtual {
            self.state.set_flags(VM, 0);
            for register in [Register::DS, Register::ES, Register::FS, Register::GS] {
                *self.state.segment_mut(register) = null_segment(0, 0);
            }
        }
        let flow = self.enter_code(code, gate.gate_selector(), level, target)?;
        if let Some(stack) = stack {
            self.state.sys.ss = stack.segment;
            self.set_stack_pointer(stack.pointer);
        }
        let access = super::environment::Access {
            user: level == 3,
            ..Self::implicit(AccessKind::Write)
        };
        self.push_frame(&words, width, access)?;
        Ok(flow)
    }
}

/// A delivery whose checks have passed, up to the switch of stacks.
struct Entry {
    gate: Descriptor,
    code: Descriptor,
    target: u64,
    level: u8,
    changes_level: bool,
    old: Interrupted,
    error_code: Option<u64>,
}

/// What a handler's frame holds.
#[derive(Clone, Copy)]
struct Interrupted {
    ss: Segment,
    rsp: u64,
    /// RFLAGS, CS, RIP.
    frame: [u64; 3],
}

/// Errors while something is delivered that the program did not ask for say so in bit 0 of the error code.
fn external(event: Event, fault: Exception) -> Exception {
    let external = event.source != Source::Software && fault.vector != exception::PF;
    Exception {
        error_code: fault.error_code.map(|code| code | u32::from(external)),
        ..fault
    }
}

/// Whether a second exception while delivering the first makes a double fault.
fn doubles(first: u8, second: u8) -> bool {
    let contributory = |vector| {
        matches!(
            vector,
            exception::DE | exception::TS | exception::NP | exception::SS | exception::GP
        )
    };
    (contributory(first) && contributory(second))
        || (first == exception::PF && (second == exception::PF || contributory(second)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn double_fault_needs_two_serious_exceptions() {
        assert!(doubles(exception::GP, exception::NP));
        assert!(doubles(exception::PF, exception::PF));
        assert!(!doubles(exception::GP, exception::PF));
        assert!(!doubles(exception::UD, exception::GP));
    }
}
