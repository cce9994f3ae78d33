//! Linux's own boot protocol: the zero page (Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`,
//! `struct boot_params`).

use super::error::BootError;
use super::load::Environment;
use crate::layout::{BootArea, MapKind};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use umbra_memslots::Gpa;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// "HdrS".
pub(super) const HEADER_MAGIC: u32 = 0x5372_6448;
/// At offset 0x1fe of a bzImage.
pub(super) const BOOT_FLAG: u16 = 0xaa55;
/// A loader without an assigned number.
const LOADER_UNKNOWN: u8 = 0xff;
/// `vid_mode`: leave the display as it is.
const VIDEO_NORMAL: u16 = 0xffff;
/// `loadflags`: the protected-mode code was loaded high.
const LOADED_HIGH: u8 = 1;
/// The protocol version whose fields are filled in for an image without a setup header.
const VERSION: u16 = 0x020f;

/// The setup header for a kernel that has none: an ELF file entered at its 64-bit entry point.
pub(super) fn plain_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: VERSION,
        loadflags: LOADED_HIGH,
        kernel_alignment: 0x0100_0000,
        ..setup_header::default()
    }
}

/// Writes the zero page, with `header` for its setup header, and gives its address for RSI.
pub(super) fn write<M: GuestMemory + ?Sized>(
    memory: &M,
    mut header: setup_header,
    environment: &Environment<'_>,
) -> Result<Gpa, BootError> {
    header.type_of_loader = LOADER_UNKNOWN;
    header.vid_mode = VIDEO_NORMAL;
    header.cmd_line_ptr = low(BootArea::COMMAND_LINE.get());

    let mut params = boot_params::default();
    if let Some(initrd) = environment.initrd {
        header.ramdisk_image = low(initrd.start.get());
        header.ramdisk_size = low(initrd.bytes);
    }
    params.hdr = header;
    params.acpi_rsdp_addr = environment.rsdp.map_or(0, Gpa::get);
    let mut count = 0;
    // The layout has five entries at most, the table 128.
    let mut table = params.e820_table;
    for (slot, entry) in table.iter_mut().zip(environment.layout.memory_map()) {
        let kind = match entry.kind {
            MapKind::Usable => 1,
            MapKind::Reserved => 2,
        };
        *slot = boot_e820_entry {
            addr: entry.start.get(),
            size: entry.bytes,
            r#type: kind,
        };
        count += 1;
    }
    params.e820_table = table;
    params.e820_entries = count;

    memory
        .write_obj(params, GuestAddress::from(BootArea::PARAMETERS))
        .map_err(|source| BootError::Memory {
            gpa: BootArea::PARAMETERS,
            what: "boot parameters",
            source,
        })?;
    Ok(BootArea::PARAMETERS)
}

/// All addresses and sizes in the zero page are of things placed in RAM below 4 GiB.
#[expect(clippy::cast_possible_truncation, reason = "placed below 4 GiB")]
fn low(value: u64) -> u32 {
    debug_assert!(value <= u64::from(u32::MAX));
    value as u32
}
