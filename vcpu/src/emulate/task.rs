//! Task switches by hardware (SDM vol. 3A chapter 8): through a TSS or a task gate, by `jmp`, `call`, `iret`, interrupts
//! and exceptions.
//!
//! A switch has a commit point. What is found out before it leaves no trace; an exception after it is the new task's, and
//! comes out as [`super::CpuState::late_fault`]. So that a device's answer can be waited for at any point, the new task's
//! registers are loaded first, which can be taken back, and memory is written last, with the busy bits, on which the checks
//! depend, at the very end: what is written before can be written twice.

use super::descriptor::{Descriptor, gp, is_null, not_present, selector_code, system};
use super::environment::{AccessKind, Memory, Platform, Stop, Translation};
use super::exception::{self, Exception, debug_cause};
use super::flags::{NT, VM};
use super::segment::{null_segment, real_segment};
use super::state::{CpuState, cr0, dr7};
use super::task_image::{Layout, MAX, TaskImage};
use super::width::Width;
use super::{Cpu, Flow};
use crate::regs::{Segment, SystemRegs};
use iced_x86::Register;
use umbra_memslots::Gva;

/// What a task switch comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// `jmp`.
    Jump,
    /// `call`.
    Call,
    /// `iret` with NT.
    Return,
    /// An interrupt or exception.
    Event {
        /// The error code that the handler is given.
        code: Option<u32>,
    },
}

impl Cause {
    /// The new task is nested in the old one, which stays busy.
    const fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Event { .. })
    }
}

/// #TS(selector).
const fn invalid(selector: u16) -> Stop {
    Stop::Fault(Exception::with_code(exception::TS, selector_code(selector)))
}

/// A task as its descriptor names it.
#[derive(Clone, Copy)]
struct Task {
    /// `None` for a task whose descriptor is left as it is.
    descriptor: Option<Descriptor>,
    segment: Segment,
    layout: Layout,
}

impl<E: Memory + Platform> Cpu<E> {
    /// The TSS that a far `jmp` or `call` to this descriptor leads to, if it is one or a task gate and may be used.
    pub(super) fn task_target(&mut self, descriptor: Descriptor, selector: u16) -> Result<Option<u16>, Stop> {
        let gate = descriptor.kind() == system::TASK_GATE;
        let task = gate || Layout::of(descriptor.kind()).is_some();
        if descriptor.non_system() || self.state.long_mode() || !task {
            return Ok(None);
        }
        if descriptor.dpl() < self.state.cpl().max((selector & 3) as u8) {
            return Err(gp(selector));
        }
        if !gate {
            return Ok(Some(selector));
        }
        if !descriptor.present() {
            return Err(not_present(selector));
        }
        Ok(Some(descriptor.gate_selector()))
    }

    /// `iret` with NT: back to the task that the present one names. `back` is where the present one goes on.
    pub(super) fn return_to_task(&mut self, back: u64) -> Result<Flow, Stop> {
        if self.state.long_mode() {
            return Err(Exception::gp(0).into());
        }
        let task = self.state.sys.tr;
        if task.limit < 1 {
            return Err(invalid(task.selector));
        }
        let link = self.load_as(Gva::new(task.base), Width::B2, Self::implicit(AccessKind::Read))?;
        self.switch_task(link as u16, Cause::Return, back)
    }

    /// Switches to the task with this TSS; the present one goes on at `back` some day.
    pub(super) fn switch_task(&mut self, selector: u16, cause: Cause, back: u64) -> Result<Flow, Stop> {
        let new = self.new_task(selector, cause)?;
        let old = self.old_task(cause)?;
        let rflags = match cause {
            Cause::Return => self.state.rflags & !NT,
            _ => self.state.rflags,
        };
        let saved = old.layout.save(&self.state, back, rflags);
        let image = self.read_task(&new, &old, &saved)?;
        let writes = self.writes(&new, &old, cause, saved)?;
        let paging = self.task_paging(&image)?;

        let before = self.state.clone();
        if let Err(stop) = self.load_task(&new, &image, paging, cause) {
            self.go_back(before);
            return Err(stop);
        }
        // Memory is written as the old task sees it.
        let after = std::mem::replace(&mut self.state, before.clone());
        self.paging_moved(&after);
        for (at, bytes) in writes {
            self.env.write(at, &bytes, Self::implicit(AccessKind::Write))?;
        }
        self.state = after;
        self.paging_moved(&before);
        self.env.translation(Translation::PrivilegeChanged, &self.state);
        Ok(Flow::Done)
    }

    /// The task that `selector` names, as far as it is checked before anything happens (SDM vol. 3A table 8-1).
    fn new_task(&mut self, selector: u16, cause: Cause) -> Result<Task, Stop> {
        let vector = match cause {
            Cause::Return => exception::TS,
            _ => exception::GP,
        };
        let wrong = Stop::Fault(Exception::with_code(vector, selector_code(selector)));
        if is_null(selector) || selector & 4 != 0 {
            return Err(wrong);
        }
        let descriptor = self.descriptor(selector, vector)?;
        let layout = match Layout::of(descriptor.kind()) {
            Some(layout) if !descriptor.non_system() => layout,
            _ => return Err(wrong),
        };
        let busy = descriptor.kind() & system::BUSY != 0;
        if busy != (cause == Cause::Return) {
            return Err(wrong);
        }
        if !descriptor.present() {
            return Err(not_present(selector));
        }
        let segment = descriptor.segment(selector);
        if u64::from(segment.limit) + 1 < layout.length() as u64 {
            return Err(invalid(selector));
        }
        Ok(Task {
            descriptor: (cause != Cause::Return).then_some(descriptor),
            segment,
            layout,
        })
    }

    /// The present task, whose state can be saved. Its descriptor is looked at only to say that it is not busy any more:
    /// a task in which another is nested needs none that the GDT still has.
    fn old_task(&mut self, cause: Cause) -> Result<Task, Stop> {
        let segment = self.state.sys.tr;
        let Some(layout) = Layout::of(segment.kind) else {
            return Err(invalid(segment.selector));
        };
        if u64::from(segment.limit) + 1 < layout.length() as u64 {
            return Err(invalid(segment.selector));
        }
        let descriptor = if cause.nests() {
            None
        } else {
            Some(self.descriptor(segment.selector & !4, exception::TS)?)
        };
        Ok(Task {
            descriptor,
            segment,
            layout,
        })
    }

    fn read_task(&mut self, new: &Task, old: &Task, saved: &[u8]) -> Result<TaskImage, Stop> {
        let mut bytes = [0; MAX];
        let at = Gva::new(new.segment.base);
        let access = Self::implicit(AccessKind::Read);
        self.env.read(at, &mut bytes[..new.layout.length()], access)?;
        // A task that returns to itself finds what it has just saved.
        if new.segment.base == old.segment.base && new.layout == old.layout {
            let from = old.layout.saved();
            bytes[from..from + saved.len()].copy_from_slice(saved);
        }
        Ok(new.layout.parse(&bytes))
    }

    /// What is to be written, in this order, and could be.
    fn writes(&mut self, new: &Task, old: &Task, cause: Cause, saved: Vec<u8>) -> Result<Vec<(Gva, Vec<u8>)>, Stop> {
        let place = |task: &Task, offset: usize| Gva::new(task.segment.base.wrapping_add(offset as u64) & 0xffff_ffff);
        let kind = |descriptor: Descriptor, busy: bool| {
            let kind = (descriptor.raw >> 40) as u8 & !system::BUSY | if busy { system::BUSY } else { 0 };
            (descriptor.at.wrapping_add(5), vec![kind])
        };
        let mut writes = vec![(place(old, old.layout.saved()), saved)];
        if cause.nests() {
            let link = old.segment.selector.to_le_bytes().to_vec();
            writes.push((place(new, 0), link));
        }
        writes.extend(old.descriptor.map(|descriptor| kind(descriptor, false)));
        writes.extend(new.descriptor.map(|descriptor| kind(descriptor, true)));
        for (at, bytes) in &writes {
            self.env.probe(*at, bytes.len(), Self::implicit(AccessKind::Write))?;
        }
        Ok(writes)
    }

    /// CR3 and the PDPTE registers, if the new task has page tables of its own.
    fn task_paging(&mut self, image: &TaskImage) -> Result<Option<(u64, [u64; 4])>, Stop> {
        let old = self.state.sys;
        match image.cr3 {
            Some(cr3) if old.cr0 & cr0::PG != 0 && old.cr3 != cr3 => {
                let pdptes = self.pdptes_for(&SystemRegs { cr3, ..old }, true)?;
                Ok(Some((cr3, pdptes)))
            }
            _ => Ok(None),
        }
    }

    /// The state is `state` again.
    fn go_back(&mut self, state: CpuState) {
        let moved = std::mem::replace(&mut self.state, state);
        self.paging_moved(&moved);
    }

    /// Tells the world if `other` had other page tables than the present state.
    fn paging_moved(&mut self, other: &CpuState) {
        if other.sys.cr3 != self.state.sys.cr3 {
            self.env.translation(Translation::ControlsChanged, &self.state);
        }
    }

    /// The registers become the new task's. A fault is noted in the state; other stops are for the caller to undo.
    fn load_task(
        &mut self,
        new: &Task,
        image: &TaskImage,
        paging: Option<(u64, [u64; 4])>,
        cause: Cause,
    ) -> Result<(), Stop> {
        let state = &mut self.state;
        state.sys.tr = Segment {
            kind: new.segment.kind | system::BUSY,
            ..new.segment
        };
        state.gpr[..8].copy_from_slice(&image.gpr);
        state.rip = image.ip;
        state.rflags = image.flags | if cause.nests() { NT } else { 0 };
        state.sys.cr0 |= cr0::TS;
        state.debug[7] &= !dr7::LOCAL;
        if image.trap {
            state.pending_debug |= debug_cause::TASK_SWITCH;
        }
        if let Some((cr3, pdptes)) = paging {
            state.sys.cr3 = cr3;
            state.pdptes = pdptes;
            self.env.translation(Translation::ControlsChanged, &self.state);
        }
        match self.load_rest(new, image, cause) {
            Err(Stop::Fault(fault)) => {
                self.state.late_fault = Some(fault);
                Ok(())
            }
            other => other,
        }
    }

    /// What can go wrong in the new task: segments, its handler's error code, its first instruction's place.
    fn load_rest(&mut self, new: &Task, image: &TaskImage, cause: Cause) -> Result<(), Stop> {
        self.load_task_segments(image)?;
        if let Cause::Event { code: Some(code) } = cause {
            let width = match new.layout {
                Layout::Bits16 => Width::B2,
                Layout::Bits32 => Width::B4,
            };
            self.push_value(u64::from(code), width)?;
        }
        if image.ip > u64::from(self.state.sys.cs.limit) {
            return Err(Exception::gp(0).into());
        }
        Ok(())
    }

    fn load_task_segments(&mut self, image: &TaskImage) -> Result<(), Stop> {
        const REGISTERS: [Register; 6] = [
            Register::ES,
            Register::CS,
            Register::SS,
            Register::DS,
            Register::FS,
            Register::GS,
        ];
        let virtual_8086 = image.flags & VM != 0;
        let [_, code, stack, ..] = image.segments;
        let cpl = (code & 3) as u8;
        // Those that are not reached because of a fault have their selector and can't be used.
        self.state.sys.ldt = null_segment(image.ldt, 0);
        for (register, selector) in REGISTERS.into_iter().zip(image.segments) {
            *self.state.segment_mut(register) = if virtual_8086 {
                real_segment(&Segment::default(), selector, true)
            } else {
                // The privilege level lives in SS.DPL.
                null_segment(selector, if register == Register::SS { cpl } else { 0 })
            };
        }
        self.load_task_ldt(image.ldt)?;
        if virtual_8086 {
            return Ok(());
        }
        self.state.sys.cs = self.task_code(code)?;
        self.state.sys.ss = self.task_stack(stack, cpl)?;
        for (register, selector) in REGISTERS.into_iter().zip(image.segments) {
            if !matches!(register, Register::CS | Register::SS) && !is_null(selector) {
                *self.state.segment_mut(register) = self.task_data(selector, cpl)?;
            }
        }
        Ok(())
    }

    fn load_task_ldt(&mut self, selector: u16) -> Result<(), Stop> {
        if is_null(selector) {
            return Ok(());
        }
        if selector & 4 != 0 {
            return Err(invalid(selector));
        }
        let descriptor = self.descriptor(selector, exception::TS)?;
        // The task can't go on without it, so here a missing one is #TS, too.
        if descriptor.non_system() || descriptor.kind() != system::LDT || !descriptor.present() {
            return Err(invalid(selector));
        }
        self.state.sys.ldt = descriptor.segment(selector);
        Ok(())
    }

    fn task_code(&mut self, selector: u16) -> Result<Segment, Stop> {
        if is_null(selector) {
            return Err(invalid(selector));
        }
        let mut descriptor = self.descriptor(selector, exception::TS)?;
        let level = (selector & 3) as u8;
        let right = if descriptor.is_conforming() {
            descriptor.dpl() <= level
        } else {
            descriptor.dpl() == level
        };
        if !descriptor.is_code() || !right {
            return Err(invalid(selector));
        }
        if !descriptor.present() {
            return Err(not_present(selector));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.segment(selector))
    }

    fn task_stack(&mut self, selector: u16, cpl: u8) -> Result<Segment, Stop> {
        if is_null(selector) {
            return Err(invalid(selector));
        }
        let mut descriptor = self.descriptor(selector, exception::TS)?;
        if !descriptor.is_writable_data() || descriptor.dpl() != cpl || (selector & 3) as u8 != cpl {
            return Err(invalid(selector));
        }
        if !descriptor.present() {
            return Err(Exception::with_code(exception::SS, selector_code(selector)).into());
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.segment(selector))
    }

    fn task_data(&mut self, selector: u16, cpl: u8) -> Result<Segment, Stop> {
        let mut descriptor = self.descriptor(selector, exception::TS)?;
        let least = cpl.max((selector & 3) as u8);
        if !descriptor.is_readable() || (!descriptor.is_conforming() && least > descriptor.dpl()) {
            return Err(invalid(selector));
        }
        if !descriptor.present() {
            return Err(not_present(selector));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.segment(selector))
    }
}
