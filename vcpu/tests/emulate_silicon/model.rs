//! The world of the instruction core in these tests: the same window of memory that the silicon sees.

use super::layout::{CODE, READ_ONLY, READ_ONLY_END, WINDOW, WINDOW_SIZE};
use super::mode::Mode;
use super::segments::{self, ENTRIES, GDT, GDT_LIMIT, LDT};
use umbra_devices::IoSize;
use umbra_memslots::Gva;
use umbra_vcpu::emulate::exception::page_fault_code as code;
use umbra_vcpu::emulate::{Access, AccessKind, CpuState, Exception, Memory, Platform, Stop, Translation};

/// The window's contents. An access anywhere else that the silicon could make is "wild": such a case is not run.
#[derive(Clone)]
pub struct Window {
    mode: Mode,
    pub data: Vec<u8>,
    read_only: Vec<u8>,
}

impl Window {
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            data: vec![0; WINDOW_SIZE],
            read_only: super::layout::read_only(mode),
        }
    }

    /// A part of a descriptor table, which only the CPU itself looks at.
    fn descriptor(at: Gva, bytes: &mut [u8]) -> Option<Result<(), Stop>> {
        let address = at.get();
        let tables =
            (LDT..LDT + 8 * ENTRIES as u64).contains(&address) || (GDT..=GDT + u64::from(GDT_LIMIT)).contains(&address);
        if !tables {
            return None;
        }
        let Some(raw) = segments::descriptor_at(address & !7) else {
            return Some(Err(Stop::Unsupported));
        };
        let start = (address & 7) as usize;
        bytes.copy_from_slice(&raw.to_le_bytes()[start..start + bytes.len()]);
        Some(Ok(()))
    }

    fn check(&self, at: Gva, length: usize, access: Access) -> Result<(), Stop> {
        let write = if access.kind == AccessKind::Write {
            code::WRITE
        } else {
            0
        };
        for offset in 0..length as u64 {
            let address = at.get().wrapping_add(offset);
            match address {
                WINDOW..READ_ONLY => {}
                READ_ONLY..READ_ONLY_END if write == 0 => {}
                READ_ONLY..READ_ONLY_END => {
                    return Err(Exception::page_fault(code::PRESENT | write | code::USER, Gva::new(address)).into());
                }
                _ if self.is_unmapped(address) => {
                    return Err(Exception::page_fault(write | code::USER, Gva::new(address)).into());
                }
                _ => return Err(Stop::Unsupported),
            }
        }
        Ok(())
    }

    /// Where the silicon surely has nothing. Code and records of the harness are there, but nobody's business.
    const fn is_unmapped(&self, address: u64) -> bool {
        match self.mode {
            Mode::Long => {
                address >= 0x40_0000 && address < WINDOW || address >= READ_ONLY_END && address < 0x7fff_ffff_f000
            }
            _ => {
                address < CODE
                    || address >= 0x40_0000 && address < WINDOW
                    || address >= READ_ONLY_END && address < 1 << 32
            }
        }
    }

    fn byte(&self, address: u64) -> u8 {
        if address < READ_ONLY {
            self.data[(address - WINDOW) as usize]
        } else {
            self.read_only[(address - READ_ONLY) as usize]
        }
    }
}

impl Memory for Window {
    fn read(&mut self, at: Gva, bytes: &mut [u8], access: Access) -> Result<(), Stop> {
        if access.implicit
            && let Some(found) = Self::descriptor(at, bytes)
        {
            return found;
        }
        self.check(at, bytes.len(), access)?;
        for (offset, byte) in bytes.iter_mut().enumerate() {
            *byte = self.byte(at.get() + offset as u64);
        }
        Ok(())
    }

    fn write(&mut self, at: Gva, bytes: &[u8], access: Access) -> Result<(), Stop> {
        self.check(at, bytes.len(), access)?;
        let start = (at.get() - WINDOW) as usize;
        self.data[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn probe(&mut self, at: Gva, length: usize, access: Access) -> Result<(), Stop> {
        self.check(at, length, access)
    }

    fn compare_exchange(&mut self, at: Gva, _old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop> {
        self.write(at, new, access)?;
        Ok(true)
    }
}

impl Platform for Window {
    fn port_in(&mut self, _port: u16, _size: IoSize) -> Result<u32, Stop> {
        Err(Stop::Unsupported)
    }

    fn port_out(&mut self, _port: u16, _size: IoSize, _value: u32) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }

    fn read_msr(&mut self, _index: u32) -> Result<u64, Stop> {
        Err(Stop::Unsupported)
    }

    fn write_msr(&mut self, _index: u32, _value: u64) -> Result<(), Stop> {
        Err(Stop::Unsupported)
    }

    fn cpuid(&mut self, _leaf: u32, _subleaf: u32) -> [u32; 4] {
        [0; 4]
    }

    fn tsc(&mut self) -> u64 {
        0
    }

    fn translation(&mut self, _change: Translation, _state: &CpuState) {}

    fn physical_width(&self) -> u32 {
        48
    }
}
