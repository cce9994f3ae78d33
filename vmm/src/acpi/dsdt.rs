//! The device table: AML for the serial port, the clock and the virtio devices (ACPI 6.5 chapters 6 and 20).

use super::{AcpiError, Platform, with_header};
use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope};
use umbra_devices::models::{cmos::regs::PORT as CMOS_PORT, pm::regs::SLP_TYP_S5, serial::regs::COM1_PORT};
use umbra_memslots::Gpa;

const REVISION: u8 = 2;
const COM1_IRQ: u32 = 4;
const COM1_PORTS: u8 = 8;
const RTC_PORTS: u8 = 2;
/// Two hexadecimal digits name a device.
const MAX_VIRTIO: usize = 256;

/// How an interrupt is signalled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// By a rising edge.
    Edge,
    /// By a high level.
    Level,
}

/// A virtio device with MMIO transport (virtio 1.3 section 4.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtioMmio {
    /// Its first register; with `bytes` below 4 GiB.
    pub base: Gpa,
    /// Size of its register range in bytes.
    pub bytes: u32,
    /// Its global system interrupt: the IOAPIC's input.
    pub gsi: u32,
    /// How it signals.
    pub trigger: Trigger,
}

pub(super) fn table(platform: &Platform) -> Result<Vec<u8>, AcpiError> {
    let count = platform.virtio_mmio.len();
    if count > MAX_VIRTIO {
        return Err(AcpiError::VirtioDevices { count, max: MAX_VIRTIO });
    }
    let mut aml = Vec::new();
    let zero = 0u8;
    Name::new(Path::new("_S5_"), &Package::new(vec![&SLP_TYP_S5, &zero, &zero, &zero])).to_aml_bytes(&mut aml);

    let mut devices = Vec::new();
    if platform.com1 {
        device(
            &mut devices,
            "COM1",
            &EISAName::new("PNP0501"),
            0,
            vec![
                &IO::new(COM1_PORT, COM1_PORT, 1, COM1_PORTS),
                &Interrupt::new(true, true, false, false, COM1_IRQ),
            ],
        );
    }
    if platform.rtc {
        device(
            &mut devices,
            "RTC_",
            &EISAName::new("PNP0B00"),
            0,
            vec![&IO::new(CMOS_PORT, CMOS_PORT, 1, RTC_PORTS)],
        );
    }
    for (index, virtio) in (0u8..=u8::MAX).zip(&platform.virtio_mmio) {
        let outside = AcpiError::VirtioAddress {
            base: virtio.base,
            bytes: virtio.bytes,
        };
        let base = u32::try_from(virtio.base.get()).map_err(|_| outside)?;
        if virtio.bytes == 0 || base.checked_add(virtio.bytes - 1).is_none() {
            return Err(outside);
        }
        let edge = virtio.trigger == Trigger::Edge;
        device(
            &mut devices,
            &format!("VR{index:02X}"),
            &"LNRO0005",
            index,
            vec![
                &Memory32Fixed::new(true, base, virtio.bytes),
                &Interrupt::new(true, edge, false, false, virtio.gsi),
            ],
        );
    }
    aml.extend(Scope::raw(Path::new("\\_SB_"), devices));
    Ok(with_header(*b"DSDT", REVISION, &aml))
}

/// Appends a device with its identifiers and resources.
fn device(aml: &mut Vec<u8>, name: &str, hid: &dyn Aml, uid: u8, resources: Vec<&dyn Aml>) {
    Device::new(
        Path::new(name),
        vec![
            &Name::new(Path::new("_HID"), hid),
            &Name::new(Path::new("_UID"), &uid),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
        ],
    )
    .to_aml_bytes(aml);
}
