//! The body of the fuzz target `emulate_step`: arbitrary code in every mode and at every privilege level, with arbitrary
//! registers, those of control and debugging included, and descriptor tables full of descriptors and gates of every kind.
//! Also run on random bytes by an ordinary test.

use super::environment::{Access, AccessKind, Memory, Platform, Request, Stop, Translation};
use super::exception::{Exception, page_fault_code};
use super::fpu::FpuState;
use super::state::{cr0, cr4, dr7, efer};
use super::{Cpu, CpuState, Event, Source, Step, flags};
use crate::regs::{Segment, SystemRegs};
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
            (1 | 7, 0) => [u32::MAX; 4],
            (0xd, 0) => [0x207, 0, 0, 0],
            (0xd, 2) => [256, 576, 0, 0],
            (0xd, 9) => [8, 2688, 0, 0],
            _ => [0; 4],
        }
    }

    fn tsc(&mut self) -> u64 {
        1
    }

    fn fpu_error(&mut self, pending: bool) -> bool {
        !pending || self.device & 1 == 0
    }

    fn load_pdptes(&mut self, sys: &SystemRegs) -> Result<[u64; 4], Stop> {
        match sys.cr3 >> 5 & 3 {
            0 => Err(Exception::gp(0).into()),
            1 => Err(Stop::Contended),
            _ => Ok([sys.cr3; 4]),
        }
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

/// A CPU in one of the modes, everything else as the input says.
fn state(source: &mut Source64<'_>) -> CpuState {
    let mut state = CpuState::default();
    for register in &mut state.gpr {
        *register = source.value();
    }
    state.rip = source.word() % SIZE as u64;
    state.rflags = source.word() & 0x003f_7fd5 & !flags::VM | flags::FIXED;
    // Real, protected with and without paging, virtual-8086, compatibility and 64-bit mode.
    let mode = source.byte() % 6;
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
    sys.cr0 = source.word() & (cr0::TS | cr0::EM | cr0::MP | cr0::NE | cr0::AM | cr0::WP | cr0::CD);
    sys.cr4 = source.word() & 0x0077_1fff & !cr4::LA57;
    sys.cr3 = source.value();
    (sys.tr.kind, sys.tr.non_system) = (1 | sys.tr.kind & 10, false);
    (sys.ldt.kind, sys.ldt.non_system) = (2, false);
    if mode > 0 {
        sys.cr0 |= cr0::PE;
    }
    if mode > 1 {
        sys.cr0 |= cr0::PG;
    }
    match mode {
        3 => state.rflags |= flags::VM,
        4 | 5 => {
            sys.efer |= efer::LME | efer::LMA | efer::SCE;
            sys.cr4 |= cr4::PAE;
            sys.cs.long = mode == 5;
            sys.cs.db &= mode == 4;
        }
        _ => {}
    }
    if source.byte() & 1 != 0 {
        for register in 0..4 {
            state.debug[register] = source.value();
        }
        state.debug[7] = source.word() & 0xffff_23ff;
    }
    (state.debug[6], state.debug[7]) = (0xffff_0ff0, state.debug[7] | dr7::FIXED);
    state.pdptes = [source.word(); 4];
    state.msrs.lstar = source.value();
    state.msrs.star = source.word();
    state.fpu.xcr0 = 7;
    fpu(source, &mut state.fpu);
    state
}

/// Fills the descriptor tables with descriptors and gates of every kind, which lead to each other.
fn plant(source: &mut Source64<'_>, sys: &SystemRegs, memory: &mut [u8]) {
    let tables = [(sys.gdt.base, 24), (sys.idt.base, 32), (sys.ldt.base, 8)];
    for (base, entries) in tables {
        for index in 0..entries {
            let (access, detail) = (source.byte(), source.byte());
            let selector = u64::from(detail) & 0xbf;
            // A gate's offset, and a segment's base and limit, are in the world.
            let entry = match access & 0x1f {
                4..=7 | 12 | 14 | 15 => (source.word() % SIZE as u64) | selector << 16,
                _ => 0xffff | (source.word() % SIZE as u64) << 16 | u64::from(detail & 0xf0) << 48,
            };
            let entry = entry | u64::from(access) << 40;
            for (offset, byte) in entry.to_le_bytes().into_iter().enumerate() {
                let at = World::place(Gva::new(base.wrapping_add(8 * index)), offset);
                memory[at] = byte;
            }
        }
    }
}

/// What every state has in common.
fn check(state: &CpuState) {
    let sys = &state.sys;
    assert_eq!(state.rflags & !0x003f_7fd5, flags::FIXED);
    assert!(
        sys.cr0 & cr0::PG == 0 || sys.cr0 & cr0::PE != 0,
        "paging without protection"
    );
    let long = sys.cr0 & cr0::PG != 0 && sys.cr4 & cr4::PAE != 0 && sys.efer & efer::LME != 0;
    assert!(sys.efer & efer::LMA == 0 || long, "long mode without paging");
    assert_eq!(state.debug[7] & !0xffff_23ff, dr7::FIXED);
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
/// If an instruction that did not happen left a trace in RIP or RFLAGS, or the state is one that no CPU can be in.
pub fn fuzz_body(bytes: &[u8]) {
    let mut source = Source64 { bytes, at: 0 };
    let state = state(&mut source);
    let (missing, read_only, device) = (source.word() as u16, source.word() as u16, source.word() as u16);
    let mut memory: Vec<u8> = bytes.iter().chain(&[0]).copied().cycle().take(SIZE).collect();
    if source.byte() & 1 != 0 {
        plant(&mut source, &state.sys, &mut memory);
    }
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
            Step::Done { trap } => {
                let due = cpu.due();
                assert_eq!(due.is_some(), trap);
                if !raise(&mut cpu, due) {
                    return;
                }
            }
            Step::Halt => {}
            Step::Repeat => assert_eq!(cpu.state.rip, rip),
            Step::Pending(_) => {
                assert_eq!(cpu.state.rip, rip);
                cpu.env.answered = true;
            }
            Step::Fault(exception) => {
                assert_eq!(cpu.state.rip, rip, "{exception:?}");
                assert_eq!((cpu.state.rflags ^ rflags) & !flags::STATUS, 0, "{exception:?}");
                if !raise(&mut cpu, Some(exception)) {
                    return;
                }
            }
            Step::Unsupported(_) | Step::TripleFault => return,
        }
        check(&cpu.state);
        let vector = source.byte();
        let interrupt = Event {
            exception: Exception::new(vector),
            source: Source::External,
        };
        if vector.is_multiple_of(8) && cpu.state.flag(flags::IF) && !cpu.state.interrupt_shadow {
            let delivered = cpu.deliver(interrupt).is_ok();
            check(&cpu.state);
            if !delivered {
                return;
            }
        }
    }
}

/// Delivers an exception and what that leaves to be delivered. Whether the CPU goes on.
fn raise(cpu: &mut Cpu<World>, exception: Option<Exception>) -> bool {
    let mut next = exception;
    for _ in 0..4 {
        let Some(exception) = next else { break };
        let event = Event {
            exception,
            source: Source::Exception,
        };
        let delivered = cpu.deliver(event);
        check(&cpu.state);
        if delivered.is_err() {
            return false;
        }
        next = cpu.due();
    }
    true
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
