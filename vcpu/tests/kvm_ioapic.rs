//! An I/O APIC of ours and KVM's local APICs: interrupts arrive, and the end of a level-triggered one comes back.
#![cfg(target_arch = "x86_64")]

mod support;

use iced_x86::code_asm::*;
use std::sync::Arc;
use support::{Guest, run};
use umbra_devices::irq::{Gsi, IrqSink};
use umbra_devices::models::ioapic::{IoApic, regs};
use umbra_devices::{Device, IoOp, IoSize};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::kvm::{Irqchip, KvmVcpu};

const VECTOR: u8 = 0x40;
const PIN: u8 = 9;
const HANDLER: u64 = 0x2000;
/// Ports that tell where the guest is.
const READY: u32 = 0x80;
const INTERRUPTED: u32 = 0x81;
const DONE: u32 = 0x82;
/// x2APIC registers as MSRs (SDM vol. 3A table 11-6).
const SPURIOUS: u32 = 0x80f;
const EOI: u32 = 0x80b;
/// IA32_APIC_BASE: on, as an x2APIC.
const X2APIC: u64 = 3 << 10;

/// A guest that waits for one interrupt after another, and an I/O APIC whose input sends it this.
fn guest(trigger: u64) -> Option<(Guest, KvmVcpu, IoApic)> {
    let guest = Guest::new(
        Irqchip::Split {
            pins: regs::PINS.into(),
        },
        1,
    )?;
    let mut vcpu = guest.real_mode(0, |a| {
        a.mov(ecx, SPURIOUS)?;
        a.mov(eax, 0x1ffu32)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.out(READY, al)?;
        a.sti()?;
        // Long enough for a KVM that emulates this and looks for interrupts only now and then.
        a.mov(cx, 5000)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.loop_(again)?;
        a.out(DONE, al)?;
        a.hlt()
    });
    guest.load(16, HANDLER, |a| {
        a.push(ecx)?;
        a.out(INTERRUPTED, al)?;
        a.mov(ecx, EOI)?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.pop(ecx)?;
        a.iret()
    });
    // The real mode's vector table: offset, then segment.
    guest.ram.write(4 * usize::from(VECTOR), &HANDLER.to_le_bytes()[..4]);
    let mut system = vcpu.system_regs().expect("KVM gives registers");
    system.apic_base |= X2APIC;
    vcpu.set_system_regs(&system).expect("an x2APIC is possible");

    let ioapic = IoApic::new(Arc::new(guest.vm.msi_sink()));
    for (index, value) in [(1, 0), (0, u64::from(VECTOR) | trigger)] {
        let index = regs::REDIRECTION + 2 * PIN + index;
        ioapic.access(regs::SELECT, IoSize::B4, IoOp::Write(index.into()));
        ioapic.access(regs::WINDOW, IoSize::B4, IoOp::Write(value));
    }
    Some((guest, vcpu, ioapic))
}

/// Runs to an output at one of the ports above.
fn runs_to(vcpu: &mut KvmVcpu, expected: u32) {
    let exit = run(vcpu, VmEntry::Resume);
    assert!(
        matches!(exit, VmExit::Pio { port, op: IoOp::Write(_), .. } if u32::from(port) == expected),
        "{exit:?}, expected port {expected:#x}"
    );
}

#[test]
fn edge_interrupts_once() {
    let Some((_guest, mut vcpu, ioapic)) = guest(0) else {
        return;
    };
    runs_to(&mut vcpu, READY);
    ioapic.set_level(Gsi(PIN.into()), true);
    runs_to(&mut vcpu, INTERRUPTED);
    runs_to(&mut vcpu, DONE);
}

#[test]
fn level_interrupts_until_it_is_lowered() {
    let Some((_guest, mut vcpu, ioapic)) = guest(regs::LEVEL) else {
        return;
    };
    runs_to(&mut vcpu, READY);
    ioapic.set_level(Gsi(PIN.into()), true);
    for asserted in [true, true, false] {
        runs_to(&mut vcpu, INTERRUPTED);
        ioapic.set_level(Gsi(PIN.into()), asserted);
        assert_eq!(run(&mut vcpu, VmEntry::Resume), VmExit::IoapicEoi { vector: VECTOR });
        ioapic.end_of_interrupt(VECTOR);
    }
    runs_to(&mut vcpu, DONE);
}
