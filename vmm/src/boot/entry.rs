//! The boot CPU's registers at the first instruction: long mode with our page tables, or protected mode without paging.
//!
//! Segment state follows the boot protocols (Linux `Documentation/arch/x86/boot.rst` "64-bit boot protocol", Xen
//! `docs/misc/pvh.pandoc`, Multiboot 0.6.96 section 3.2), the hidden parts SDM vol. 3A section 3.4.

use super::error::BootError;
use super::page_tables;
use crate::layout::{BootArea, LOCAL_APIC_BASE};
use umbra_memslots::Gpa;
use umbra_vcpu::regs::{DescriptorTable, Regs, Segment, SystemRegs};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;
const APIC_BASE_BSP: u64 = 1 << 8;
const APIC_BASE_ENABLE: u64 = 1 << 11;

const KIND_DATA: u8 = 0x3;
const KIND_BUSY_TSS: u8 = 0xb;
const KIND_CODE: u8 = 0xb;
const KIND_LDT: u8 = 0x2;

/// Mode in which the kernel is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// 64-bit, identity map of the first 4 GiB, selectors 0x10 and 0x18 as Linux wants.
    Long,
    /// 32-bit flat without paging, selectors 0x08 and 0x10.
    Protected,
}

/// Writes the descriptor table (and for long mode the page tables) and gives the registers for entering at `entry`
/// with an otherwise empty register file.
pub(super) fn prepare<M: GuestMemory + ?Sized>(
    memory: &M,
    mode: Mode,
    entry: Gpa,
) -> Result<(Regs, SystemRegs), BootError> {
    let (code_selector, long) = match mode {
        Mode::Long => (0x10, true),
        Mode::Protected => (0x08, false),
    };
    let code = flat(code_selector, KIND_CODE, long);
    let data = flat(code_selector + 8, KIND_DATA, false);
    let tss = Segment {
        selector: code_selector + 16,
        limit: 0x67,
        kind: KIND_BUSY_TSS,
        present: true,
        ..Segment::default()
    };
    let gdt = write_gdt(memory, &[code, data, tss])?;

    let mut system = SystemRegs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: tss,
        ldt: Segment {
            kind: KIND_LDT,
            unusable: true,
            ..Segment::default()
        },
        gdt,
        cr0: CR0_PE | CR0_ET,
        apic_base: LOCAL_APIC_BASE.get() | APIC_BASE_ENABLE | APIC_BASE_BSP,
        ..SystemRegs::default()
    };
    if long {
        system.cr3 = page_tables::write(memory)?.get();
        system.cr4 = CR4_PAE;
        system.cr0 |= CR0_PG;
        system.efer = EFER_LME | EFER_LMA;
    }
    let regs = Regs {
        rip: entry.get(),
        rsp: BootArea::STACK_TOP.get(),
        rflags: RFLAGS_RESERVED,
        ..Regs::default()
    };
    Ok((regs, system))
}

/// A segment of the whole 4 GiB.
fn flat(selector: u16, kind: u8, long: bool) -> Segment {
    Segment {
        selector,
        limit: u32::MAX,
        kind,
        non_system: true,
        present: true,
        long,
        db: !long,
        granularity: true,
        ..Segment::default()
    }
}

/// Writes each segment's descriptor at its selector, zero elsewhere.
fn write_gdt<M: GuestMemory + ?Sized>(memory: &M, segments: &[Segment]) -> Result<DescriptorTable, BootError> {
    // Null, up to four descriptors, and the upper half of a 64-bit task-state descriptor, which is zero.
    let mut table = [0; 6];
    for segment in segments {
        if let Some(slot) = table.get_mut(usize::from(segment.selector >> 3)) {
            *slot = descriptor(segment);
        }
    }
    for (index, value) in (0u64..).zip(table) {
        let at = BootArea::GDT.wrapping_add(index * 8);
        memory
            .write_obj(value.to_le(), GuestAddress::from(at))
            .map_err(|source| BootError::Memory {
                gpa: at,
                what: "descriptor table",
                source,
            })?;
    }
    Ok(DescriptorTable {
        base: BootArea::GDT.get(),
        limit: 6 * 8 - 1,
    })
}

/// A segment as it stands in a descriptor table (SDM vol. 3A figure 3-8).
fn descriptor(segment: &Segment) -> u64 {
    let limit = u64::from(if segment.granularity {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let bit = |flag: bool, position: u32| u64::from(flag) << position;
    limit & 0xffff
        | (segment.base & 0xff_ffff) << 16
        | u64::from(segment.kind & 0xf) << 40
        | bit(segment.non_system, 44)
        | u64::from(segment.dpl & 3) << 45
        | bit(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | bit(segment.available, 52)
        | bit(segment.long, 53)
        | bit(segment.db, 54)
        | bit(segment.granularity, 55)
        | (segment.base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryMmap;

    #[test]
    fn descriptors_have_the_well_known_values() {
        assert_eq!(descriptor(&flat(0x10, KIND_CODE, true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&flat(0x08, KIND_CODE, false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&flat(0x18, KIND_DATA, false)), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn table_in_memory_agrees_with_the_loaded_segments() {
        for (mode, code) in [(Mode::Long, 0x10), (Mode::Protected, 0x08)] {
            let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
            let (regs, system) = prepare(&memory, mode, Gpa::new(0x10_0000)).unwrap();
            assert_eq!((regs.rip, regs.rflags, system.cs.selector), (0x10_0000, 2, code));
            for segment in [system.cs, system.ss, system.tr] {
                let at = system.gdt.base + u64::from(segment.selector);
                assert_eq!(memory.read_obj::<u64>(GuestAddress(at)).unwrap(), descriptor(&segment));
            }
            assert_eq!(system.cr0 >> 31 & 1, u64::from(mode == Mode::Long));
        }
    }
}
