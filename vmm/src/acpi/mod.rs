//! ACPI tables: what the guest is told of its processors, interrupt controllers and devices.
//!
//! The platform is *hardware-reduced* ACPI (ACPI 6.5 section 4.1): no fixed power-management hardware, only a sleep
//! control port and a reset port. Linux then uses neither the 8259s nor the PIT, takes its time from the TSC or the
//! hypervisor's clock, and has fewer devices to probe, which is a large part of its boot. A guest that ignores ACPI finds
//! the legacy chips all the same if the machine has them. The price: a Linux with EFI support does not use the reset
//! register of such a platform, but the way of [`layout::RESET_VECTOR`](crate::layout::RESET_VECTOR).
//!
//! Read in this order: [`Platform`] (the input), `fadt`, `madt`, `dsdt` (a table each), [`build`] (the whole).

mod dsdt;
mod fadt;
mod madt;

use crate::layout::{ACPI_END, ACPI_START};
use acpi_tables::{Aml, rsdp::Rsdp, xsdt::XSDT};
use thiserror::Error;
use umbra_memslots::Gpa;

pub use dsdt::{Trigger, VirtioMmio};

/// The most processors the tables describe. Identifiers up to 254 fit the xAPIC's eight bits; from 255 on x2APIC entries
/// are written.
pub const MAX_CPUS: u32 = 1024;

const OEM: [u8; 6] = *b"UMBRA ";
const OEM_TABLE: [u8; 8] = *b"UMBRAVMM";
const OEM_REVISION: u32 = 1;
/// Each table starts on such a boundary; the RSDP must (ACPI 6.5 section 5.2.5.1).
const ALIGNMENT: usize = 16;

/// The hardware that the tables describe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Platform {
    /// Number of processors, 1..=[`MAX_CPUS`]; processor `n` has APIC identifier `n`.
    pub cpus: u32,
    /// A 16550 at ports 0x3f8..=0x3ff with ISA interrupt 4.
    pub com1: bool,
    /// A CMOS clock at ports 0x70 and 0x71, without an interrupt.
    pub rtc: bool,
    /// Virtio devices with MMIO transport, `VR00` first.
    pub virtio_mmio: Vec<VirtioMmio>,
}

/// Why no tables can be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AcpiError {
    /// No or too many processors.
    #[error("{cpus} CPUs cannot be described to the guest: expected 1 to {}", MAX_CPUS)]
    Cpus {
        /// What was asked for.
        cpus: u32,
    },
    /// Too many virtio devices.
    #[error("{count} virtio-mmio devices cannot be described to the guest: at most {max}")]
    VirtioDevices {
        /// What was asked for.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// A virtio device that is not below 4 GiB.
    #[error("virtio-mmio device at {base} of {bytes} bytes: must lie below 4 GiB")]
    VirtioAddress {
        /// First address.
        base: Gpa,
        /// Size.
        bytes: u32,
    },
    /// The tables are larger than the room below 1 MiB.
    #[error("the ACPI tables have {bytes} bytes; there is room for {room}")]
    TooLarge {
        /// Their size.
        bytes: usize,
        /// Room in bytes.
        room: u64,
    },
}

/// The tables as they lie in guest memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AcpiTables {
    /// Address of the RSDP: the start.
    pub rsdp: Gpa,
    /// All of it, RSDP first.
    pub bytes: Vec<u8>,
}

/// Builds the tables for guest address `at`, which must be a multiple of 16 and have the room between
/// [`ACPI_START`] and [`ACPI_END`].
///
/// # Errors
/// See [`AcpiError`].
pub fn build(platform: &Platform, at: Gpa) -> Result<AcpiTables, AcpiError> {
    if !(1..=MAX_CPUS).contains(&platform.cpus) {
        return Err(AcpiError::Cpus { cpus: platform.cpus });
    }
    let mut bytes = vec![0; Rsdp::len()];
    let dsdt = append(&mut bytes, at, &dsdt::table(platform)?);
    let fadt = append(&mut bytes, at, &fadt::table(dsdt));
    let madt = append(&mut bytes, at, &madt::table(platform.cpus));

    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt.get());
    xsdt.add_entry(madt.get());
    let mut xsdt_bytes = Vec::new();
    xsdt.to_aml_bytes(&mut xsdt_bytes);
    let xsdt = append(&mut bytes, at, &xsdt_bytes);

    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt.get()).to_aml_bytes(&mut rsdp);
    bytes.splice(..rsdp.len(), rsdp);

    let room = ACPI_END.get() - ACPI_START.get();
    if u64::try_from(bytes.len()).map_or(true, |bytes| bytes > room) {
        return Err(AcpiError::TooLarge {
            bytes: bytes.len(),
            room,
        });
    }
    Ok(AcpiTables { rsdp: at, bytes })
}

/// Puts a table behind the others and gives its guest address.
fn append(bytes: &mut Vec<u8>, at: Gpa, table: &[u8]) -> Gpa {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    let offset = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    bytes.extend_from_slice(table);
    at.wrapping_add(offset)
}

/// A table with the standard header, of `revision`, with `body` behind it.
fn with_header(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    const HEADER_BYTES: u32 = 36;
    let mut table = acpi_tables::sdt::Sdt::new(signature, HEADER_BYTES, revision, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}
