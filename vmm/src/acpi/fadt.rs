//! The fixed description table (ACPI 6.5 section 5.2.9): hardware-reduced, with the ports for sleeping and for reset.

use super::{OEM, OEM_REVISION, OEM_TABLE};
use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use umbra_devices::models::pm::regs::{RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT};
use umbra_memslots::Gpa;

/// `IAPC_BOOT_ARCH` (table 5.11): there is no VGA. An i8042 is not announced, so that nobody waits for a keyboard; the
/// CMOS clock is there.
const BOOT_ARCH_LEGACY_DEVICES: u16 = 1;
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;

pub(super) fn table(dsdt: Gpa) -> Vec<u8> {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt.get())
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_NO_VGA).into();
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"UMBRAVMM").into();
    let mut bytes = Vec::new();
    fadt.finalize().to_aml_bytes(&mut bytes);
    bytes
}
