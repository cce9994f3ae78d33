//! Software CPUs with local APICs: interrupts by page and by MSR, NMIs, and one CPU that starts another.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how tests fail")]

#[path = "support/soft_machine.rs"]
mod soft_machine;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use soft_machine::{IDT, Machine};
use std::sync::Arc;
use umbra_devices::models::lapic::ApicBus;
use umbra_devices::{HostClock, IoOp};
use umbra_memslots::{Gpa, GuestMemory};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::soft::{SoftVcpu, SoftVm};

const RAM: u64 = 64 << 12;
const CODE: u64 = 0x1000;
const HANDLER: u64 = 0x2000;
/// Where another CPU starts: page 3.
const START: u32 = 0x3000;
/// What it writes to.
const FLAG: u32 = 0x4000;
const VECTOR: u32 = 0x1f;
/// Registers in the APIC's page.
const EOI: u32 = 0xfee0_00b0;
const SVR: u32 = 0xfee0_00f0;
const ICR: u32 = 0xfee0_0300;
const ICR_HIGH: u32 = 0xfee0_0310;
const LVT_TIMER: u32 = 0xfee0_0320;

struct Guest {
    machine: Machine,
    bus: Arc<ApicBus>,
    cpus: u32,
}

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

impl Guest {
    fn new(cpus: u32) -> Self {
        Self {
            machine: Machine::new(RAM),
            bus: ApicBus::new(cpus, Arc::new(HostClock::new()), SoftVm::TSC_HZ),
            cpus,
        }
    }

    fn load(&self, bits: u32, at: u64, code: Code) {
        let mut assembler = CodeAssembler::new(bits).unwrap();
        code(&mut assembler).unwrap();
        let bytes = assembler.assemble(at).unwrap();
        self.machine.ram.write(Gpa::new(at), &bytes).unwrap();
    }

    /// An interrupt gate to [`HANDLER`].
    fn gate(&self, vector: u32) {
        let gate = HANDLER & 0xffff | 8 << 16 | 0x8e00 << 32;
        let at = Gpa::new(IDT + 8 * u64::from(vector));
        self.machine.ram.write(at, &gate.to_le_bytes()).unwrap();
    }

    fn vcpu(&self, id: u32) -> SoftVcpu {
        let mut vcpu = self.machine.vcpu(CODE, 0x9000);
        let mut system = vcpu.system_regs().unwrap();
        vcpu.set_local_apic(self.bus.apic(id).unwrap(), self.cpus);
        if id == 0 {
            system.apic_base = self.bus.apic(0).unwrap().base();
            vcpu.set_system_regs(&system).unwrap();
        }
        vcpu.stop_after(10_000_000);
        vcpu
    }
}

/// Runs to an output, and gives the port and the value.
fn output(vcpu: &mut SoftVcpu) -> (u16, u64) {
    match vcpu.run(VmEntry::Resume).unwrap() {
        VmExit::Pio {
            port,
            op: IoOp::Write(value),
            ..
        } => (port, value),
        other => panic!("{other:?}"),
    }
}

fn poke(a: &mut CodeAssembler, register: u32, value: u32) -> Result<(), IcedError> {
    a.mov(dword_ptr(register), value)
}

#[test]
fn ipi_to_itself_arrives_when_interrupts_are_on() {
    let guest = Guest::new(1);
    guest.gate(VECTOR);
    guest.load(32, CODE, |a| {
        poke(a, SVR, 0x1ff)?;
        poke(a, ICR, 0x4_0000 | VECTOR)?;
        a.out(0x80, al)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.out(0x82, al)
    });
    guest.load(32, HANDLER, |a| {
        a.out(0x81, al)?;
        poke(a, EOI, 0)?;
        a.iretd()
    });
    let mut vcpu = guest.vcpu(0);
    let ports: Vec<_> = (0..3).map(|_| output(&mut vcpu).0).collect();
    assert_eq!(ports, [0x80, 0x81, 0x82]);
}

#[test]
fn deadline_timer_wakes_a_halted_x2apic() {
    let guest = Guest::new(1);
    guest.gate(VECTOR);
    guest.load(32, CODE, |a| {
        poke(a, SVR, 0x1ff)?;
        poke(a, LVT_TIMER, 0x4_0000 | VECTOR)?;
        // IA32_APIC_BASE, to x2APIC.
        a.mov(ecx, 0x1bu32)?;
        a.rdmsr()?;
        a.or(eax, 0x400)?;
        a.wrmsr()?;
        // IA32_TSC_DEADLINE, long ago.
        a.mov(ecx, 0x6e0u32)?;
        a.mov(eax, 1u32)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.out(0x80, al)?;
        a.sti()?;
        a.hlt()?;
        a.out(0x82, al)
    });
    guest.load(32, HANDLER, |a| {
        a.mov(ecx, 0x802u32)?;
        a.rdmsr()?;
        a.out(0x81, al)?;
        a.mov(ecx, 0x80bu32)?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.iretd()
    });
    let mut vcpu = guest.vcpu(0);
    assert_eq!(output(&mut vcpu).0, 0x80);
    let bus = Arc::clone(&guest.bus);
    let timers = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        bus.tick()
    });
    assert_eq!(output(&mut vcpu), (0x81, 0));
    assert_eq!(output(&mut vcpu).0, 0x82);
    assert_eq!(timers.join().unwrap(), None);
}

/// A handler of an NMI that sends another one, which has to wait, and then does `more`: it writes to port 0x80, and
/// the handler of the second one to 0x81.
fn send_another(a: &mut CodeAssembler, more: Code) -> Result<(), IcedError> {
    let mut second = a.create_label();
    a.inc(ebx)?;
    a.cmp(ebx, 2)?;
    a.je(second)?;
    poke(a, ICR, 0x4400)?;
    more(a)?;
    a.nop()?;
    a.out(0x80, al)?;
    a.iretd()?;
    a.set_label(&mut second)?;
    a.out(0x81, al)?;
    a.iretd()
}

/// A guest that sends itself an NMI meets its handler, the other one's, and then goes on.
fn assert_nmis_come_one_after_the_other(handler: Code) {
    let guest = Guest::new(1);
    guest.gate(2);
    guest.load(32, CODE, |a| {
        poke(a, SVR, 0x1ff)?;
        poke(a, ICR_HIGH, 0)?;
        poke(a, ICR, 0x4400)?;
        a.nop()?;
        a.out(0x82, al)
    });
    guest.load(32, HANDLER, handler);
    let mut vcpu = guest.vcpu(0);
    let ports: Vec<_> = (0..3).map(|_| output(&mut vcpu).0).collect();
    assert_eq!(ports, [0x80, 0x81, 0x82]);
}

#[test]
fn nmi_comes_with_interrupts_off_and_the_next_one_after_iret() {
    assert_nmis_come_one_after_the_other(|a| send_another(a, |_| Ok(())));
}

#[test]
fn nmi_that_waits_for_iret_is_not_lost_by_a_handler_that_lets_interrupts_in() {
    assert_nmis_come_one_after_the_other(|a| {
        send_another(a, |a| {
            a.sti()?;
            a.nop()
        })
    });
}

#[test]
fn first_cpu_starts_the_second() {
    let guest = Guest::new(2);
    guest.load(32, CODE, |a| {
        let mut wait = a.create_label();
        poke(a, SVR, 0x1ff)?;
        poke(a, ICR, 0xc_4500)?;
        poke(a, ICR, 0xc_4600 | START >> 12)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(FLAG), 0)?;
        a.je(wait)?;
        a.mov(eax, dword_ptr(FLAG))?;
        a.out(0x81, eax)
    });
    guest.load(16, START.into(), |a| {
        a.mov(eax, 1u32)?;
        a.cpuid()?;
        // Data segments are at 0 after INIT.
        a.mov(dword_ptr(FLAG), ebx)?;
        a.out(0x82, al)
    });
    let (mut first, mut second) = (guest.vcpu(0), guest.vcpu(1));
    std::thread::scope(|scope| {
        let other = scope.spawn(move || output(&mut second).0);
        let (port, features) = output(&mut first);
        // Identifier and number of CPUs.
        assert_eq!((port, features >> 24, features >> 16 & 0xff), (0x81, 1, 2));
        assert_eq!(other.join().unwrap(), 0x82);
    });
}
