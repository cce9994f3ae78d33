//! PVH: 32-bit entry with a start-info structure in EBX (Xen `docs/misc/pvh.pandoc`,
//! `include/public/arch-x86/hvm/start_info.h`). Any kernel with the entry note can be started so, not only Linux.

use super::error::BootError;
use super::load::Environment;
use crate::layout::{BootArea, MapKind};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry,
    hvm_modlist_entry, hvm_start_info,
};
use umbra_memslots::Gpa;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemory};

/// Where the only module entry is: behind the start info, on its page.
const MODULE_OFFSET: u64 = 0x100;

/// Writes start info, module list and memory map, and gives the address for EBX.
pub(super) fn write<M: GuestMemory + ?Sized>(memory: &M, environment: &Environment<'_>) -> Result<Gpa, BootError> {
    let map = environment.layout.memory_map();
    let modules = BootArea::PARAMETERS.wrapping_add(MODULE_OFFSET);
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: BootArea::COMMAND_LINE.get(),
        rsdp_paddr: environment.rsdp.map_or(0, Gpa::get),
        memmap_paddr: BootArea::LISTS.get(),
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..hvm_start_info::default()
    };
    if let Some(initrd) = environment.initrd {
        info.nr_modules = 1;
        info.modlist_paddr = modules.get();
        let entry = hvm_modlist_entry {
            paddr: initrd.start.get(),
            size: initrd.bytes,
            ..hvm_modlist_entry::default()
        };
        put(memory, modules, entry)?;
    }
    for (index, entry) in (0u64..).zip(&map) {
        let kind = match entry.kind {
            MapKind::Usable => XEN_HVM_MEMMAP_TYPE_RAM,
            MapKind::Reserved => XEN_HVM_MEMMAP_TYPE_RESERVED,
        };
        let entry = hvm_memmap_table_entry {
            addr: entry.start.get(),
            size: entry.bytes,
            type_: kind,
            reserved: 0,
        };
        put(memory, BootArea::LISTS.wrapping_add(index * 24), entry)?;
    }
    put(memory, BootArea::PARAMETERS, info)?;
    Ok(BootArea::PARAMETERS)
}

fn put<M: GuestMemory + ?Sized, T: ByteValued>(memory: &M, at: Gpa, value: T) -> Result<(), BootError> {
    memory
        .write_obj(value, GuestAddress::from(at))
        .map_err(|source| BootError::Memory {
            gpa: at,
            what: "PVH start info",
            source,
        })
}
