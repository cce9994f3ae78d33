//! 8259s and an 8254 of ours with KVM's local APICs: external interrupts arrive when the guest takes them.
#![cfg(target_arch = "x86_64")]

mod support;

use iced_x86::code_asm::*;
use std::sync::Arc;
use std::time::Duration;
use support::{Guest, run};
use umbra_devices::irq::{Gsi, IrqPins, IrqSink};
use umbra_devices::models::pic::{PicPair, regs};
use umbra_devices::{Device, IntrSource, IoOp, IoSize};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::kvm::{Irqchip, KvmVcpu};

/// Vectors of the first 8259.
const BASE: u8 = 0x40;
const INPUT: u8 = 5;
const HANDLER: u64 = 0x2000;
/// Ports that tell where the guest is.
const CLOSED: u32 = 0x80;
const INTERRUPTED: u32 = 0x81;
const BETWEEN: u32 = 0x82;

/// The 8259s set up as an operating system does, all inputs open.
fn pic() -> Arc<PicPair> {
    let pic = PicPair::new();
    let write = |offset: u64, value: u64| {
        pic.access(offset, IoSize::B1, IoOp::Write(value));
    };
    // ICW1 to ICW4, then the masks.
    for (chip, vectors, wire) in [(0, BASE, 4), (regs::SLAVE, BASE + 8, 2)] {
        write(chip, 0x11);
        write(chip + 1, vectors.into());
        write(chip + 1, wire);
        write(chip + 1, 1);
        write(chip + 1, 0);
    }
    Arc::new(pic)
}

/// A guest that first shuts interrupts out, then waits for them in `hlt`.
fn guest() -> Option<(Guest, KvmVcpu, Arc<PicPair>)> {
    let guest = Guest::new(Irqchip::Split { pins: 24 }, 1)?;
    let mut vcpu = guest.real_mode(0, |a| {
        let mut again = a.create_label();
        a.out(CLOSED, al)?;
        a.sti()?;
        a.set_label(&mut again)?;
        a.hlt()?;
        a.out(BETWEEN, al)?;
        a.jmp(again)
    });
    guest.load(16, HANDLER, |a| {
        a.out(INTERRUPTED, al)?;
        // The end of interrupt, at the 8259's command port, which is ours to answer.
        a.mov(al, 0x20)?;
        a.out(0x20, al)?;
        a.iret()
    });
    guest
        .ram
        .write(4 * usize::from(BASE + INPUT), &HANDLER.to_le_bytes()[..4]);
    let pic = pic();
    vcpu.set_external_interrupts(Arc::clone(&pic) as _);
    Some((guest, vcpu, pic))
}

/// Runs to an output at `expected`; ends of interrupt go to the 8259s, kicks are passed over.
fn runs_to(vcpu: &mut KvmVcpu, pic: &PicPair, expected: u32) {
    loop {
        match run(vcpu, VmEntry::Resume) {
            VmExit::Interrupted => {}
            VmExit::Pio { port: 0x20, op, .. } => {
                pic.access(0, IoSize::B1, op);
            }
            exit => {
                let is_expected = matches!(exit, VmExit::Pio { port, .. } if u32::from(port) == expected);
                assert!(is_expected, "{exit:?}, expected port {expected:#x}");
                return;
            }
        }
    }
}

#[test]
fn interrupt_waits_until_the_guest_takes_it_and_comes_once() {
    let Some((_guest, mut vcpu, pic)) = guest() else { return };
    runs_to(&mut vcpu, &pic, CLOSED);
    // The guest shuts interrupts out now.
    pic.set_level(Gsi(INPUT.into()), true);
    pic.set_level(Gsi(INPUT.into()), false);
    pic.set_level(Gsi(INPUT.into()), true);
    runs_to(&mut vcpu, &pic, INTERRUPTED);
    runs_to(&mut vcpu, &pic, BETWEEN);
    // Asleep; nothing but a kick gets it out.
    let kick = vcpu.kick_handle();
    kick.kick();
    assert_eq!(run(&mut vcpu, VmEntry::Resume), VmExit::Interrupted);
}

#[test]
fn interrupt_waits_for_a_guest_that_was_closed_while_it_was_out() {
    const OPEN: u32 = 0x83;
    let Some((guest, mut vcpu, pic)) = guest() else { return };
    guest.load(16, support::CODE, |a| {
        a.sti()?;
        a.nop()?;
        a.out(OPEN, al)?;
        a.out(CLOSED, al)?;
        a.sti()?;
        a.nop()?;
        a.hlt()
    });
    runs_to(&mut vcpu, &pic, OPEN);
    let mut regs = vcpu.regs().unwrap();
    regs.rflags &= !(1 << 9);
    vcpu.set_regs(&regs).unwrap();
    pic.set_level(Gsi(INPUT.into()), true);
    runs_to(&mut vcpu, &pic, CLOSED);
    assert!(pic.is_pending(), "nobody has acknowledged it");
    runs_to(&mut vcpu, &pic, INTERRUPTED);
    assert!(!pic.is_pending());
}

#[test]
fn interrupt_wakes_a_guest_that_sleeps_in_the_kernel() {
    let Some((_guest, mut vcpu, pic)) = guest() else { return };
    let line = IrqPins::new(Arc::clone(&pic) as Arc<dyn IrqSink>).line(Gsi(INPUT.into()));
    runs_to(&mut vcpu, &pic, CLOSED);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(30));
                line.pulse();
            });
            runs_to(&mut vcpu, &pic, INTERRUPTED);
            runs_to(&mut vcpu, &pic, BETWEEN);
        }
    });
}
