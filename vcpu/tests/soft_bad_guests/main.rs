//! Guests that do what no sane one does, on the software CPU: they get the architecture's answer, and the host keeps control.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how tests fail")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "small addresses, and bits"
)]

mod code;
mod paging;
#[path = "../support/soft_machine.rs"]
mod soft_machine;
mod tasks;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use soft_machine::{IDT, Machine};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use umbra_devices::{IoOp, IoSize};
use umbra_memslots::{Gpa, GuestMemory};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::regs::Segment;
use umbra_vcpu::soft::SoftVcpu;

/// RAM, beyond which there are devices.
const RAM: u64 = 64 << 12;
const DEVICE: u32 = 64 << 12;
const CODE: u64 = 0x1000;
const HANDLER: u64 = 0x2000;
const STACK: u64 = 0x9000;
/// A page directory, and a table of 4 MiB.
const DIRECTORY: u64 = 0x1_e000;
const TABLE: u64 = 0x1_f000;
const PAGING: u64 = 1 << 31;
const WRITE_PROTECT: u64 = 1 << 16;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

struct Guest {
    machine: Machine,
    vcpu: SoftVcpu,
}

impl Guest {
    fn new(code: Code) -> Self {
        let machine = Machine::new(RAM);
        load(&machine, CODE, code);
        let mut vcpu = machine.vcpu(CODE, STACK);
        vcpu.stop_after(100_000);
        Self { machine, vcpu }
    }

    /// With 32-bit paging: 4 MiB from address 0 on are mapped to themselves, writable.
    fn paged(code: Code) -> Self {
        let mut guest = Self::new(code);
        guest.put(DIRECTORY, TABLE as u32 | 3);
        for page in 0..1024 {
            guest.map(page, page << 12 | 3);
        }
        let mut system = guest.vcpu.system_regs().unwrap();
        system.cr0 |= PAGING | WRITE_PROTECT;
        system.cr3 = DIRECTORY;
        guest.vcpu.set_system_regs(&system).unwrap();
        guest
    }

    fn map(&self, page: u32, entry: u32) {
        self.put(TABLE + 4 * u64::from(page), entry);
    }

    fn put(&self, at: u64, value: u32) {
        self.write(at, &value.to_le_bytes());
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.machine.ram.write(Gpa::new(at), bytes).unwrap();
    }

    fn word(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.machine.ram.read(Gpa::new(at), &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    /// An interrupt gate to [`HANDLER`], which is `code`.
    fn handler(&self, vector: u64, code: Code) {
        self.write(IDT + 8 * vector, &(HANDLER | 8 << 16 | 0x8e00 << 32).to_le_bytes());
        load(&self.machine, HANDLER, code);
    }

    fn run(&mut self, entry: VmEntry) -> VmExit {
        self.vcpu.run(entry).unwrap()
    }

    /// To its `hlt`, without any other exit.
    fn finish(&mut self) {
        assert_eq!(self.run(VmEntry::Resume), VmExit::Hlt);
    }

    fn rbx(&mut self) -> u64 {
        self.vcpu.regs().unwrap().rbx
    }
}

fn load(machine: &Machine, at: u64, code: Code) {
    let mut assembler = CodeAssembler::new(32).unwrap();
    code(&mut assembler).unwrap();
    machine
        .ram
        .write(Gpa::new(at), &assembler.assemble(at).unwrap())
        .unwrap();
}

fn device_read(gpa: u32, size: IoSize) -> VmExit {
    let gpa = Gpa::new(u64::from(gpa));
    VmExit::Mmio {
        gpa,
        size,
        op: IoOp::Read,
    }
}

#[test]
fn locked_access_across_pages_happens_whole_or_not_at_all() {
    let code: Code = |a| {
        a.lock().add(dword_ptr(0x4ffe), 0x0001_0001)?;
        a.hlt()
    };
    let mut guest = Guest::paged(code);
    guest.put(0x4ffe, 0xffff_ffff);
    guest.finish();
    assert_eq!(guest.word(0x4ffe), 0x0001_0000);

    // The second page is missing, or may not be written.
    for (entry, error_code) in [(0, 2), (0x5001, 3)] {
        let mut guest = Guest::paged(code);
        guest.put(0x4ffe, 0xffff_ffff);
        guest.map(5, entry);
        guest.handler(14, |a| {
            a.pop(ebx)?;
            a.hlt()
        });
        guest.finish();
        assert_eq!((guest.word(0x4ffe), guest.rbx()), (0xffff_ffff, error_code));
        assert_eq!(guest.vcpu.system_regs().unwrap().cr2, 0x5000);
    }
}

#[test]
fn locked_access_across_memory_and_a_device_asks_the_device_once_each_way() {
    let mut guest = Guest::new(|a| {
        a.lock().inc(dword_ptr(DEVICE - 2))?;
        a.hlt()
    });
    guest.write(RAM - 2, &[0xff, 0xff]);
    assert_eq!(guest.run(VmEntry::Resume), device_read(DEVICE, IoSize::B2));
    let written = VmExit::Mmio {
        gpa: Gpa::new(RAM),
        size: IoSize::B2,
        op: IoOp::Write(8),
    };
    assert_eq!(guest.run(VmEntry::Value(7)), written);
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Hlt);
    assert_eq!(guest.word(RAM - 4) >> 16, 0);
}

#[test]
fn debug_exceptions_that_cause_themselves_do_not_hold_off_a_kick() {
    // In 64-bit mode the handler has a stack of its own, and that is watched: each delivery is the cause of the next.
    let machine = Machine::new(RAM);
    let mut code = CodeAssembler::new(64).unwrap();
    let a = &mut code;
    a.mov(eax, 0x7000 - 8).unwrap();
    a.mov(dr0, rax).unwrap();
    a.mov(eax, 0x9_0002).unwrap();
    a.mov(dr7, rax).unwrap();
    a.int1().unwrap();
    machine
        .ram
        .write(Gpa::new(CODE), &code.assemble(CODE).unwrap())
        .unwrap();
    machine.ram.write(Gpa::new(HANDLER), &[0xf4]).unwrap();
    let gate = HANDLER | 8 << 16 | 1 << 32 | 0x8e00 << 32;
    machine.ram.write(Gpa::new(IDT + 16), &gate.to_le_bytes()).unwrap();
    let mut vcpu = machine.long_vcpu(CODE, STACK, 0x1_0000);
    let mut system = vcpu.system_regs().unwrap();
    system.tr = Segment {
        selector: 0x20,
        base: 0x6000,
        limit: 0x67,
        kind: 11,
        present: true,
        ..Segment::default()
    };
    vcpu.set_system_regs(&system).unwrap();
    machine.ram.write(Gpa::new(0x6024), &0x7000_u64.to_le_bytes()).unwrap();
    vcpu.stop_after(5000);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
    assert!(vcpu.executed() >= 5000);

    let done = AtomicBool::new(false);
    vcpu.stop_after(u64::MAX);
    let kick = vcpu.kick_handle();
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            kick.kick();
            thread::yield_now();
        }
    });
}

#[test]
fn what_is_not_announced_is_refused() {
    // Virtual interrupt flags, machine checks, five levels, keys, xsave: one after the other into CR4.
    for bit in [0, 1, 6, 12, 18, 22, 23] {
        let mut guest = Guest::new(|a| {
            a.mov(cr4, ecx)?;
            a.mov(ebx, 1)?;
            a.hlt()
        });
        guest.handler(13, |a| a.hlt());
        let mut regs = guest.vcpu.regs().unwrap();
        regs.rcx = 1 << bit;
        guest.vcpu.set_regs(&regs).unwrap();
        guest.finish();
        assert_eq!(guest.rbx(), 0, "bit {bit}");
    }
}
