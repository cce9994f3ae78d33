//! The ACPI tables: found as an operating system finds them, summed, and read by the reference compiler.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::process::Command;
use umbra_memslots::Gpa;
use umbra_vmm::acpi::{AcpiError, AcpiTables, MAX_CPUS, Platform, Trigger, VirtioMmio, build};
use umbra_vmm::layout::ACPI_START;

fn platform(cpus: u32) -> Platform {
    let device = |index: u32, trigger| VirtioMmio {
        base: Gpa::new(0xd000_0000 + u64::from(index) * 0x1000),
        bytes: 0x1000,
        gsi: 5 + index,
        trigger,
    };
    Platform {
        cpus,
        com1: true,
        rtc: true,
        virtio_mmio: vec![device(0, Trigger::Edge), device(1, Trigger::Level)],
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The tables by signature, walked from the RSDP; every checksum on the way is checked.
fn walk(tables: &AcpiTables) -> BTreeMap<String, Vec<u8>> {
    let at = |address: u64| usize::try_from(address - ACPI_START.get()).unwrap();
    let u32_at = |offset: usize| u32::from_le_bytes(tables.bytes[offset..offset + 4].try_into().unwrap());
    let u64_at = |offset: usize| u64::from_le_bytes(tables.bytes[offset..offset + 8].try_into().unwrap());
    let table = |address: u64| {
        assert_eq!(address % 16, 0);
        let start = at(address);
        let bytes = tables.bytes[start..start + usize::try_from(u32_at(start + 4)).unwrap()].to_vec();
        assert_eq!(sum(&bytes), 0, "{}", String::from_utf8_lossy(&bytes[..4]));
        (String::from_utf8(bytes[..4].to_vec()).unwrap(), bytes)
    };

    let rsdp = at(tables.rsdp.get());
    assert_eq!(&tables.bytes[rsdp..rsdp + 8], b"RSD PTR ");
    assert_eq!(
        (sum(&tables.bytes[rsdp..rsdp + 20]), sum(&tables.bytes[rsdp..rsdp + 36])),
        (0, 0)
    );
    let (name, xsdt) = table(u64_at(rsdp + 24));
    assert_eq!(name, "XSDT");
    let mut found: BTreeMap<_, _> = xsdt[36..]
        .chunks(8)
        .map(|entry| table(u64::from_le_bytes(entry.try_into().unwrap())))
        .collect();
    let dsdt = u64::from_le_bytes(found["FACP"][140..148].try_into().unwrap());
    found.extend([table(dsdt), (name, xsdt)]);
    found
}

#[test]
fn tables_are_found_from_the_root_with_good_sums() {
    for cpus in [1, 4, 254, 255, 256, MAX_CPUS] {
        let tables = walk(&build(&platform(cpus), ACPI_START).unwrap());
        assert_eq!(tables.keys().collect::<Vec<_>>(), ["APIC", "DSDT", "FACP", "XSDT"]);
    }
}

#[test]
fn every_cpu_has_one_interrupt_controller() {
    for cpus in [1, 3, 254, 255, 256, 1000] {
        let tables = walk(&build(&platform(cpus), ACPI_START).unwrap());
        let mut entries = &tables["APIC"][44..];
        let mut ids = Vec::new();
        let mut others = Vec::new();
        while !entries.is_empty() {
            let (entry, rest) = entries.split_at(usize::from(entries[1]));
            match entry[0] {
                0 => ids.push(u32::from(entry[3])),
                9 => ids.push(u32::from_le_bytes(entry[4..8].try_into().unwrap())),
                other => others.push(other),
            }
            entries = rest;
        }
        assert_eq!(ids, (0..cpus).collect::<Vec<_>>());
        assert_eq!(others, if cpus > 255 { vec![1, 2, 4, 10] } else { vec![1, 2, 4] });
    }
}

#[test]
fn fixed_table_names_the_sleep_and_reset_ports() {
    let tables = walk(&build(&platform(1), ACPI_START).unwrap());
    let fadt = &tables["FACP"];
    let port = |offset: usize| {
        (
            fadt[offset],
            u64::from_le_bytes(fadt[offset + 4..offset + 12].try_into().unwrap()),
        )
    };
    assert_eq!(
        u32::from_le_bytes(fadt[112..116].try_into().unwrap()) & (1 << 20 | 1 << 10),
        1 << 20 | 1 << 10
    );
    assert_eq!((port(244), port(256)), ((1, 0x600), (1, 0x601)));
    assert_eq!((port(116), fadt[128]), ((1, 0x604), 1));
}

#[test]
fn impossible_platforms_are_refused() {
    let refuse = |platform: &Platform| build(platform, ACPI_START).unwrap_err();
    assert_eq!(refuse(&platform(0)), AcpiError::Cpus { cpus: 0 });
    assert_eq!(
        refuse(&platform(MAX_CPUS + 1)).to_string(),
        "1025 CPUs cannot be described to the guest: expected 1 to 1024"
    );
    let mut many = platform(1);
    many.virtio_mmio = vec![many.virtio_mmio[0]; 257];
    assert_eq!(refuse(&many), AcpiError::VirtioDevices { count: 257, max: 256 });
    for (base, bytes) in [(1 << 32, 0x1000), (0xffff_f000, 0x1001), (0xd000_0000, 0)] {
        let mut outside = platform(1);
        outside.virtio_mmio[0].base = Gpa::new(base);
        outside.virtio_mmio[0].bytes = bytes;
        assert!(matches!(refuse(&outside), AcpiError::VirtioAddress { .. }));
    }
}

#[test]
fn reference_compiler_reads_what_was_meant() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("skipped: iasl is not installed");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let tables = walk(&build(&platform(3), ACPI_START).unwrap());
    let read = |name: &str| {
        let path = directory.path().join(format!("{name}.dat"));
        std::fs::write(&path, &tables[name]).unwrap();
        let output = Command::new("iasl").arg("-d").arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).to_string();
        assert!(
            output.status.success() && !said.contains("Error") && !said.contains("Warning"),
            "{said}"
        );
        std::fs::read_to_string(path.with_extension("dsl")).unwrap()
    };
    let dsdt = read("DSDT");
    for wanted in [
        r#"Name (_S5, Package (0x04)"#,
        r#"EisaId ("PNP0501")"#,
        r#"EisaId ("PNP0B00")"#,
        r#"Name (_HID, "LNRO0005")"#,
        "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive",
        "Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive",
        "0xD0001000,         // Address Base",
    ] {
        assert!(dsdt.contains(wanted), "{wanted} is not in\n{dsdt}");
    }
    // What was disassembled compiles again without a complaint that matters.
    let output = Command::new("iasl")
        .arg("-ve")
        .arg(directory.path().join("DSDT.dsl"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let fadt = read("FACP");
    assert!(fadt.contains("Hardware Reduced (V5) : 1"), "{fadt}");
    let madt = read("APIC");
    assert_eq!(madt.matches("Processor Local APIC").count(), 3, "{madt}");
}
