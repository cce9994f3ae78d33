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
            let resume = match event.source {
                Source::Exception if event.exception.is_fault() => RF,
                Source::Software => 0,
                _ => self.state.rflags & RF,
            };
            let (second, switched) = match self.enter_handler(event, back, resume) {
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
        self.enter_handler(event, back, 0)
    }

    /// `int n` in 64-bit mode, which returns to `back`.
    #[inline]
    pub(crate) fn call_handler(&mut self, vector: u8, back: u64) -> Result<(), Stop> {
        let flags = self.state.rflags & !RF;
        self.state.rip = self.enter_long(Exception::new(vector), true, back, flags)?;
        Ok(())
    }

    /// `int1`: a debug exception that checks no privilege.
    pub(super) fn int1(&mut self, insn: &Instruction) -> Result<Flow, Stop> {
        let event = Event {
            exception: Exception::new(exception::DB),
            source: Source::External,
        };
        let back = self.next_rip(insn);
        self.enter_handler(event, back, 0)
    }

    /// Goes to a handler, which finds `resume`, RF or nothing, in the flags that are saved for it. If it stops, the CPU's
    /// state is as before.
    fn enter_handler(&mut self, event: Event, back: u64, resume: u64) -> Result<Flow, Stop> {
        let flags = self.state.rflags & !RF | resume;
        let flow = if self.state.protected() && self.state.long_mode() {
            let software = event.source == Source::Software;
            self.enter_long(event.exception, software, back, flags).map(Flow::Jump)
        } else {
            self.whole(|cpu| {
                cpu.state.rflags = flags;
                if cpu.state.protected() {
                    cpu.enter_protected(event, back)
                } else {
                    cpu.enter_real(event.exception.vector, back)
                }
            })
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
    #[inline(always)]
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

    /// The code segment behind a gate, and the level at which it is executed.
    #[inline(always)]
    fn handler_code(&mut self, selector: u16) -> Result<(Descriptor, u8), Stop> {
        if is_null(selector) {
            return Err(Exception::gp(0).into());
        }
        let code = self.descriptor(selector, exception::GP)?;
        let cpl = self.state.cpl();
        if !code.is_code() || code.dpl() > cpl || (self.state.long_mode() && (!code.long() || code.db())) {
            return Err(gp(selector));
        }
        if !code.present() {
            return Err(not_present(selector));
        }
        let level = if code.is_conforming() { cpl } else { code.dpl() };
        if self.state.virtual_8086() && level != 0 {
            return Err(gp(selector));
        }
        Ok((code, level))
    }

    /// Goes to a handler in long mode: it is 64-bit code, its stack pointer may come from the IST or the TSS, and the old
    /// one is always pushed. Gives the offset to go on at. All is found out before anything in the CPU changes.
    #[inline(always)]
    fn enter_long(&mut self, exception: Exception, software: bool, back: u64, flags: u64) -> Result<u64, Stop> {
        let (gate, target) = self.gate(exception.vector, software)?;
        let selector = gate.gate_selector();
        let (mut code, level) = self.handler_code(selector)?;
        let changes_level = level != self.state.cpl();
        let ist = gate.raw >> 32 & 7;
        let pointer = if ist != 0 {
            self.long_stack(0x24 + 8 * (ist - 1))?
        } else if changes_level {
            self.long_stack(4 + 8 * u64::from(level))?
        } else {
            self.state.gpr[RSP]
        };
        self.check_offset(&mut code, target)?;
        let top = pointer & !15;
        let (cs, ss) = (self.state.sys.cs.selector.into(), self.state.sys.ss.selector.into());
        let rsp = self.state.gpr[RSP];
        let pointer = match exception.error_code {
            Some(error) => self.push_words(top, [error.into(), back, cs, flags, rsp, ss], level)?,
            None => self.push_words(top, [back, cs, flags, rsp, ss], level)?,
        };
        self.state.gpr[RSP] = pointer;
        self.load_code(code, selector, level);
        if changes_level {
            self.state.sys.ss = null_segment(u16::from(level), level);
        }
        let interrupt_gate = gate.kind() == system::INTERRUPT_GATE;
        self.state.rflags = flags & !(TF | NT | RF | VM | if interrupt_gate { IF } else { 0 });
        Ok(target)
    }

    /// Writes a handler's frame, given from its lowest word on, below `top`, for the `level` at which the handler is. Gives
    /// the new stack pointer.
    #[inline(always)]
    fn push_words<const N: usize>(&mut self, top: u64, words: [u64; N], level: u8) -> Result<u64, Stop> {
        let bottom = top.wrapping_sub(8 * N as u64);
        if !self.state.canonical(bottom) || !self.state.canonical(top.wrapping_sub(1)) {
            return Err(Exception::with_code(exception::SS, 0).into());
        }
        let access = super::environment::Access {
            user: level == 3,
            ..Self::implicit(AccessKind::Write)
        };
        self.write_pushed_words(Gva::new(bottom), words, access)?;
        Ok(bottom)
    }

    fn enter_protected(&mut self, event: Event, back: u64) -> Result<Flow, Stop> {
        let software = event.source == Source::Software;
        let (gate, target) = self.gate(event.exception.vector, software)?;
        let selector = gate.gate_selector();
        if gate.kind() == system::TASK_GATE {
            let code = event.exception.error_code;
            return self.switch_task(selector, Cause::Event { code }, back);
        }
        let (code, level) = self.handler_code(selector)?;
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
            changes_level: level != self.state.cpl(),
            old,
            error_code: event.exception.error_code.map(u64::from),
        };
        let flow = self.switch_legacy_stack(&entry)?;
        let interrupt_gate = matches!(gate.kind(), system::INTERRUPT_GATE | system::INTERRUPT_GATE_16);
        let cleared = TF | NT | RF | VM | if interrupt_gate { IF } else { 0 };
        self.state.set_flags(cleared, 0);
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
