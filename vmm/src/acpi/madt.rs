//! The interrupt controller table (ACPI 6.5 section 5.2.12): a local APIC for each CPU, one IOAPIC, and how the ISA
//! interrupts are wired to it.

use super::with_header;
use crate::layout::{IOAPIC_BASE, LOCAL_APIC_BASE};

const REVISION: u8 = 5;
const IOAPIC_ID: u8 = 0;
/// Identifiers from here on do not fit the xAPIC's eight bits (255 is its broadcast).
const FIRST_X2APIC_ID: u32 = 255;
const ENABLED: u32 = 1;
/// Interrupt input of the local APIC that the machine's NMI comes in by.
const NMI_INPUT: u8 = 1;
/// The PIT's ISA interrupt, and the IOAPIC input it is wired to on every PC and in KVM.
const PIT_IRQ: u8 = 0;
const PIT_INPUT: u32 = 2;

pub(super) fn table(cpus: u32) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(low(LOCAL_APIC_BASE.get()).to_le_bytes());
    body.extend(0u32.to_le_bytes());
    for id in 0..cpus {
        match u8::try_from(id) {
            Ok(id) if u32::from(id) < FIRST_X2APIC_ID => {
                // Processor Local APIC.
                body.extend([0, 8, id, id]);
                body.extend(ENABLED.to_le_bytes());
            }
            _ => {
                // Processor Local x2APIC.
                body.extend([9, 16, 0, 0]);
                body.extend(id.to_le_bytes());
                body.extend(ENABLED.to_le_bytes());
                body.extend(id.to_le_bytes());
            }
        }
    }
    // I/O APIC, inputs from 0 on.
    body.extend([1, 12, IOAPIC_ID, 0]);
    body.extend(low(IOAPIC_BASE.get()).to_le_bytes());
    body.extend(0u32.to_le_bytes());
    // Interrupt Source Override, ISA bus, trigger and polarity as that bus has them.
    body.extend([2, 10, 0, PIT_IRQ]);
    body.extend(PIT_INPUT.to_le_bytes());
    body.extend(0u16.to_le_bytes());
    // Local APIC NMI of all processors, and of those with a wide identifier.
    body.extend([4, 6, 0xff, 0, 0, NMI_INPUT]);
    if cpus > FIRST_X2APIC_ID {
        body.extend([10, 12, 0, 0]);
        body.extend(u32::MAX.to_le_bytes());
        body.extend([NMI_INPUT, 0, 0, 0]);
    }
    with_header(*b"APIC", REVISION, &body)
}

/// The controllers' addresses are below 4 GiB.
#[expect(clippy::cast_possible_truncation, reason = "constants below 4 GiB")]
const fn low(address: u64) -> u32 {
    address as u32
}
