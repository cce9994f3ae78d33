//! The body of the fuzz target `emulate_step`: arbitrary code in every mode with arbitrary state. Also run on random
//! bytes by an ordinary test.

use super::environment::{Access, AccessKind, Memory, Platform, Request, Stop, Translation};
use super::exception::{Exception, page_fault_code};
use super::fpu::FpuState;
use super::state::{cr0, cr4, efer};
use super::{Cpu, CpuState, Event, Source, Step, flags};
use crate::regs::Segment;
use umbra_devices::{IoOp, IoSize};
use umbra_memslots::{Gpa, Gva, PAGE_SIZE};

/// Bytes of the little world; addresses repeat beyond.
const SIZE: usize = 1 << 16;
/// Instructions per input.
const STEPS: usize = 16;

/// A memory that repeats every 64 KiB, with some pages missing and some that are devices.
struct World {
    memory: Vec<u8>,
    /// One bit per page: missing, read-only, device.
    missing: u16,
    read_only: u16,
    device: u16,
    answered: bool,
}

impl World {
    fn check(&self, at: Gva, length: usize, access: Access) -> Result<(), Stop> {
        let write = access.kind == AccessKind::Write;
        for offset in 0..length as u64 {
            let address = at.wrapping_add(offset);
            let page = 1u16 << (address.get() / PAGE_SIZE % 16);
            if self.missing & page != 0 {
                return Err(Exception::page_fault(0, address).into());
            }
            if write && self.read_only & page != 0 {
                return Err(Exception::page_fault(page_fault_code::PRESENT | page_fault_code::WRITE, address).into());
            }
            if self.device & page != 0 && !self.answered && length <= 8 {
                return Err(Stop::Pending(Request::Mmio {
                    gpa: Gpa::new(address.get()),
                    size: IoSize::B1,
                    op: if write { IoOp::Write(0) } else { IoOp::Read },
                }));
            }
        }
        Ok(())
    }

    fn place(at: Gva, offset: usize) -> usize {
        (at.get() as usize).wrapping_add(offset) % SIZE
    }
}

impl Memory for World {
    fn read(&mut self, at: Gva, bytes: &mut [u8], access: Access) -> Result<(), Stop> {
        self.check(at, bytes.len(), access)?;
        for (offset, byte) in bytes.iter_mut().enumerate() {
            *byte = self.memory[Self::place(at, offset)];
        }
        Ok(())
    }

    fn write(&mut self, at: Gva, bytes: &[u8], access: Access) -> Result<(), Stop> {
        self.check(at, bytes.len(), access)?;
        for (offset, byte) in bytes.iter().enumerate() {
            self.memory[Self::place(at, offset)] = *byte;
        }
        Ok(())
    }

    fn probe(&mut self, at: Gva, length: usize, access: Access) -> Result<(), Stop> {
        self.check(at, length, access)
    }

    fn compare_exchange(&mut self, at: Gva, old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop> {
        let mut present = [0; 16];
        self.read(at, &mut present[..old.len()], access)?;
        if present[..old.len()] != *old {
            return Ok(false);
        }
        self.write(at, new, access)?;
        Ok(true)
    }
}

impl Platform for World {
    fn port_in(&mut self, _port: u16, size: IoSize) -> Result<u32, Stop> {
        Ok(size.all_ones() as u32)
    }

    fn port_out(&mut self, _port: u16, _size: IoSize, _value: u32) -> Result<(), Stop> {
        Ok(())
    }

    fn read_msr(&mut self, index: u32) -> Result<u64, Stop> {
        if index & 1 == 0 {
            Ok(u64::from(index))
        } else {
            Err(Exception::gp(0).into())
        }
    }

    fn write_msr(&mut self, index: u32, _value: u64) -> Result<(), Stop> {
        self.read_msr(index).map(drop)
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> [u32; 4] {
        match (leaf, subleaf) {
            (0xd, 0) => [0x207, 0, 0, 0],
            (0xd, 2) => [256, 576, 0, 0],
            (0xd, 9) => [8, 2688, 0, 0],
            _ => [0; 4],
        }
    }

    fn tsc(&mut self) -> u64 {
        1
    }

    fn translation(&mut self, _change: Translation, _state: &CpuState) {}

    fn physical_width(&self) -> u32 {
        40
    }
}

/// Bytes used up one after another, again from the beginning at the end.
struct Source64<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Source64<'_> {
    fn byte(&mut self) -> u8 {
        self.at += 1;
        self.bytes
            .get((self.at - 1) % self.bytes.len().max(1))
            .copied()
            .unwrap_or(0)
    }

    fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| (word << 8) | u64::from(self.byte()))
    }

    /// A small number, an address in the world, or anything.
    fn value(&mut self) -> u64 {
        match self.byte() % 4 {
            0 => u64::from(self.byte()),
            1 | 2 => self.word() % SIZE as u64,
            _ => self.word(),
        }
    }

    fn segment(&mut self) -> Segment {
        let bits = self.byte();
        Segment {
            selector: self.value() as u16,
            base: if bits & 1 == 0 { 0 } else { self.value() },
            limit: if bits & 2 == 0 { u32::MAX } else { self.value() as u32 },
            kind: self.byte() & 15,
            dpl: bits >> 6,
            non_system: bits & 4 == 0,
            present: bits & 8 == 0,
            db: bits & 16 != 0,
            ..Segment::default()
        }
    }
}

/// A CPU in one of the five modes, everything else as the input says.
fn state(source: &mut Source64<'_>) -> CpuState {
    let mut state = CpuState::default();
    for register in &mut state.gpr {
        *register = source.value();
    }
    state.rip = source.word() % SIZE as u64;
    state.rflags = source.word() & 0x003f_7fd5 & !flags::VM | flags::FIXED;
    let mode = source.byte() % 5;
    let sys = &mut state.sys;
    for segment in [
        &mut sys.cs,
        &mut sys.ds,
        &mut sys.es,
        &mut sys.fs,
        &mut sys.gs,
        &mut sys.ss,
        &mut sys.tr,
        &mut sys.ldt,
    ] {
        *segment = source.segment();
    }
    sys.cs.kind |= 8;
    sys.cs.present = true;
    (sys.gdt.base, sys.gdt.limit) = (source.value(), source.value() as u16);
    (sys.idt.base, sys.idt.limit) = (source.value(), source.value() as u16);
    sys.cr0 = source.word() & (cr0::TS | cr0::EM | cr0::AM | cr0::WP);
    sys.cr4 = source.word() & 0x0077_1fff & !cr4::LA57;
    sys.cr3 = source.value();
    if mode > 0 {
        sys.cr0 |= cr0::PE | cr0::PG;
    }
    match mode {
        2 => state.rflags |= flags::VM,
        3 | 4 => {
            sys.efer |= efer::LME | efer::LMA | efer::SCE;
            sys.cr4 |= cr4::PAE;
            sys.cs.long = mode == 4;
            sys.cs.db = mode == 3;
        }
        _ => {}
    }
    state.msrs.lstar = source.value();
    state.msrs.star = source.word();
    state.fpu.xcr0 = 7;
    fpu(source, &mut state.fpu);
    state
}

/// Any numbers in the registers, any control and status that can be loaded.
fn fpu(source: &mut Source64<'_>, fpu: &mut FpuState) {
    for register in &mut fpu.x87 {
        register.mantissa = source.word();
        register.sign_exponent = source.word() as u16;
    }
    for register in &mut fpu.xmm {
        *register = u128::from(source.word()) << 64 | u128::from(source.word());
    }
    fpu.control = source.word() as u16 & 0x1f7f | 0x40;
    fpu.status = source.word() as u16 & 0x7f7f;
    fpu.tags = source.byte() | source.byte();
    fpu.mxcsr = source.word() as u32 & fpu.mxcsr_mask;
}

/// Executes arbitrary code on arbitrary state.
///
/// # Panics
/// If an instruction that did not happen left a trace in RIP or RFLAGS.
pub fn fuzz_body(bytes: &[u8]) {
    let mut source = Source64 { bytes, at: 0 };
    let state = state(&mut source);
    let (missing, read_only, device) = (source.word() as u16, source.word() as u16, source.word() as u16);
    let memory: Vec<u8> = bytes.iter().chain(&[0]).copied().cycle().take(SIZE).collect();
    let world = World {
        memory,
        missing: missing & missing >> 8,
        read_only: read_only & read_only >> 5,
        device: device & device >> 6,
        answered: false,
    };
    let mut cpu = Cpu::new(state, world);
    for _ in 0..STEPS {
        let (rip, rflags) = (cpu.state.rip, cpu.state.rflags);
        let step = cpu.step();
        cpu.env.answered = false;
        match step {
            Step::Done { .. } | Step::Halt => {}
            Step::Repeat => assert_eq!(cpu.state.rip, rip),
            Step::Pending(_) => {
                assert_eq!(cpu.state.rip, rip);
                cpu.env.answered = true;
            }
            Step::Fault(exception) => {
                assert_eq!(cpu.state.rip, rip, "{exception:?}");
                assert_eq!((cpu.state.rflags ^ rflags) & !flags::STATUS, 0, "{exception:?}");
                let event = Event {
                    exception,
                    source: Source::Exception,
                };
                if cpu.deliver(event).is_err() {
                    return;
                }
            }
            Step::Unsupported(_) | Step::TripleFault => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn arbitrary_code_on_arbitrary_state_never_panics(bytes in prop::collection::vec(any::<u8>(), 1..2048)) {
            super::fuzz_body(&bytes);
        }
    }
}
