//! The core's world: the image's memory, mapped to itself; ports that always say the same; the MSRs of the state.

use super::image::{READ_ONLY, SIZE, UNMAPPED};
use super::machine::{PORT_VALUE, RAM};
use umbra_devices::IoSize;
use umbra_memslots::Gva;
use umbra_vcpu::emulate::exception::page_fault_code as code;
use umbra_vcpu::emulate::state::{cr0, cr4, efer};
use umbra_vcpu::emulate::{Access, AccessKind, CpuState, Exception, Memory, Platform, Stop, Translation};

/// Memory, and as much of the controls as decides about faults.
#[derive(Clone)]
pub struct World {
    pub memory: Vec<u8>,
    controls: Controls,
}

#[derive(Clone, Copy, PartialEq)]
struct Controls {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
}

impl Controls {
    fn of(state: &CpuState) -> Self {
        let sys = &state.sys;
        Self {
            cr0: sys.cr0,
            cr3: sys.cr3 & !0xfff,
            cr4: sys.cr4,
            efer: sys.efer,
        }
    }
}

impl World {
    pub fn new(memory: Vec<u8>, state: &CpuState) -> Self {
        Self {
            memory,
            controls: Controls::of(state),
        }
    }

    fn fault(&self, at: u64, access: Access, present: bool) -> Stop {
        let controls = &self.controls;
        let mut bits = if present { code::PRESENT } else { 0 };
        bits |= match access.kind {
            AccessKind::Write => code::WRITE,
            AccessKind::Fetch if controls.efer & efer::NXE != 0 || controls.cr4 & cr4::SMEP != 0 => code::FETCH,
            _ => 0,
        };
        if access.user {
            bits |= code::USER;
        }
        Exception::page_fault(bits, Gva::new(at)).into()
    }

    fn check(&self, at: Gva, length: usize, access: Access) -> Result<(), Stop> {
        let paging = self.controls.cr0 & cr0::PG != 0;
        for offset in 0..length as u64 {
            let address = at.get().wrapping_add(offset);
            let page = address & !0xfff;
            if !paging {
                // Behind the RAM there is nobody; between the image and its end nobody looks.
                if address >= SIZE as u64 {
                    return Err(Stop::Unsupported);
                }
                continue;
            }
            if page == UNMAPPED || address >= RAM {
                return Err(self.fault(address, access, false));
            }
            let protected = access.user || self.controls.cr0 & cr0::WP != 0;
            if page == READ_ONLY && access.kind == AccessKind::Write && protected {
                return Err(self.fault(address, access, true));
            }
            if address >= SIZE as u64 {
                return Err(Stop::Unsupported);
            }
        }
        Ok(())
    }
}

impl Memory for World {
    fn read(&mut self, at: Gva, bytes: &mut [u8], access: Access) -> Result<(), Stop> {
        self.check(at, bytes.len(), access)?;
        let start = at.get() as usize;
        bytes.copy_from_slice(&self.memory[start..start + bytes.len()]);
        Ok(())
    }

    fn write(&mut self, at: Gva, bytes: &[u8], access: Access) -> Result<(), Stop> {
        self.check(at, bytes.len(), access)?;
        let start = at.get() as usize;
        self.memory[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn probe(&mut self, at: Gva, length: usize, access: Access) -> Result<(), Stop> {
        self.check(at, length, access)
    }

    fn compare_exchange(&mut self, at: Gva, _old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop> {
        self.write(at, new, access).map(|()| true)
    }
}

impl Platform for World {
    fn port_in(&mut self, _port: u16, size: IoSize) -> Result<u32, Stop> {
        Ok(match size.bytes() {
            1 => PORT_VALUE & 0xff,
            2 => PORT_VALUE & 0xffff,
            _ => PORT_VALUE,
        })
    }

    fn port_out(&mut self, _port: u16, _size: IoSize, _value: u32) -> Result<(), Stop> {
        Ok(())
    }

    fn read_msr(&mut self, _index: u32) -> Result<u64, Stop> {
        Err(Exception::gp(0).into())
    }

    fn write_msr(&mut self, _index: u32, _value: u64) -> Result<(), Stop> {
        Err(Exception::gp(0).into())
    }

    /// Every feature is there: none that a program uses is missing in KVM, and the instruction itself is not compared.
    fn cpuid(&mut self, leaf: u32, _subleaf: u32) -> [u32; 4] {
        match leaf {
            1 => [0, 0, u32::MAX, u32::MAX],
            7 => [0, u32::MAX, u32::MAX, u32::MAX],
            _ => [0; 4],
        }
    }

    fn tsc(&mut self) -> u64 {
        0
    }

    fn translation(&mut self, _change: Translation, state: &CpuState) {
        self.controls = Controls::of(state);
    }

    fn physical_width(&self) -> u32 {
        40
    }
}
