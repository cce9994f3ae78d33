//! What real guests do to the KVM backend: every width, every direction, in pieces, in repetition, to the end.
#![cfg(target_arch = "x86_64")]

mod support;

use iced_x86::code_asm::*;
use support::{CODE, Guest, MMIO, run};
use umbra_devices::{IoOp, IoSize};
use umbra_memslots::{Gpa, Gva};
use umbra_vcpu::backend::{BackendError, VcpuBackend};
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::kvm::{Irqchip, VmOptions};

fn mmio(offset: u64, size: IoSize, op: IoOp) -> VmExit {
    VmExit::Mmio {
        gpa: Gpa::new(MMIO + offset),
        size,
        op,
    }
}

fn pio(port: u16, size: IoSize, op: IoOp) -> VmExit {
    VmExit::Pio { port, size, op }
}

#[test]
fn mmio_of_every_width_carries_the_value_both_ways() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = guest.long_mode(0, |a| {
        a.mov(rbx, MMIO)?;
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.mov(byte_ptr(rbx), al)?;
        a.mov(word_ptr(rbx + 2), ax)?;
        a.mov(dword_ptr(rbx + 4), eax)?;
        a.mov(qword_ptr(rbx + 8), rax)?;
        a.mov(cl, byte_ptr(rbx))?;
        a.mov(dx, word_ptr(rbx + 1))?;
        a.mov(esi, dword_ptr(rbx + 3))?;
        a.mov(rdi, qword_ptr(rbx + 8))?;
        a.hlt()
    });
    for (offset, size, value) in [
        (0, IoSize::B1, 0x88),
        (2, IoSize::B2, 0x7788),
        (4, IoSize::B4, 0x5566_7788),
        (8, IoSize::B8, 0x1122_3344_5566_7788),
    ] {
        assert_eq!(run(&mut vcpu, VmEntry::Resume), mmio(offset, size, IoOp::Write(value)));
    }
    // Answers wider than the access: the noise above must not arrive.
    assert_eq!(run(&mut vcpu, VmEntry::Resume), mmio(0, IoSize::B1, IoOp::Read));
    assert_eq!(
        run(&mut vcpu, VmEntry::Value(0xffff_ff01)),
        mmio(1, IoSize::B2, IoOp::Read)
    );
    assert_eq!(
        run(&mut vcpu, VmEntry::Value(0xffff_0302)),
        mmio(3, IoSize::B4, IoOp::Read)
    );
    assert_eq!(
        run(&mut vcpu, VmEntry::Value(0x0706_0504)),
        mmio(8, IoSize::B8, IoOp::Read)
    );
    assert_eq!(run(&mut vcpu, VmEntry::Value(u64::MAX - 1)), VmExit::Hlt);
    let regs = vcpu.regs().unwrap();
    assert_eq!(
        (regs.rcx, regs.rdx, regs.rsi, regs.rdi),
        (1, 0x0302, 0x0706_0504, u64::MAX - 1)
    );
}

#[test]
fn mmio_across_a_page_border_comes_in_pieces_and_is_put_together() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = guest.long_mode(0, |a| {
        a.mov(rbx, MMIO + 0xffd)?;
        a.mov(rax, 0x0807_0605_0403_0201u64)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.mov(rcx, qword_ptr(rbx))?;
        a.hlt()
    });
    let mut bytes = Vec::new();
    let mut exit = run(&mut vcpu, VmEntry::Resume);
    while let VmExit::Mmio {
        gpa,
        size,
        op: IoOp::Write(value),
    } = exit
    {
        assert_eq!(gpa, Gpa::new(MMIO + 0xffd + bytes.len() as u64));
        assert!(gpa.page_offset() + size.bytes() <= 4096, "{exit:?}");
        bytes.extend_from_slice(&value.to_le_bytes()[..usize::try_from(size.bytes()).unwrap()]);
        exit = run(&mut vcpu, VmEntry::Resume);
    }
    assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8]);
    let mut next = 0x11u64;
    while let VmExit::Mmio {
        size, op: IoOp::Read, ..
    } = exit
    {
        let mut value = 0;
        for index in 0..size.bytes() {
            value |= (next + index) << (8 * index);
        }
        next += size.bytes();
        exit = run(&mut vcpu, VmEntry::Value(value));
    }
    assert_eq!(exit, VmExit::Hlt);
    assert_eq!(vcpu.regs().unwrap().rcx, 0x1817_1615_1413_1211);
}

#[test]
fn port_access_of_every_width_carries_the_value_both_ways() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = guest.real_mode(0, |a| {
        a.mov(eax, 0x4433_2211u32)?;
        a.mov(dx, 0x3f8u32)?;
        a.out(dx, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)?;
        a.in_(al, dx)?;
        a.mov(bx, ax)?;
        a.in_(ax, dx)?;
        a.mov(cx, ax)?;
        a.in_(eax, dx)?;
        a.hlt()
    });
    assert_eq!(
        run(&mut vcpu, VmEntry::Resume),
        pio(0x3f8, IoSize::B1, IoOp::Write(0x11))
    );
    assert_eq!(
        run(&mut vcpu, VmEntry::Resume),
        pio(0x3f8, IoSize::B2, IoOp::Write(0x2211))
    );
    assert_eq!(
        run(&mut vcpu, VmEntry::Resume),
        pio(0x3f8, IoSize::B4, IoOp::Write(0x4433_2211))
    );
    assert_eq!(run(&mut vcpu, VmEntry::Resume), pio(0x3f8, IoSize::B1, IoOp::Read));
    assert_eq!(
        run(&mut vcpu, VmEntry::Value(0xaaaa_aa99)),
        pio(0x3f8, IoSize::B2, IoOp::Read)
    );
    assert_eq!(
        run(&mut vcpu, VmEntry::Value(0x8877)),
        pio(0x3f8, IoSize::B4, IoOp::Read)
    );
    assert_eq!(run(&mut vcpu, VmEntry::Value(0xdead_beef)), VmExit::Hlt);
    let regs = vcpu.regs().unwrap();
    assert_eq!(
        (regs.rax, regs.rbx & 0xffff, regs.rcx & 0xffff),
        (0xdead_beef, 0x2299, 0x8877)
    );
}

#[test]
fn repeated_port_access_comes_one_element_at_a_time() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = guest.real_mode(0, |a| {
        a.mov(dx, 0x80u32)?;
        a.mov(si, 0x2000u32)?;
        a.mov(cx, 5u32)?;
        a.rep().outsb()?;
        a.mov(di, 0x3000u32)?;
        a.mov(cx, 3u32)?;
        a.rep().insw()?;
        a.hlt()
    });
    guest.ram.write(0x2000, b"umbra");
    let mut said = Vec::new();
    let mut exit = run(&mut vcpu, VmEntry::Resume);
    while let VmExit::Pio {
        port: 0x80,
        size: IoSize::B1,
        op: IoOp::Write(value),
    } = exit
    {
        said.push(u8::try_from(value).unwrap());
        exit = run(&mut vcpu, VmEntry::Resume);
    }
    assert_eq!(said, b"umbra");
    for value in [0x1111, 0x2222, 0x3333] {
        assert_eq!(exit, pio(0x80, IoSize::B2, IoOp::Read));
        exit = run(&mut vcpu, VmEntry::Value(value));
    }
    assert_eq!(exit, VmExit::Hlt);
    assert_eq!(guest.ram.read(0x3000, 6), [0x11, 0x11, 0x22, 0x22, 0x33, 0x33]);
}

#[test]
fn complete_finishes_the_instruction_and_runs_no_further() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = guest.long_mode(0, |a| {
        a.mov(rbx, MMIO)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.mov(qword_ptr(rbx + 0xffc), rax)?;
        a.hlt()
    });
    assert_eq!(run(&mut vcpu, VmEntry::Resume), mmio(0, IoSize::B8, IoOp::Read));
    let before = vcpu.regs().unwrap().rip;
    assert_eq!(
        run(&mut vcpu, VmEntry::Complete(0x1234_5678_9abc_def0)),
        VmExit::Interrupted
    );
    let regs = vcpu.regs().unwrap();
    assert_eq!(regs.rax, 0x1234_5678_9abc_def0);
    assert_eq!(regs.rip, before + 3, "past the three bytes of the load");
    // Two pieces, each answered by Complete: still no further than the one instruction.
    assert_eq!(
        run(&mut vcpu, VmEntry::Resume),
        mmio(0xffc, IoSize::B4, IoOp::Write(0x9abc_def0))
    );
    assert_eq!(
        run(&mut vcpu, VmEntry::Complete(0)),
        mmio(0x1000, IoSize::B4, IoOp::Write(0x1234_5678))
    );
    assert_eq!(run(&mut vcpu, VmEntry::Complete(0)), VmExit::Interrupted);
    assert_eq!(vcpu.regs().unwrap().rip, before + 3 + 7);
    assert_eq!(run(&mut vcpu, VmEntry::Resume), VmExit::Hlt);
}

#[test]
fn wrong_answer_is_refused_and_the_exit_still_waits() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = guest.real_mode(0, |a| {
        a.in_(al, 0x60)?;
        a.hlt()
    });
    assert!(matches!(
        vcpu.run(VmEntry::Value(0)),
        Err(BackendError::WrongEntry { .. })
    ));
    assert_eq!(run(&mut vcpu, VmEntry::Resume), pio(0x60, IoSize::B1, IoOp::Read));
    for wrong in [VmEntry::Resume, VmEntry::Fault] {
        assert!(
            matches!(vcpu.run(wrong), Err(BackendError::WrongEntry { .. })),
            "{wrong:?}"
        );
    }
    assert_eq!(run(&mut vcpu, VmEntry::Value(0x42)), VmExit::Hlt);
    assert_eq!(vcpu.regs().unwrap().rax, 0x42);
}

#[test]
fn triple_fault_is_a_shutdown() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = guest.long_mode(0, |a| a.ud2());
    let mut system = vcpu.system_regs().unwrap();
    system.idt.limit = 0;
    vcpu.set_system_regs(&system).unwrap();
    assert_eq!(run(&mut vcpu, VmEntry::Resume), VmExit::Shutdown);
}

#[test]
fn instruction_that_kvm_cannot_emulate_is_told_with_its_bytes() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = guest.long_mode(0, |a| {
        a.popcnt(rax, rbx)?;
        a.hlt()
    });
    match run(&mut vcpu, VmEntry::Resume) {
        VmExit::EmulationFailure { bytes } => assert_eq!(bytes[..5], [0xf3, 0x48, 0x0f, 0xb8, 0xc3]),
        // A processor that runs the guest itself knows the instruction.
        exit => assert_eq!(exit, VmExit::Hlt),
    }
}

#[test]
fn code_where_no_memory_is_ends_in_an_emulation_failure() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = guest.long_mode(0, |a| {
        a.mov(rax, MMIO)?;
        a.jmp(rax)
    });
    let exit = run(&mut vcpu, VmEntry::Resume);
    assert!(matches!(exit, VmExit::EmulationFailure { .. }), "{exit:?}");
    assert_eq!(vcpu.regs().unwrap().rip, MMIO);
    assert_eq!(vcpu.translate(Gva::new(MMIO)).unwrap(), Some(Gpa::new(MMIO)));
    assert_eq!(vcpu.translate(Gva::new(1 << 40)).unwrap(), None);
}

#[test]
fn unknown_msr_comes_up_and_may_fault_or_answer() {
    let Some(host) = support::host() else { return };
    let options = VmOptions {
        irqchip: Irqchip::None,
        exit_on_unknown_msr: true,
        ..VmOptions::default()
    };
    let guest = Guest::with(options, &host);
    let mut vcpu = guest.real_mode(0, |a| {
        a.mov(ecx, 0x1234_5678u32)?;
        a.rdmsr()?;
        a.mov(ebx, eax)?;
        a.wrmsr()?;
        a.hlt()
    });
    assert_eq!(run(&mut vcpu, VmEntry::Resume), VmExit::ReadMsr { index: 0x1234_5678 });
    assert_eq!(
        run(&mut vcpu, VmEntry::Value(0x0000_0007_8000_0001)),
        VmExit::WriteMsr {
            index: 0x1234_5678,
            value: 0x0000_0007_8000_0001
        }
    );
    assert_eq!(run(&mut vcpu, VmEntry::Resume), VmExit::Hlt);
    assert_eq!(vcpu.regs().unwrap().rbx, 0x8000_0001);
}

#[test]
fn registers_follow_through_shared_memory_when_looked_at_each_time() {
    let Some(guest) = Guest::new(Irqchip::None, 1) else {
        return;
    };
    let mut vcpu = guest.real_mode(0, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(eax)?;
        a.out(0x80, al)?;
        a.jmp(again)
    });
    run(&mut vcpu, VmEntry::Resume);
    for turn in 1..20u64 {
        let mut regs = vcpu.regs().unwrap();
        assert_eq!(regs.rax, 10 * turn - 9);
        // Written back, too: the guest goes on from what we say.
        regs.rax += 9;
        vcpu.set_regs(&regs).unwrap();
        assert_eq!(vcpu.regs().unwrap(), regs);
        run(&mut vcpu, VmEntry::Resume);
        // From the page and from the ioctl alike.
        assert_eq!(vcpu.system_regs().unwrap().cs.base, 0);
        if turn % 5 == 0 {
            assert_eq!(
                run(&mut vcpu, VmEntry::Resume),
                pio(0x80, IoSize::B1, IoOp::Write(10 * turn + 2))
            );
            let mut regs = vcpu.regs().unwrap();
            regs.rax -= 1;
            vcpu.set_regs(&regs).unwrap();
        }
    }
    assert!(vcpu.regs().unwrap().rip > CODE);
}
