//! Reports on guests that can't go on: what a person reads must be true and be of use.
#![cfg(target_arch = "x86_64")]

mod support;

use iced_x86::code_asm::rax;
use support::{Guest, run};
use umbra_memslots::testing::VecMemory;
use umbra_memslots::{Gpa, Gva};
use umbra_vcpu::exit::{FatalExit, InsnBytes, VmEntry, VmExit};
use umbra_vcpu::handle::GuestEnd;
use umbra_vcpu::kvm::Irqchip;
use umbra_vcpu::regs::{DescriptorTable, Regs, Segment, SystemRegs};
use umbra_vcpu::report::Report;
use umbra_vcpu::report::code::disassemble;
use umbra_vcpu::report::mode::CpuMode;
use umbra_vcpu::report::walk::Walk;
use umbra_vcpu::scripted::ScriptedVcpu;

const PG: u64 = 1 << 31 | 1;
const PAE: u64 = 1 << 5;
const PSE: u64 = 1 << 4;
const LA57: u64 = 1 << 12;
const LMA: u64 = 1 << 10 | 1 << 8;

/// Entries (address, value) in 1 MiB of memory from 0.
fn memory(entries: &[(u64, u64)]) -> VecMemory {
    let memory = VecMemory::new(1 << 20);
    for (at, value) in entries {
        memory.poke(Gpa::new(*at), &value.to_le_bytes());
    }
    memory
}

fn paging(cr4: u64, efer: u64) -> SystemRegs {
    SystemRegs {
        cr0: PG,
        cr3: 0x1000,
        cr4,
        efer,
        ..SystemRegs::default()
    }
}

/// Name, paging, address, the tables' entries (address, value), where it leads.
type WalkCase = (&'static str, SystemRegs, u64, &'static [(u64, u64)], Option<u64>);

#[test]
fn walk_follows_every_paging_mode_and_page_size() {
    let cases: [WalkCase; 10] = [
        ("no paging", SystemRegs::default(), 0x1_2345, &[], Some(0x1_2345)),
        (
            "32-bit, 4 KiB",
            paging(0, 0),
            0x0040_3abc,
            &[(0x1004, 0x2003), (0x200c, 0x5_5003)],
            Some(0x5_5abc),
        ),
        (
            "32-bit, 4 MiB",
            paging(PSE, 0),
            0x0040_3abc,
            &[(0x1004, 0x0140_0083)],
            Some(0x0140_3abc),
        ),
        (
            "32-bit, 4 MiB above 4 GiB",
            paging(PSE, 0),
            0x0040_3abc,
            &[(0x1004, 0x0140_2083)],
            Some(0x1_0140_3abc),
        ),
        (
            "PAE, 2 MiB",
            paging(PAE, 0),
            0xc020_1234,
            &[(0x1018, 0x2001), (0x2008, 0x6_0020_0083)],
            Some(0x6_0020_1234),
        ),
        (
            "4 levels, 4 KiB",
            paging(PAE, LMA),
            0xffff_8000_0020_1234,
            &[
                (0x1800, 0x2003),
                (0x2000, 0x3003),
                (0x3008, 0x4003),
                (0x4008, 0x8000_0000_0009_9003),
            ],
            Some(0x9_9234),
        ),
        (
            "4 levels, 1 GiB",
            paging(PAE, LMA),
            0x4123_4567,
            &[(0x1000, 0x2003), (0x2008, 0x8000_0083)],
            Some(0x8123_4567),
        ),
        (
            "5 levels, 2 MiB",
            paging(PAE | LA57, LMA),
            0x0001_0000_0000_0000,
            &[
                (0x1008, 0x2003),
                (0x2000, 0x3003),
                (0x3000, 0x4003),
                (0x4000, 0x60_0083),
            ],
            Some(0x60_0000),
        ),
        ("not present", paging(PAE, LMA), 0x1000, &[(0x1000, 0x2003)], None),
        (
            "table where no memory is",
            paging(PAE, LMA),
            0x1000,
            &[(0x1000, 0x7000_0003)],
            None,
        ),
    ];
    for (name, system, gva, entries, gpa) in cases {
        let walk = Walk::of(Gva::new(gva), &system, &memory(entries));
        assert_eq!(walk.gpa, gpa.map(Gpa::new), "{name}: {walk}");
    }
    let lost = Walk::of(Gva::new(0x1000), &paging(PAE, LMA), &memory(&[(0x1000, 0x7000_0003)]));
    assert_eq!(
        lost.to_string(),
        "0x1000 -> PML4E at 0x1000 = 0x70000003 -> PDPTE at 0x70000000: no memory there"
    );
    let absent = Walk::of(Gva::new(0x1000), &paging(PAE, LMA), &memory(&[(0x1000, 0x2003)]));
    assert_eq!(
        absent.to_string(),
        "0x1000 -> PML4E at 0x1000 = 0x2003 -> PDPTE at 0x2000 = 0x0 (not present)"
    );
}

#[test]
fn mode_decides_how_bytes_become_instructions() {
    let mode = |system: SystemRegs, rflags| CpuMode::of(&system, rflags);
    let protected = SystemRegs {
        cr0: 1,
        ..SystemRegs::default()
    };
    let big = Segment {
        db: true,
        ..Segment::default()
    };
    let long = Segment {
        long: true,
        ..Segment::default()
    };
    assert_eq!(mode(SystemRegs::default(), 0), CpuMode::Real);
    assert_eq!(mode(protected, 0), CpuMode::Protected16);
    assert_eq!(mode(protected, 1 << 17), CpuMode::Virtual8086);
    assert_eq!(mode(SystemRegs { cs: big, ..protected }, 0), CpuMode::Protected32);
    assert_eq!(
        mode(
            SystemRegs {
                cs: long,
                efer: LMA,
                ..protected
            },
            0
        ),
        CpuMode::Long
    );
    assert_eq!(
        mode(
            SystemRegs {
                cs: big,
                efer: LMA,
                ..protected
            },
            0
        ),
        CpuMode::Compatibility32
    );
    assert_eq!(mode(SystemRegs { efer: LMA, ..protected }, 0), CpuMode::Compatibility16);
    let text = |bytes: &[u8], mode| {
        disassemble(bytes, 0x7c00, mode)
            .into_iter()
            .map(|line| line.text)
            .collect::<Vec<_>>()
    };
    assert_eq!(text(&[0xb8, 0x34, 0x12, 0xf4], CpuMode::Real), ["mov ax,0x1234", "hlt"]);
    assert_eq!(text(&[0x48, 0x89, 0xd8], CpuMode::Long), ["mov rax,rbx"]);
    assert_eq!(
        text(&[0x48, 0x89, 0xd8], CpuMode::Protected32),
        ["dec eax", "mov eax,ebx"]
    );
    // A window that cuts the last instruction shows only whole ones; one that is no instruction at all is said to be so.
    assert_eq!(text(&[0xf4, 0x48, 0xb8, 1, 2], CpuMode::Long), ["hlt"]);
    assert_eq!(text(&[0x06], CpuMode::Long), ["(bad)"]);
}

#[test]
fn every_cause_has_a_headline_and_something_to_try() {
    let memory = memory(&[(0x7c00, 0x9090_90f4)]);
    let told = InsnBytes::new(&[0x0f, 0x0b]);
    let internal = |suberror| {
        GuestEnd::Fatal(FatalExit::Internal {
            suberror,
            data: vec![0x30],
        })
    };
    let cases = [
        (GuestEnd::Shutdown, "triple fault", "no IDT"),
        (GuestEnd::Crash, "crashed", "console"),
        (
            GuestEnd::EmulationFailure { bytes: told },
            "could not execute `hlt`",
            "device access",
        ),
        (
            GuestEnd::Fatal(FatalExit::FailEntry {
                reason: 0x8000_0021,
                cpu: 3,
            }),
            "host CPU 3",
            "unrestricted guest",
        ),
        (
            GuestEnd::Fatal(FatalExit::FailEntry {
                reason: u64::MAX,
                cpu: 0,
            }),
            "refused to enter",
            "VMEXIT_INVALID",
        ),
        (internal(2), "simultaneous exceptions", "interrupt stack"),
        (internal(3), "event delivery failed", "IDT, TSS or stack"),
        (internal(4), "unexpected exit reason", "newer host kernel"),
        (internal(99), "unknown", "dmesg"),
        (
            GuestEnd::Fatal(FatalExit::MemoryFault {
                gpa: Some(Gpa::new(0x5000)),
                detail: "Bad address".into(),
            }),
            "guest address 0x5000",
            "truncated",
        ),
        (
            GuestEnd::Fatal(FatalExit::Unknown {
                reason: 37,
                name: "KVM_EXIT_NOTIFY",
            }),
            "KVM_EXIT_NOTIFY",
            "older than",
        ),
    ];
    for (cause, headline, advice) in cases {
        let mut vcpu = ScriptedVcpu::default();
        vcpu.regs = Regs {
            rip: 0x7c00,
            rflags: 0x202,
            ..Regs::default()
        };
        let report = Report::capture(1, &mut vcpu, &memory, cause.clone());
        assert!(report.headline().contains(headline), "{cause:?}: {}", report.headline());
        assert!(
            report.advice().iter().any(|text| text.contains(advice)),
            "{cause:?}: {:?}",
            report.advice()
        );
        let text = report.to_string();
        assert!(
            text.contains("real mode") && text.contains("> 0x0000000000007c00  f4") && text.contains(" IF"),
            "{text}"
        );
    }
}

#[test]
fn unmapped_code_is_named_as_such() {
    let mut vcpu = ScriptedVcpu::default();
    vcpu.regs.rip = 0xffff_ffff_8100_0000;
    vcpu.system_regs = SystemRegs {
        cs: Segment {
            long: true,
            ..Segment::default()
        },
        ..paging(PAE, LMA)
    };
    vcpu.system_regs.idt = DescriptorTable {
        base: 0x500,
        limit: 0xfff,
    };
    let bytes = InsnBytes::default();
    let report = Report::capture(0, &mut vcpu, &memory(&[]), GuestEnd::EmulationFailure { bytes });
    assert_eq!(report.headline(), "the host could not fetch the guest's instruction");
    assert!(
        report.advice()[0].starts_with("the guest's page tables do not map RIP"),
        "{:?}",
        report.advice()
    );
    vcpu.system_regs.cr0 = 0;
    vcpu.regs.rip = 0x8000_0000;
    let report = Report::capture(0, &mut vcpu, &memory(&[]), GuestEnd::EmulationFailure { bytes });
    assert!(report.advice()[0].starts_with("RIP leads to guest address 0x80000000, where there is no memory"));
}

#[test]
fn triple_fault_of_a_real_guest_shows_the_instruction_that_began_it() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = guest.long_mode(0, |a| {
        a.mov(rax, 0x1234_5678_9abc_def0u64)?;
        a.ud2()
    });
    let mut system = umbra_vcpu::backend::VcpuBackend::system_regs(&mut vcpu).unwrap();
    system.idt.limit = 0;
    umbra_vcpu::backend::VcpuBackend::set_system_regs(&mut vcpu, &system).unwrap();
    assert_eq!(run(&mut vcpu, VmEntry::Resume), VmExit::Shutdown);
    let slots = guest.table.slots(umbra_memslots::AddressSpaceId::Normal);
    let report = Report::capture(0, &mut vcpu, &slots, GuestEnd::Shutdown);
    println!("{report}");
    if report.regs.is_some_and(|regs| regs.rip == 0xfff0) {
        assert!(report.advice()[0].contains("after INIT"));
        return;
    }
    assert_eq!(report.code[0].text, "ud2");
    assert_eq!(report.mode, Some(CpuMode::Long));
    assert!(report.to_string().contains("rax 123456789abcdef0"));
    assert_eq!(report.rip_walk.unwrap().steps.len(), 3);
}
