//! The body of the fuzz target `soft_run`: arbitrary bytes as a guest of the software CPU, in each mode. Also run on
//! random bytes by an ordinary test.

use super::{SoftOptions, SoftVm};
use crate::backend::VcpuBackend;
use crate::exit::{VmEntry, VmExit};
use crate::regs::{DescriptorTable, Regs, Segment, SystemRegs};
use std::sync::Arc;
use umbra_memslots::ram::{GuestRam, HostMapping};
use umbra_memslots::{Gpa, GuestMemory, PAGE_SIZE, SlotLimits, SlotTable};

/// Pages of RAM from address 0 on; what follows is devices.
const PAGES: u64 = 32;
/// Page tables of the paged modes.
const TABLES: u64 = 0x8000;
/// Where code lies.
const CODE: u64 = 0x2000;
/// Instructions per input.
const INSTRUCTIONS: u64 = 256;
/// Exits per input.
const EXITS: usize = 64;

const PRESENT_WRITABLE_USER: u64 = 7;
const LARGE: u64 = 1 << 7;

/// Runs `bytes` as a guest: the first says the mode, the next are registers, the rest is code.
pub fn fuzz_body(bytes: &[u8]) {
    let Some((&mode, bytes)) = bytes.split_first() else {
        return;
    };
    let Ok(vm) = SoftVm::new(SoftOptions {
        mmio_caching: mode & 0x80 == 0,
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
    let (registers, code) = bytes.split_at(bytes.len().min(64));
    let end = code.len().min((TABLES - CODE) as usize);
    // It fits.
    let _ = ram.write(Gpa::new(CODE), &code[..end]);
    let (regs, system) = state(mode % 5, registers, &ram);
    let mut vcpu = vm.create_vcpu(ram.reader());
    if vcpu.set_system_regs(&system).is_err() || vcpu.set_regs(&regs).is_err() {
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

/// Real mode, 32-bit protected mode without and with paging, 64-bit mode at CPL 0 and 3.
fn state(mode: u8, registers: &[u8], ram: &GuestRam) -> (Regs, SystemRegs) {
    let mut words = registers.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    let mut word = || words.next().unwrap_or(0);
    let regs = Regs {
        rax: word(),
        rbx: word() % (2 * PAGES * PAGE_SIZE),
        rcx: word(),
        rdx: word(),
        rsi: word() % (2 * PAGES * PAGE_SIZE),
        rdi: word() % (2 * PAGES * PAGE_SIZE),
        rsp: 0x7000,
        rbp: word(),
        rip: if mode == 0 { CODE & 0xfff } else { CODE },
        rflags: 2 | word() & 0xcd5,
        ..Regs::default()
    };
    let paged = mode >= 2;
    if paged {
        // Identity: 4 MiB or 2 MiB from address 0 on.
        let entries: &[(u64, u64)] = if mode == 2 {
            &[(TABLES, PRESENT_WRITABLE_USER | LARGE)]
        } else {
            &[
                (TABLES, (TABLES + 0x1000) | PRESENT_WRITABLE_USER),
                (TABLES + 0x1000, (TABLES + 0x2000) | PRESENT_WRITABLE_USER),
                (TABLES + 0x2000, PRESENT_WRITABLE_USER | LARGE),
            ]
        };
        for (at, entry) in entries {
            // It fits.
            let _ = ram.write(Gpa::new(*at), &entry.to_le_bytes());
        }
    }
    let long = mode >= 3;
    let dpl = if mode == 4 { 3 } else { 0 };
    let segment = |kind| Segment {
        selector: u16::from(dpl) | 8,
        base: if mode == 0 { CODE & !0xfff } else { 0 },
        limit: if mode == 0 { 0xffff } else { u32::MAX },
        kind,
        dpl,
        non_system: true,
        present: true,
        db: (1..3).contains(&mode),
        granularity: mode != 0,
        ..Segment::default()
    };
    let (data, code) = (segment(3), segment(11));
    let table = DescriptorTable {
        base: 0x1000,
        limit: 0x7ff,
    };
    let system = SystemRegs {
        cs: Segment { long, ..code },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        gdt: table,
        idt: if mode == 0 {
            DescriptorTable { base: 0, limit: 0x3ff }
        } else {
            table
        },
        cr0: u64::from(mode != 0) | 0x10 | u64::from(paged) << 31,
        cr3: TABLES,
        cr4: if long { 1 << 5 } else { 1 << 4 } | 3 << 9,
        efer: if long { 0xd01 } else { 0 },
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
