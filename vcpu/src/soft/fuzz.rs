//! The body of the fuzz target `soft_run`: arbitrary bytes as a guest of the software CPU, in each mode and at each
//! privilege level, with arbitrary registers and descriptor tables. Also run on random bytes by an ordinary test.

use super::{SoftOptions, SoftVcpu, SoftVm};
use crate::backend::VcpuBackend;
use crate::exit::{VmEntry, VmExit};
use crate::regs::{DescriptorTable, Regs, Segment, SystemRegs};
use std::sync::Arc;
use umbra_devices::IrqLine;
use umbra_devices::models::fpu_error::FpuErrorLogic;
use umbra_memslots::ram::{GuestRam, HostMapping};
use umbra_memslots::{Gpa, GuestMemory, PAGE_SIZE, SlotLimits, SlotTable};

/// Pages of RAM from address 0 on; what follows is devices.
const PAGES: u64 = 32;
/// Page tables of the paged modes.
const TABLES: u64 = 0x8000;
/// Where descriptor tables, task states and code lie.
const GDT: u64 = 0x1000;
const IDT: u64 = 0x1800;
const TASKS: u64 = 0xc000;
const CODE: u64 = 0x2000;
/// Instructions per input.
const INSTRUCTIONS: u64 = 256;
/// Exits per input.
const EXITS: usize = 64;

const PRESENT_WRITABLE_USER: u64 = 7;
const LARGE: u64 = 1 << 7;

/// The mode that the guest begins in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Real,
    /// Protected, with code segments of 16 bits.
    Bits16,
    Bits32,
    Paged,
    Pae,
    Virtual8086,
    Compatibility,
    Long,
}

impl Mode {
    const ALL: [Self; 8] = [
        Self::Real,
        Self::Bits16,
        Self::Bits32,
        Self::Paged,
        Self::Pae,
        Self::Virtual8086,
        Self::Compatibility,
        Self::Long,
    ];

    fn is_long(self) -> bool {
        matches!(self, Self::Compatibility | Self::Long)
    }

    /// Segments are paragraphs.
    fn has_paragraphs(self) -> bool {
        matches!(self, Self::Real | Self::Virtual8086)
    }

    fn is_paged(self) -> bool {
        !matches!(self, Self::Real | Self::Bits16 | Self::Bits32)
    }
}

/// Bytes used up eight at a time; zero behind the end.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn next(&mut self) -> u64 {
        let (first, rest) = self.0.split_at(self.0.len().min(8));
        self.0 = rest;
        let mut word = [0; 8];
        word[..first.len()].copy_from_slice(first);
        u64::from_le_bytes(word)
    }

    /// In RAM or as far again behind it.
    fn address(&mut self) -> u64 {
        self.next() % (2 * PAGES * PAGE_SIZE)
    }
}

/// Runs `bytes` as a guest: the first two say the mode and what else is arbitrary, the next are registers and descriptors,
/// the rest is code.
pub fn fuzz_body(bytes: &[u8]) {
    let &[mode, options, ref bytes @ ..] = bytes else {
        return;
    };
    let Ok(vm) = SoftVm::new(SoftOptions {
        mmio_caching: options & 0x80 == 0,
    }) else {
        return;
    };
    let mut slots = SlotTable::new(SlotLimits::X86_64);
    slots.add_observer(vm.slot_follower());
    let ram = GuestRam::from_table(slots);
    let Ok(mapping) = HostMapping::anonymous(PAGES * PAGE_SIZE) else {
        return;
    };
    if ram.map(Gpa::new(0), Arc::new(mapping)).is_err() {
        return;
    }
    let (registers, code) = bytes.split_at(bytes.len().min(if options & 4 == 0 { 64 } else { 512 }));
    let end = code.len().min((TABLES - CODE) as usize);
    // It fits.
    let _ = ram.write(Gpa::new(CODE), &code[..end]);
    let mode = Mode::ALL[usize::from(mode) % Mode::ALL.len()];
    let mut vcpu = vm.create_vcpu(ram.reader());
    if begin(&mut vcpu, mode, options, Words(registers), &ram).is_none() {
        return;
    }
    vcpu.stop_after(INSTRUCTIONS);
    let mut entry = VmEntry::Resume;
    for _ in 0..EXITS {
        let Ok(exit) = vcpu.run(entry) else {
            return;
        };
        entry = match exit {
            VmExit::Interrupted | VmExit::Shutdown | VmExit::EmulationFailure { .. } => return,
            VmExit::ReadMsr { .. } | VmExit::WriteMsr { .. } => VmEntry::Fault,
            exit if exit.wants_value() => VmEntry::Value(0x5a5a_a5a5_1234_8001),
            _ => VmEntry::Resume,
        };
    }
}

/// Sets all registers. Bits of `options`: 0 and 1 the privilege level, 2 descriptors and debug registers from the input,
/// 3 segments too, 4 no fast operations, 5 somebody at FERR#, 6 descriptor tables anywhere.
fn begin(vcpu: &mut SoftVcpu, mode: Mode, options: u8, mut words: Words<'_>, ram: &GuestRam) -> Option<()> {
    let has = |bit: u8| options & 1 << bit != 0;
    let (regs, mut system) = state(mode, options & 3, &mut words);
    write_tables(mode, ram);
    if has(2) {
        write_descriptors(&mut words, ram);
    }
    let debug: [u64; 5] = std::array::from_fn(|_| words.address());
    let control = words.next();
    if has(3) {
        for segment in [
            &mut system.ds,
            &mut system.es,
            &mut system.fs,
            &mut system.gs,
            &mut system.ss,
        ] {
            let word = words.next();
            segment.base = word & 0xffff;
            segment.limit = (word >> 16) as u32;
            segment.kind = (word >> 48) as u8 & 15;
            segment.present = word >> 52 & 3 != 0;
            segment.db ^= word >> 54 & 1 != 0;
        }
    }
    if has(6) {
        for table in [&mut system.gdt, &mut system.idt] {
            let word = words.next();
            (table.base, table.limit) = (words.address(), word as u16);
        }
    }
    vcpu.set_system_regs(&system).ok()?;
    vcpu.set_regs(&regs).ok()?;
    vcpu.set_fast(!has(4));
    if has(5) {
        vcpu.set_fpu_errors(Arc::new(FpuErrorLogic::new(IrqLine::detached())));
    }
    if has(2) {
        let state = vcpu.state_mut();
        state.debug[..4].copy_from_slice(&debug[..4]);
        state.debug[7] = control & 0xffff_23ff | 0x400;
        state.interrupt_shadow = debug[4] & 1 != 0;
    }
    Some(())
}

/// The tables of the mode: 2 MiB or more from address 0 on are mapped to themselves.
fn write_tables(mode: Mode, ram: &GuestRam) {
    let entries: &[(u64, u64)] = match mode {
        Mode::Paged | Mode::Virtual8086 => &[(TABLES, PRESENT_WRITABLE_USER | LARGE)],
        Mode::Pae => &[
            (TABLES, (TABLES + 0x1000) | 1),
            (TABLES + 0x1000, PRESENT_WRITABLE_USER | LARGE),
        ],
        Mode::Compatibility | Mode::Long => &[
            (TABLES, (TABLES + 0x1000) | PRESENT_WRITABLE_USER),
            (TABLES + 0x1000, (TABLES + 0x2000) | PRESENT_WRITABLE_USER),
            (TABLES + 0x2000, PRESENT_WRITABLE_USER | LARGE),
        ],
        _ => &[],
    };
    for (at, entry) in entries {
        // It fits.
        let _ = ram.write(Gpa::new(*at), &entry.to_le_bytes());
    }
}

/// Descriptors and gates of kinds that the input chooses, which lead to each other, to code and to task states.
fn write_descriptors(words: &mut Words<'_>, ram: &GuestRam) {
    for (table, entries) in [(GDT, 16), (IDT, 24)] {
        for index in 0..entries {
            let word = words.next();
            let access = word & 0xff;
            let selector = word >> 8 & 0x7b;
            let entry = match access & 0x1f {
                // Gates.
                4..=7 | 12 | 14 | 15 => (CODE + (word >> 16 & 0xff)) | selector << 16,
                // Task states and LDTs.
                0..=11 => 0xff | (TASKS + 0x100 * (word >> 16 & 7)) << 16,
                _ => 0xffff | (word >> 16 & 0xf0) << 48,
            };
            // It fits.
            let _ = ram.write(Gpa::new(table + 8 * index), &(entry | access << 40).to_le_bytes());
        }
    }
    for task in 0..8 {
        for field in 0..13 {
            let word = words.next();
            // Registers, of which some are addresses, and selectors.
            let value = if field < 9 {
                word & 0x7fff_2fff
            } else {
                word & 0x007b_007b
            };
            let _ = ram.write(Gpa::new(TASKS + 0x100 * task + 8 * field), &value.to_le_bytes());
        }
    }
}

fn state(mode: Mode, level: u8, words: &mut Words<'_>) -> (Regs, SystemRegs) {
    let paragraphs = mode.has_paragraphs();
    let virtual_8086 = u64::from(mode == Mode::Virtual8086) << 17;
    let regs = Regs {
        rax: words.next(),
        rbx: words.address(),
        rcx: words.next(),
        rdx: words.next(),
        rsi: words.address(),
        rdi: words.address(),
        rsp: 0x7000,
        rbp: words.next(),
        rip: if paragraphs { CODE & 0xfff } else { CODE },
        rflags: 2 | words.next() & 0x0025_7fd5 | virtual_8086,
        ..Regs::default()
    };
    let dpl = match mode {
        Mode::Real => 0,
        Mode::Virtual8086 => 3,
        _ => level,
    };
    let base = if paragraphs { CODE & !0xfff } else { 0 };
    let narrow = paragraphs || mode == Mode::Bits16;
    let segment = |kind| Segment {
        selector: if paragraphs {
            (base >> 4) as u16
        } else {
            8 | u16::from(dpl)
        },
        base,
        limit: if narrow { 0xffff } else { u32::MAX },
        kind,
        dpl,
        non_system: true,
        present: true,
        db: !narrow,
        granularity: !narrow,
        ..Segment::default()
    };
    let (data, code) = (segment(3), segment(if paragraphs { 3 } else { 11 }));
    let system = SystemRegs {
        cs: Segment {
            long: mode == Mode::Long,
            db: code.db && mode != Mode::Long,
            ..code
        },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment {
            selector: 0x28,
            base: TASKS,
            limit: 0xff,
            kind: 11,
            present: true,
            ..Segment::default()
        },
        gdt: DescriptorTable { base: GDT, limit: 0x7f },
        idt: if mode == Mode::Real {
            DescriptorTable { base: 0, limit: 0x3ff }
        } else {
            DescriptorTable {
                base: IDT,
                limit: 0x7ff,
            }
        },
        cr0: u64::from(mode != Mode::Real) | 0x10 | u64::from(mode.is_paged()) << 31,
        cr3: TABLES,
        cr4: 3 << 9
            | match mode {
                Mode::Pae | Mode::Compatibility | Mode::Long => 1 << 5,
                _ => 1 << 4,
            },
        efer: if mode.is_long() { 0xd01 } else { 0 },
        ..SystemRegs::default()
    };
    (regs, system)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn arbitrary_guests_come_to_an_end_without_panic(bytes in prop::collection::vec(any::<u8>(), 64..1024)) {
            super::fuzz_body(&bytes);
        }
    }
}
