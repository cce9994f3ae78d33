//! Hardware breakpoints (SDM vol. 3B sections 18.2, 18.3.1): what debug registers 0 to 3 and 7 watch, and the accesses to
//! memory and ports that they may watch.
//!
//! An instruction breakpoint is a fault, met before the instruction unless RFLAGS.RF is set. All others are traps: hits
//! are collected in [`CpuState::pending_debug`] and reported when the instruction is done, or an iteration of a repeated
//! string instruction. The CPU's own accesses to descriptors and task state are not watched, what it pushes for a handler
//! is.

use super::environment::{Access, Memory, Platform, Stop};
use super::exception::{Exception, debug_cause};
use super::flags::RF;
use super::state::{CpuState, cr4, dr7};
use super::{Cpu, Decoded, Step};
use umbra_devices::IoSize;
use umbra_memslots::Gva;

/// R/W fields of DR7: what a breakpoint is for.
mod watched {
    pub(super) const EXECUTION: u64 = 0;
    pub(super) const WRITES: u64 = 1;
    /// With CR4.DE.
    pub(super) const PORTS: u64 = 2;
    pub(super) const DATA: u64 = 3;
}

impl CpuState {
    /// Whether any breakpoint is enabled.
    #[inline]
    pub const fn has_breakpoints(&self) -> bool {
        self.debug[7] & dr7::ENABLED != 0
    }

    /// The enabled breakpoints, as bits of DR6, that are for what `is_for` says and that these bytes touch.
    fn breakpoints_at(&self, first: u64, length: u64, is_for: impl Fn(u64) -> bool) -> u64 {
        let control = self.debug[7];
        (0..4)
            .filter(|number| {
                let (enabled, settings) = (control >> (2 * number) & 3, control >> (16 + 4 * number) & 15);
                let bytes = [1, 2, 8, 4][(settings >> 2) as usize];
                let at = self.debug[*number as usize] & !(bytes - 1);
                let touched = first.wrapping_sub(at) < bytes || at.wrapping_sub(first) < length;
                enabled != 0 && touched && is_for(settings & 3)
            })
            .fold(0, |hits, number| hits | 1 << number)
    }
}

impl<E: Memory + Platform> Cpu<E> {
    /// The #DB of a breakpoint at the instruction at CS:RIP, if there is one and RF does not hold it off. It comes before
    /// any fault of the fetch. [`Cpu::step`] and [`Cpu::execute`] look for themselves.
    pub fn instruction_breakpoint(&self) -> Option<Exception> {
        if !self.state.has_breakpoints() || self.state.flag(RF) {
            return None;
        }
        let at = self.code_address().ok()?;
        let hits = self
            .state
            .breakpoints_at(at.get(), 1, |what| what == watched::EXECUTION);
        (hits != 0).then(|| Exception::debug(hits))
    }

    /// As [`Cpu::execute_decoded`], while breakpoints are enabled.
    #[cold]
    pub(super) fn execute_watched(&mut self, decoded: &Decoded<E>) -> Step {
        if let Some(breakpoint) = self.instruction_breakpoint() {
            return Step::Fault(breakpoint);
        }
        let held = self.state.pending_debug;
        let step = self.execute_plain(decoded);
        match step {
            Step::Done { .. } | Step::Halt => {}
            // It did not happen, or what it did so far was not watched.
            _ => self.state.pending_debug = held,
        }
        if step == Step::Repeat && decoded.insn.is_string_instruction() {
            // Its breakpoint has been passed.
            self.state.rflags |= RF;
        }
        step
    }

    fn note_data(&mut self, at: Gva, length: usize, written: bool) {
        let hits = self.state.breakpoints_at(at.get(), length as u64, |what| {
            what == watched::DATA || written && what == watched::WRITES
        });
        self.state.pending_debug |= hits & debug_cause::BREAKPOINTS;
    }

    fn note_port(&mut self, port: u16, size: IoSize) {
        if self.state.has_breakpoints() && self.state.sys.cr4 & cr4::DE != 0 {
            let length = size.bytes();
            self.state.pending_debug |= self
                .state
                .breakpoints_at(u64::from(port), length, |what| what == watched::PORTS);
        }
    }

    /// [`Memory::read`] of data.
    #[inline]
    pub(super) fn read_memory(&mut self, at: Gva, bytes: &mut [u8], access: Access) -> Result<(), Stop> {
        self.env.read(at, bytes, access)?;
        if self.state.has_breakpoints() && !access.implicit {
            self.note_data(at, bytes.len(), false);
        }
        Ok(())
    }

    /// [`Memory::write`] of data.
    #[inline]
    pub(super) fn write_memory(&mut self, at: Gva, bytes: &[u8], access: Access) -> Result<(), Stop> {
        self.env.write(at, bytes, access)?;
        if self.state.has_breakpoints() && !access.implicit {
            self.note_data(at, bytes.len(), true);
        }
        Ok(())
    }

    /// [`Memory::write`] of what the CPU pushes by itself.
    pub(super) fn write_frame(&mut self, at: Gva, bytes: &[u8], access: Access) -> Result<(), Stop> {
        self.env.write(at, bytes, access)?;
        if self.state.has_breakpoints() {
            self.note_data(at, bytes.len(), true);
        }
        Ok(())
    }

    /// [`Memory::write_words`] of what the CPU pushes by itself.
    #[inline(always)]
    pub(super) fn write_frame_words<const N: usize>(
        &mut self,
        at: Gva,
        words: [u64; N],
        access: Access,
    ) -> Result<(), Stop> {
        self.env.write_words(at, words, access)?;
        if self.state.has_breakpoints() {
            self.note_data(at, 8 * N, true);
        }
        Ok(())
    }

    /// [`Memory::compare_exchange`] of data.
    pub(super) fn exchange_memory(&mut self, at: Gva, old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop> {
        let done = self.env.compare_exchange(at, old, new, access)?;
        if self.state.has_breakpoints() {
            self.note_data(at, new.len(), true);
        }
        Ok(done)
    }

    /// [`Platform::port_in`].
    pub(super) fn read_port(&mut self, port: u16, size: IoSize) -> Result<u32, Stop> {
        let value = self.env.port_in(port, size)?;
        self.note_port(port, size);
        Ok(value)
    }

    /// [`Platform::port_out`].
    pub(super) fn write_port(&mut self, port: u16, size: IoSize, value: u32) -> Result<(), Stop> {
        self.env.port_out(port, size, value)?;
        self.note_port(port, size);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_touch_a_breakpoint_wherever_they_overlap_it() {
        let mut state = CpuState::default();
        // Breakpoint 1: writes, 4 bytes at 0x1000, though the register points into them.
        state.debug[1] = 0x1003;
        state.debug[7] = 1 << 2 | 0xd << 20;
        let hits = |first, length| state.breakpoints_at(first, length, |what| what == watched::WRITES);
        assert_eq!(
            [hits(0x1000, 1), hits(0xffd, 4), hits(0xffc, 8), hits(0x1003, 2)],
            [2; 4]
        );
        assert_eq!([hits(0xffc, 4), hits(0x1004, 1), hits(0, 1), hits(u64::MAX, 1)], [0; 4]);
        assert_eq!(state.breakpoints_at(0x1000, 1, |what| what == watched::DATA), 0);
    }

    #[test]
    fn length_field_has_one_two_eight_and_four_bytes() {
        let mut state = CpuState::default();
        for (field, bytes) in [(0, 1), (1, 2), (2, 8), (3, 4)] {
            state.debug[0] = 0x1000;
            state.debug[7] = 2 | (3 | field << 2) << 16;
            let hit = |at| state.breakpoints_at(at, 1, |what| what == watched::DATA) == 1;
            assert!(
                hit(0x1000) && hit(0x1000 + bytes - 1) && !hit(0x1000 + bytes),
                "{field}"
            );
        }
    }
}
