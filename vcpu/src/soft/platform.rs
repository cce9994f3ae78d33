//! Ports, MSRs, CPUID, time: the rest of what the instruction core asks for.

use super::apic::OwnApic;
use super::walker::GUEST_CPU;
use super::world::World;
use super::{cpuid, pvclock};
use crate::emulate::{CpuState, Exception, Platform, Request, Stop, Translation};
use crate::paging;
use crate::regs::SystemRegs;
use std::time::Duration;
use umbra_devices::{IoOp, IoSize};
use umbra_memslots::Gpa;

/// MSR numbers (SDM vol. 4).
mod msr {
    pub(super) const TSC: u32 = 0x10;
    pub(super) const APIC_BASE: u32 = 0x1b;
    pub(super) const TSC_ADJUST: u32 = 0x3b;
    pub(super) const PAT: u32 = 0x277;
}

/// IA32_PAT after reset (SDM vol. 3A, 12.12.4).
pub(super) const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;

const GP0: Stop = Stop::Fault(Exception::gp(0));

impl World {
    /// The value for which `request` waits, or the wait. `Err(#GP)` if the answer was a fault.
    fn ask(&mut self, request: Request) -> Result<u64, Stop> {
        match self.replay.take(request) {
            Some(Some(value)) => Ok(value),
            Some(None) => Err(GP0),
            None => Err(Stop::Pending(request)),
        }
    }

    /// What the time-stamp counter shows when the machine has run for `age`.
    fn tsc_at(&self, age: Duration) -> u64 {
        // Nanoseconds: 2^64 of them are 584 years.
        (age.as_nanos() as u64).wrapping_add(self.tsc_offset)
    }

    fn read_apic_msr(&mut self, index: u32) -> Result<u64, Stop> {
        self.keep_clock();
        let own = self.apic.as_ref().ok_or(GP0)?;
        own.apic.read_msr(index).map_err(|_| GP0)
    }

    /// For how long the machine has run.
    fn age(&mut self) -> Duration {
        self.keep_clock();
        self.shared.clock.monotonic()
    }

    /// Tells the guest the time where it wants it, after the counter was moved.
    fn keep_time(&mut self) {
        if let Some(at) = pvclock::place(self.system_time) {
            let age = self.age();
            let info = pvclock::system_time(self.tsc_at(age), age);
            self.write_quietly(at, &info);
        }
    }
}

impl Platform for World {
    fn port_in(&mut self, port: u16, size: IoSize) -> Result<u32, Stop> {
        let op = IoOp::Read;
        Ok(size.truncate(self.ask(Request::Pio { port, size, op })?) as u32)
    }

    fn port_out(&mut self, port: u16, size: IoSize, value: u32) -> Result<(), Stop> {
        let op = IoOp::Write(size.truncate(u64::from(value)));
        self.ask(Request::Pio { port, size, op }).map(drop)
    }

    fn read_msr(&mut self, index: u32) -> Result<u64, Stop> {
        match index {
            msr::TSC => Ok(self.tsc()),
            msr::APIC_BASE => Ok(self.apic.as_ref().map_or(self.apic_base, |own| own.apic.base())),
            msr::TSC_ADJUST => Ok(self.tsc_offset),
            msr::PAT => Ok(self.pat),
            pvclock::SYSTEM_TIME => Ok(self.system_time),
            _ => match &self.apic {
                Some(_) if OwnApic::has_msr(index) => self.read_apic_msr(index),
                _ => self.ask(Request::ReadMsr { index }),
            },
        }
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Stop> {
        match index {
            msr::TSC => {
                let now = self.tsc();
                self.tsc_offset = self.tsc_offset.wrapping_add(value.wrapping_sub(now));
                self.keep_time();
            }
            msr::TSC_ADJUST => {
                self.tsc_offset = value;
                self.keep_time();
            }
            // Each byte a memory type: 0, 1, 4, 5, 6 or 7.
            msr::PAT if value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7)) => self.pat = value,
            msr::PAT => return Err(GP0),
            pvclock::SYSTEM_TIME => {
                self.system_time = value;
                self.keep_time();
            }
            pvclock::WALL_CLOCK => {
                let age = self.age();
                let clock = pvclock::wall_clock(self.shared.clock.unix_time(), age);
                self.write_quietly(Gpa::new(value), &clock);
            }
            msr::APIC_BASE if let Some(own) = &mut self.apic => {
                if !own.set_base(value) {
                    return Err(GP0);
                }
            }
            _ => {
                let tsc = self.tsc();
                match &self.apic {
                    Some(own) if OwnApic::has_msr(index) => own.apic.write_msr(index, value, tsc).map_err(|_| GP0)?,
                    _ => drop(self.ask(Request::WriteMsr { index, value })?),
                }
            }
        }
        Ok(())
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.adapt_cpuid(leaf, subleaf, cpuid::answer(leaf, subleaf))
    }

    fn tsc(&mut self) -> u64 {
        let age = self.age();
        self.tsc_at(age)
    }

    fn task_priority(&mut self) -> Option<u64> {
        self.apic.as_ref().map(|own| own.apic.cr8())
    }

    fn set_task_priority(&mut self, value: u64) {
        if let Some(own) = &self.apic {
            own.apic.set_cr8(value);
        }
    }

    fn fpu_error(&mut self, pending: bool) -> bool {
        match &mut self.fpu_errors {
            // The pins rest as long as there is nothing.
            Some((_, false)) if !pending => false,
            Some((logic, asserted)) => {
                *asserted = pending;
                logic.set_error(pending)
            }
            None => true,
        }
    }

    fn handler_returned(&mut self) {
        if let Some(own) = &mut self.apic {
            own.leave_nmi();
        }
    }

    fn pause(&mut self) {
        match &mut self.turn {
            // Whoever is waited for gets its turn.
            Some(turn) => turn.give_way(),
            // Whoever is waited for may need this very CPU of the host's.
            None => std::thread::yield_now(),
        }
    }

    fn load_pdptes(&mut self, sys: &SystemRegs) -> Result<[u64; 4], Stop> {
        paging::read_pdptes(sys, GUEST_CPU, &**self.tlb.slots())
    }

    fn translation(&mut self, change: Translation, state: &CpuState) {
        match change {
            Translation::InvalidateAddress(at) => self.walker.invalidate(&mut self.tlb, at),
            Translation::InvalidateAll | Translation::ControlsChanged => self.walker.set_state(state, &mut self.tlb),
            // The TLB has tables for each privilege, and whoever executes looks at the mode.
            Translation::PrivilegeChanged => return,
        }
        self.moved = true;
    }

    fn physical_width(&self) -> u32 {
        cpuid::PHYSICAL_BITS
    }
}
