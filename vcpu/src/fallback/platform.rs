//! Ports, MSRs, CPUID, time and translations: the rest of what the instruction core asks its world for.

use super::guest::Guest;
use super::host::EmulationHost;
use crate::emulate::{CpuState, Exception, Platform, Request, Stop, Translation};
use crate::paging;
use crate::regs::SystemRegs;
use umbra_devices::{IoOp, IoSize};

/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;

impl<B: EmulationHost> Platform for Guest<'_, B> {
    fn port_in(&mut self, port: u16, size: IoSize) -> Result<u32, Stop> {
        let request = Request::Pio {
            port,
            size,
            op: IoOp::Read,
        };
        match self.replay.take(request) {
            Some(value) => Ok(size.truncate(value.unwrap_or(0)) as u32),
            None => Err(Stop::Pending(request)),
        }
    }

    fn port_out(&mut self, port: u16, size: IoSize, value: u32) -> Result<(), Stop> {
        let op = IoOp::Write(size.truncate(u64::from(value)));
        let request = Request::Pio { port, size, op };
        match self.replay.take(request) {
            Some(_) => Ok(()),
            None => Err(Stop::Pending(request)),
        }
    }

    fn read_msr(&mut self, index: u32) -> Result<u64, Stop> {
        let value = self.backend.read_msr(index);
        self.host(value)?.ok_or(Stop::Fault(Exception::gp(0)))
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Stop> {
        if !self.first {
            // The backend does more than note the value: it is given the guest back for it.
            return Err(Stop::Unsupported);
        }
        // It may have changed what was read of the vCPU's state.
        self.over = true;
        let written = self.backend.write_msr(index, value);
        if self.host(written)? {
            Ok(())
        } else {
            Err(Exception::gp(0).into())
        }
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let answer = self.backend.cpuid(leaf, subleaf);
        self.host(answer).unwrap_or_default()
    }

    fn tsc(&mut self) -> u64 {
        let value = self.backend.read_msr(TSC);
        self.host(value).ok().flatten().unwrap_or(0)
    }

    fn load_pdptes(&mut self, sys: &SystemRegs) -> Result<[u64; 4], Stop> {
        paging::read_pdptes(sys, self.cpu, &*self.slots)
    }

    fn translation(&mut self, change: Translation, state: &CpuState) {
        match change {
            Translation::InvalidateAddress(_) | Translation::InvalidateAll => {
                self.flush = true;
                self.known.clear();
            }
            // A load of CR3 with the same value is a flush, too.
            Translation::ControlsChanged => {
                self.flush = true;
                self.renew_paging(state);
            }
            // Each access says who makes it.
            Translation::PrivilegeChanged => {}
        }
    }

    fn physical_width(&self) -> u32 {
        self.cpu.physical_bits
    }
}
