//! The instruction core in 64 KiB of flat memory without paging, for tests.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::cast_possible_truncation, reason = "test code with small numbers")]

use umbra_devices::{IoOp, IoSize};
use umbra_memslots::{Gpa, Gva};
use umbra_vcpu::emulate::state::{RSP, cr0, cr4, efer};
use umbra_vcpu::emulate::{
    Access, AccessKind, Cpu, CpuState, Exception, Memory, Platform, Request, Step, Stop, Translation, flags,
};
use umbra_vcpu::regs::{DescriptorTable, Segment, SystemRegs};

pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const CODE: u64 = 0x4000;
pub const STACK: u64 = 0x8000;
pub const KERNEL_STACK: u64 = 0x9000;
pub const HANDLER: u64 = 0x5000;

/// 64 KiB of memory without paging, and the values that CR3 got.
pub struct Flat(pub Vec<u8>, pub Vec<u64>);

/// Memory whose writes are never answered: a device that is waited for.
pub const SLOW_DEVICE: u64 = 0x2_0000;

impl Flat {
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    pub fn number(&self, at: u64, bytes: usize) -> u64 {
        let slice = &self.0[at as usize..at as usize + bytes];
        slice.iter().rev().fold(0, |n, byte| (n << 8) | u64::from(*byte))
    }
}

impl Memory for Flat {
    fn read(&mut self, at: Gva, bytes: &mut [u8], access: Access) -> Result<(), Stop> {
        self.probe(at, bytes.len(), access)?;
        bytes.copy_from_slice(&self.0[at.get() as usize..at.get() as usize + bytes.len()]);
        Ok(())
    }

    fn write(&mut self, at: Gva, bytes: &[u8], access: Access) -> Result<(), Stop> {
        self.probe(at, bytes.len(), access)?;
        self.put(at.get(), bytes);
        Ok(())
    }

    fn probe(&mut self, at: Gva, length: usize, access: Access) -> Result<(), Stop> {
        if at.get() == SLOW_DEVICE && access.kind == AccessKind::Write {
            return Err(Stop::Pending(Request::Mmio {
                gpa: Gpa::new(SLOW_DEVICE),
                size: IoSize::B1,
                op: IoOp::Write(0),
            }));
        }
        if at.get() + length as u64 > self.0.len() as u64 {
            return Err(Exception::page_fault(2, at).into());
        }
        Ok(())
    }

    fn compare_exchange(&mut self, at: Gva, old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop> {
        self.probe(at, new.len(), access)?;
        let equal = self.0[at.get() as usize..][..old.len()] == *old;
        if equal {
            self.put(at.get(), new);
        }
        Ok(equal)
    }
}

impl Platform for Flat {
    fn port_in(&mut self, _port: u16, _size: IoSize) -> Result<u32, Stop> {
        Ok(0x5a)
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
    /// Every feature, but no virtual interrupt flags.
    fn cpuid(&mut self, leaf: u32, _subleaf: u32) -> [u32; 4] {
        match leaf {
            1 => [!0, !0, !0, !2],
            _ => [!0; 4],
        }
    }
    fn tsc(&mut self) -> u64 {
        0
    }
    /// Bits 1, 2, 5 to 8 and those from 40 on are reserved.
    fn load_pdptes(&mut self, sys: &SystemRegs) -> Result<[u64; 4], Stop> {
        let entries: [u64; 4] = std::array::from_fn(|index| self.number((sys.cr3 & !31) + 8 * index as u64, 8));
        if entries
            .iter()
            .any(|entry| entry & 1 != 0 && (entry & 0x1e6 != 0 || entry >> 40 != 0))
        {
            return Err(Exception::gp(0).into());
        }
        Ok(entries)
    }

    fn translation(&mut self, change: Translation, state: &CpuState) {
        if change == Translation::ControlsChanged {
            self.1.push(state.sys.cr3);
        }
    }
    fn physical_width(&self) -> u32 {
        40
    }
}

/// Selectors of the GDT that `machine` makes.
pub const KERNEL_CODE: u16 = 0x08;
pub const KERNEL_DATA: u16 = 0x10;
pub const USER_DATA: u16 = 0x1b;
pub const USER_CODE: u16 = 0x23;
pub const TASK: u16 = 0x28;

pub fn segment(selector: u16, kind: u8, dpl: u8, long: bool) -> Segment {
    Segment {
        selector,
        limit: u32::MAX,
        kind,
        dpl,
        non_system: true,
        present: true,
        long,
        db: !long,
        granularity: true,
        ..Segment::default()
    }
}

/// A CPU at `cpl` with `code` at [`CODE`], flat segments, and a TSS with [`KERNEL_STACK`] for level 0.
pub fn machine(long: bool, cpl: u8, code: &[u8]) -> Cpu<Flat> {
    let mut memory = Flat(vec![0; 0x1_0000], Vec::new());
    let code_type = if long { 0x00af } else { 0x00cf };
    for (index, access, flags) in [
        (1, 0x9b, code_type),
        (2, 0x93, 0xcf),
        (3, 0xf3, 0xcf),
        (4, 0xfb, code_type),
    ] {
        let descriptor = 0xffff_u64 | access << 40 | flags << 48;
        memory.put(GDT + 8 * index, &descriptor.to_le_bytes());
    }
    let mut state = CpuState::default();
    let sys = &mut state.sys;
    let (code_selector, data_selector) = if cpl == 0 {
        (KERNEL_CODE, KERNEL_DATA)
    } else {
        (USER_CODE, USER_DATA)
    };
    sys.cs = segment(code_selector, 11, cpl, long);
    sys.ss = segment(data_selector, 3, cpl, false);
    (sys.ds, sys.es) = (sys.ss, sys.ss);
    sys.gdt = DescriptorTable { base: GDT, limit: 0x3f };
    sys.idt = DescriptorTable {
        base: IDT,
        limit: 0xfff,
    };
    sys.tr = Segment {
        selector: TASK,
        base: TSS,
        limit: 0x67,
        kind: 11,
        present: true,
        ..Segment::default()
    };
    sys.cr0 = cr0::PE;
    if long {
        sys.cr0 |= cr0::PG;
        sys.cr4 = cr4::PAE;
        sys.efer = efer::LME | efer::LMA | efer::SCE;
        memory.put(TSS + 4, &KERNEL_STACK.to_le_bytes());
    } else {
        memory.put(TSS + 4, &(KERNEL_STACK as u32).to_le_bytes());
        memory.put(TSS + 8, &KERNEL_DATA.to_le_bytes());
    }
    // No I/O permission bitmap.
    memory.put(TSS + 0x66, &[0x68, 0]);
    memory.put(CODE, code);
    state.gpr[RSP] = STACK;
    state.rip = CODE;
    state.rflags = flags::FIXED | flags::IF | flags::CF;
    Cpu::new(state, memory)
}

pub fn gate(cpu: &mut Cpu<Flat>, vector: u64, kind: u64, dpl: u64, ist: u64) {
    let low = HANDLER | u64::from(KERNEL_CODE) << 16 | (ist | (0x80 | dpl << 5 | kind) << 8) << 32;
    let size = if cpu.state.long_mode() { 16 } else { 8 };
    cpu.env.put(IDT + size * vector, &low.to_le_bytes());
}

/// An instruction is done, and nothing is due.
pub const DONE: Step = Step::Done { trap: false };
