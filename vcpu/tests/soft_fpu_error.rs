//! x87 errors as a PC reports them while CR0.NE is clear: FERR#, interrupt 13, port 0xf0, IGNNE#.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how tests fail")]

#[path = "support/soft_machine.rs"]
mod soft_machine;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use soft_machine::{IDT, Machine};
use std::sync::Arc;
use umbra_devices::models::fpu_error::{FpuErrorLogic, regs};
use umbra_devices::models::pic::PicPair;
use umbra_devices::{Bus, Gsi, IoOp, IoSize, IrqPins, Port};
use umbra_memslots::{Gpa, GuestMemory};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::soft::SoftVcpu;

const CODE: u64 = 0x1000;
const HANDLER: u64 = 0x2000;
/// Control word with division by zero unmasked.
const CONTROL: u64 = 0x3000;
/// Interrupt 13, where the IDT has room for it.
const VECTOR: u64 = 0x1d;

struct Guest {
    vcpu: SoftVcpu,
    ports: Bus<Port>,
}

impl Guest {
    fn new(code: fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        let machine = Machine::new(16 << 12);
        let write = |at, bytes: &[u8]| machine.ram.write(Gpa::new(at), bytes).unwrap();
        let assemble = |at, code: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
            let mut assembler = CodeAssembler::new(32).unwrap();
            code(&mut assembler).unwrap();
            write(at, &assembler.assemble(at).unwrap());
        };
        assemble(CODE, code);
        assemble(HANDLER, handler);
        write(CONTROL, &[0x7b, 0x03]);
        let gate = HANDLER | 8 << 16 | 0x8e00 << 32;
        write(IDT + 8 * VECTOR, &gate.to_le_bytes());

        let ports = Bus::new();
        let pic = Arc::new(PicPair::new());
        pic.claim(&ports).unwrap();
        let pins = IrqPins::new(Arc::clone(&pic) as _);
        let logic = Arc::new(FpuErrorLogic::new(pins.line(Gsi(regs::IRQ))));
        logic.claim(&ports).unwrap();
        let mut vcpu = machine.vcpu(CODE, 0x9000);
        vcpu.set_interrupts(pic);
        vcpu.set_fpu_errors(logic);
        vcpu.stop_after(10_000);
        let mut guest = Self { vcpu, ports };
        for (first, vectors, cascade) in [(0x20, 0x10, 4), (0xa0, 0x18, 2)] {
            guest.write(first, 0x11);
            for byte in [vectors, cascade, 1, 0] {
                guest.write(first + 1, byte);
            }
        }
        guest
    }

    fn write(&mut self, port: u16, value: u64) {
        self.ports.cursor().write(Port::new(port), IoSize::B1, value);
    }

    /// Runs to a write to port 0x99, or to the end of its instructions.
    fn run(&mut self) -> VmExit {
        loop {
            match self.vcpu.run(VmEntry::Resume).unwrap() {
                VmExit::Pio {
                    port,
                    op: IoOp::Write(value),
                    ..
                } if port != 0x99 => self.write(port, value),
                exit => return exit,
            }
        }
    }

    fn is_done(&mut self) -> bool {
        matches!(self.run(), VmExit::Pio { .. })
    }
}

/// Counts in ECX, has the error ignored, uses the x87 meanwhile (EDX has the status word then), clears it.
fn handler(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.inc(ecx)?;
    a.mov(al, 0)?;
    a.out(0xf0, al)?;
    a.wait()?;
    a.fnstsw(ax)?;
    a.mov(edx, eax)?;
    a.fnclex()?;
    a.mov(al, 0x20)?;
    a.out(0xa0, al)?;
    a.out(0x20, al)?;
    a.iretd()
}

/// An error that waits: 1 / 0.
fn divide(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.fninit()?;
    a.fldcw(word_ptr(CONTROL))?;
    a.fld1()?;
    a.fldz()?;
    a.fdivp(st1, st0)
}

#[test]
fn error_comes_as_interrupt_13_before_the_next_x87_instruction() {
    let mut guest = Guest::new(|a| {
        a.sti()?;
        a.xor(ecx, ecx)?;
        divide(a)?;
        // Integer instructions and those that don't wait go on.
        a.mov(ebx, 5)?;
        a.fnstsw(ax)?;
        a.fld1()?;
        // The first is over, so another one interrupts again.
        divide(a)?;
        a.wait()?;
        a.out(0x99, al)
    });
    assert!(guest.is_done());
    let regs = guest.vcpu.regs().unwrap();
    assert_eq!((regs.rcx, regs.rbx), (2, 5));
    assert_eq!(regs.rdx & 0x84, 0x84, "the handler saw ES and ZE");
    assert_eq!(guest.vcpu.state().fpu.status & 0x80, 0);
}

#[test]
fn cpu_waits_for_the_interrupt_however_long_it_is_held_off() {
    let mut guest = Guest::new(|a| {
        a.xor(ecx, ecx)?;
        divide(a)?;
        a.fld1()?;
        a.out(0x99, al)
    });
    assert_eq!(guest.run(), VmExit::Interrupted, "frozen, but it can be stopped");
    let mut regs = guest.vcpu.regs().unwrap();
    assert_eq!(regs.rcx, 0);
    regs.rflags |= 1 << 9;
    guest.vcpu.set_regs(&regs).unwrap();
    guest.vcpu.stop_after(10_000);
    assert!(guest.is_done());
    assert_eq!(guest.vcpu.regs().unwrap().rcx, 1);
}

#[test]
fn with_the_native_way_the_pins_rest() {
    let mut guest = Guest::new(|a| {
        a.mov(eax, cr0)?;
        a.or(eax, 0x20)?;
        a.mov(cr0, eax)?;
        a.sti()?;
        divide(a)?;
        a.fld1()?;
        a.out(0x99, al)
    });
    // #MF has no gate: a fault after the other, to the third.
    assert_eq!(guest.run(), VmExit::Shutdown);
}
