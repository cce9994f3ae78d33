//! Small guests on the software CPU: what real hardware would do with them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how tests fail")]

#[path = "support/soft_machine.rs"]
mod soft_machine;

use iced_x86::code_asm::*;
use soft_machine::{IDT, Machine};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};
use umbra_devices::irq::Waker;
use umbra_devices::{IntrSource, IoOp, IoSize};
use umbra_memslots::ram::GuestRam;
use umbra_memslots::{Gpa, GuestMemory};
use umbra_vcpu::backend::{BackendError, VcpuBackend};
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::soft::SoftVcpu;

/// RAM from 0 on.
const RAM_32: u32 = 64 << 12;
const RAM: u64 = RAM_32 as u64;
/// Where code begins.
const CODE: u64 = 0x1000;
/// A device.
const DEVICE_32: u32 = RAM_32;
const DEVICE: u64 = DEVICE_32 as u64;

struct Guest {
    ram: GuestRam,
    vcpu: SoftVcpu,
}

/// A flat 32-bit guest without paging; its stack ends at 0x9000, its IDT lies at 0x800.
fn guest(assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Guest {
    let mut code = CodeAssembler::new(32).unwrap();
    assemble(&mut code).unwrap();
    of_bytes(&code.assemble(CODE).unwrap())
}

fn of_bytes(code: &[u8]) -> Guest {
    let machine = Machine::new(RAM);
    machine.ram.write(Gpa::new(CODE), code).unwrap();
    let mut vcpu = machine.vcpu(CODE, 0x9000);
    vcpu.stop_after(1_000_000);
    Guest { ram: machine.ram, vcpu }
}

impl Guest {
    /// An interrupt gate to a handler.
    fn gate(&self, vector: u64, handler: u64) {
        let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
        self.ram.write(Gpa::new(IDT + 8 * vector), &gate.to_le_bytes()).unwrap();
    }

    fn run(&mut self, entry: VmEntry) -> VmExit {
        self.vcpu.run(entry).unwrap()
    }

    fn rax(&mut self) -> u64 {
        self.vcpu.regs().unwrap().rax
    }
}

fn read(gpa: u64, size: IoSize) -> VmExit {
    VmExit::Mmio {
        gpa: Gpa::new(gpa),
        size,
        op: IoOp::Read,
    }
}

fn write(gpa: u64, size: IoSize, value: u64) -> VmExit {
    VmExit::Mmio {
        gpa: Gpa::new(gpa),
        size,
        op: IoOp::Write(value),
    }
}

#[test]
fn device_access_comes_out_and_the_answer_goes_in() {
    let mut guest = guest(|a| {
        a.mov(ebx, DEVICE_32)?;
        a.mov(eax, dword_ptr(ebx + 8))?;
        a.mov(dword_ptr(ebx + 12), eax)?;
        a.add(dword_ptr(ebx + 16), 1)?;
        a.hlt()
    });
    assert_eq!(guest.run(VmEntry::Resume), read(DEVICE + 8, IoSize::B4));
    assert_eq!(
        guest.run(VmEntry::Value(0x1234)),
        write(DEVICE + 12, IoSize::B4, 0x1234)
    );
    assert_eq!(guest.run(VmEntry::Resume), read(DEVICE + 16, IoSize::B4));
    assert_eq!(guest.run(VmEntry::Value(7)), write(DEVICE + 16, IoSize::B4, 8));
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Hlt);
    assert_eq!(guest.vcpu.shadow_stats().created, 1, "one MMIO SPTE for the page");
    assert_eq!(
        guest.vcpu.shadow_stats().cache_hits,
        3,
        "each access is recognised once"
    );
    let shadow = guest.vcpu.shadow_counts().get();
    assert_eq!((shadow.searches, shadow.mmu.cache_hits), (1, 3), "and told");
}

#[test]
fn what_the_core_executes_and_what_it_does_not_know_is_counted() {
    let mut guest = guest(|a| {
        a.mov(ecx, 100)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.add(eax, ecx)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.cpuid()?;
        // AVX is not announced.
        a.vpaddd(xmm0, xmm1, xmm2)
    });
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Shutdown);
    let run = guest.vcpu.counts().get();
    assert!(run.instructions > 300, "{run:?}");
    assert_eq!(run.by_core.get("cpuid"), Some(&1));
    assert_eq!(run.by_core.get("add"), None, "it has a fast operation: {run:?}");
    assert_eq!(run.undefined.get("vpaddd"), Some(&1));
}

#[test]
fn answer_of_the_wrong_kind_is_refused_and_can_be_given_again() {
    let mut guest = guest(|a| {
        a.in_(al, dx)?;
        a.hlt()
    });
    let exit = guest.run(VmEntry::Resume);
    assert!(matches!(exit, VmExit::Pio { op: IoOp::Read, .. }));
    assert!(matches!(
        guest.vcpu.run(VmEntry::Resume),
        Err(BackendError::WrongEntry { .. })
    ));
    assert_eq!(guest.run(VmEntry::Value(0x55)), VmExit::Hlt);
    assert_eq!(guest.rax(), 0x55);
    assert!(guest.vcpu.run(VmEntry::Value(1)).is_err());
}

#[test]
fn complete_finishes_the_instruction_and_nothing_more() {
    let mut guest = guest(|a| {
        a.mov(eax, dword_ptr(DEVICE_32))?;
        a.mov(eax, 1)?;
        a.hlt()
    });
    guest.run(VmEntry::Resume);
    assert_eq!(guest.run(VmEntry::Complete(9)), VmExit::Interrupted);
    assert_eq!(guest.rax(), 9);
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Hlt);
}

#[test]
fn kick_is_seen_whenever_it_is_made() {
    let mut guest = guest(|a| {
        let mut forever = a.create_label();
        a.set_label(&mut forever)?;
        a.inc(eax)?;
        a.jmp(forever)
    });
    guest.vcpu.stop_after(u64::MAX);
    let kick = guest.vcpu.kick_handle();
    kick.kick();
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Interrupted, "made before the run");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            kick.kick();
        });
        assert_eq!(guest.run(VmEntry::Resume), VmExit::Interrupted, "made during the run");
    });
}

#[test]
fn code_that_changes_itself_runs_as_changed() {
    // The write hits the block that is being executed, one instruction ahead.
    let mut guest = of_bytes(&[
        0xb9, 3, 0, 0, 0, // 1000: mov ecx, 3
        0x80, 0x05, 0x0d, 0x10, 0, 0, 1, // 1005: add byte [0x100d], 1
        0xb0, 0x10, // 100c: mov al, 0x10
        0x01, 0xc2, // add edx, eax
        0x49, // dec ecx
        0x75, 0xf2, // jne 1005
        0xf4,
    ]);
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Hlt);
    assert_eq!(guest.rax(), 0x13);
    assert_eq!(guest.vcpu.regs().unwrap().rdx, 0x11 + 0x12 + 0x13);
}

#[test]
fn instruction_across_pages_is_executed_and_follows_changes_of_either_part() {
    // mov eax, imm32 with its first two bytes on one page; then a store into the immediate's second byte, and back.
    let mut guest = of_bytes(&[0xe9, 0xf9, 0x0f, 0, 0]);
    let tail = [
        0xb8, 0x11, 0x22, 0x33, 0x44, // 1ffe: mov eax, 0x44332211
        0xfe, 0x05, 0x00, 0x20, 0, 0,    // inc byte [0x2000]
        0x41, // inc ecx
        0x83, 0xf9, 0x03, // cmp ecx, 3
        0x75, 0xef, // jne 1ffe
        0xf4,
    ];
    guest.ram.write(Gpa::new(0x1ffe), &tail).unwrap();
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Hlt);
    assert_eq!(guest.rax(), 0x4433_2411);
}

#[test]
fn access_across_ram_and_device_reads_both() {
    let mut guest = guest(|a| {
        a.mov(eax, dword_ptr(RAM_32 - 2))?;
        a.mov(dword_ptr(RAM_32 - 1), eax)?;
        a.hlt()
    });
    guest.ram.write(Gpa::new(RAM - 2), &[0x11, 0x22]).unwrap();
    assert_eq!(guest.run(VmEntry::Resume), read(RAM, IoSize::B2));
    assert_eq!(guest.run(VmEntry::Value(0x4433)), write(RAM, IoSize::B2, 0x3322));
    assert_eq!(guest.run(VmEntry::Resume), write(RAM + 2, IoSize::B1, 0x44));
    let mut byte = [0];
    guest.ram.read(Gpa::new(RAM - 1), &mut byte).unwrap();
    assert_eq!(byte, [0x22], "no memory is written before all devices have answered");
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Hlt);
    guest.ram.read(Gpa::new(RAM - 1), &mut byte).unwrap();
    assert_eq!(byte, [0x11]);
}

#[test]
fn exception_reaches_its_handler_with_its_frame() {
    let mut guest = guest(|a| {
        a.ud2()?;
        a.hlt()
    });
    guest.gate(6, 0x3000);
    // pop eax; hlt
    guest.ram.write(Gpa::new(0x3000), &[0x58, 0xf4]).unwrap();
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Hlt);
    assert_eq!(guest.rax(), CODE, "a fault points at its instruction");
}

#[test]
fn exception_without_handler_ends_in_shutdown() {
    let mut guest = guest(|a| a.ud2());
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Shutdown);
}

#[test]
fn exceptions_for_ever_do_not_hold_off_a_kick() {
    let mut guest = guest(|a| a.ud2());
    guest.gate(6, CODE);
    guest.vcpu.stop_after(1000);
    // The stack grows down through all of RAM; long before its end the budget is used up.
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Interrupted);
}

#[test]
fn idt_in_a_device_is_read_from_the_device() {
    let mut guest = guest(|a| {
        a.ud2()?;
        a.hlt()
    });
    let mut system = guest.vcpu.system_regs().unwrap();
    system.idt.base = DEVICE;
    guest.vcpu.set_system_regs(&system).unwrap();
    guest.ram.write(Gpa::new(0x3000), &[0xf4]).unwrap();
    assert_eq!(guest.run(VmEntry::Resume), read(DEVICE + 6 * 8, IoSize::B8));
    assert_eq!(guest.run(VmEntry::Value(0x0000_8e00_0008_3000)), VmExit::Hlt);
    assert_eq!(guest.vcpu.regs().unwrap().rip, 0x3001);
}

#[test]
fn code_in_a_device_is_fetched_from_the_device() {
    let mut guest = guest(|a| a.jmp(DEVICE));
    let mut exit = guest.run(VmEntry::Resume);
    let mut fetched = 0;
    while let VmExit::Mmio { op: IoOp::Read, .. } = exit {
        // hlt, many times
        fetched += 1;
        exit = guest.run(VmEntry::Value(0xf4f4_f4f4_f4f4_f4f4));
    }
    assert_eq!(exit, VmExit::Hlt);
    assert!(fetched > 0);
    assert_eq!(guest.vcpu.regs().unwrap().rip, DEVICE + 1);
}

/// Interrupts that wait, in their order.
#[derive(Default)]
struct Line {
    vectors: Mutex<VecDeque<u8>>,
    waker: OnceLock<Waker>,
}

impl Line {
    fn raise(&self, vector: u8) {
        self.vectors.lock().unwrap().push_back(vector);
        self.waker.get().unwrap()();
    }
}

impl IntrSource for Line {
    fn is_pending(&self) -> bool {
        !self.vectors.lock().unwrap().is_empty()
    }

    fn acknowledge(&self) -> u8 {
        self.vectors.lock().unwrap().pop_front().unwrap()
    }

    fn set_waker(&self, waker: Waker) {
        assert!(self.waker.set(waker).is_ok());
    }
}

fn wired(mut guest: Guest) -> (Guest, Arc<Line>) {
    let line = Arc::<Line>::default();
    guest.vcpu.set_interrupts(Arc::clone(&line) as _);
    (guest, line)
}

#[test]
fn halted_guest_sleeps_until_an_interrupt() {
    let (mut guest, line) = wired(guest(|a| {
        a.sti()?;
        a.hlt()?;
        a.out(0x80, al)?;
        a.hlt()
    }));
    guest.gate(0x1f, 0x3000);
    // mov al, 7; iretd
    guest.ram.write(Gpa::new(0x3000), &[0xb0, 7, 0xcf]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            line.raise(0x1f);
        });
        let exit = guest.run(VmEntry::Resume);
        assert!(
            matches!(exit, VmExit::Pio { op: IoOp::Write(7), .. }),
            "the handler ran, then what follows hlt: {exit:?}"
        );
    });
    // Asleep again, a kick gets it out; and it sleeps on.
    let kick = guest.vcpu.kick_handle();
    for _ in 0..2 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                kick.kick();
            });
            assert_eq!(guest.run(VmEntry::Resume), VmExit::Interrupted);
        });
    }
}

#[test]
fn interrupt_waits_until_the_guest_takes_it() {
    let (mut guest, line) = wired(guest(|a| {
        a.mov(al, 1)?;
        a.out(0x80, al)?;
        a.sti()?;
        // In the shadow of sti.
        a.mov(al, 2)?;
        a.mov(ah, 1)?;
        a.jmp(0x3100u64)
    }));
    guest.gate(0x1f, 0x3000);
    guest.gate(0x1e, 0x3000);
    // out 0x81, al; iretd
    guest.ram.write(Gpa::new(0x3000), &[0xe6, 0x81, 0xcf]).unwrap();
    // jmp 0x3100
    guest.ram.write(Gpa::new(0x3100), &[0xeb, 0xfe]).unwrap();
    line.raise(0x1f);
    line.raise(0x1e);
    assert!(matches!(guest.run(VmEntry::Resume), VmExit::Pio { port: 0x80, .. }));
    for _ in 0..2 {
        let exit = guest.run(VmEntry::Resume);
        assert!(
            matches!(
                exit,
                VmExit::Pio {
                    port: 0x81,
                    op: IoOp::Write(2),
                    ..
                }
            ),
            "{exit:?}"
        );
    }
    assert!(!line.is_pending());
    guest.vcpu.stop_after(10);
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Interrupted);
}

#[test]
fn single_step_traps_after_each_instruction() {
    let mut guest = guest(|a| {
        a.nop()?;
        a.hlt()?;
        a.nop()?;
        a.hlt()
    });
    guest.gate(1, 0x3000);
    // A trap wakes the CPU that executed hlt. The handler ends the stepping at the third.
    let mut handler = CodeAssembler::new(32).unwrap();
    let mut out = handler.create_label();
    handler.inc(ecx).unwrap();
    handler.cmp(ecx, 3).unwrap();
    handler.jb(out).unwrap();
    handler.and(dword_ptr(esp + 8), !0x100).unwrap();
    handler.set_label(&mut out).unwrap();
    handler.iretd().unwrap();
    guest
        .ram
        .write(Gpa::new(0x3000), &handler.assemble(0x3000).unwrap())
        .unwrap();
    let mut regs = guest.vcpu.regs().unwrap();
    regs.rflags |= 1 << 8;
    guest.vcpu.set_regs(&regs).unwrap();
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Hlt);
    let regs = guest.vcpu.regs().unwrap();
    assert_eq!((regs.rcx, regs.rip), (3, CODE + 4));
    assert_eq!(guest.vcpu.state().debug[6] >> 14 & 1, 1);
}

#[test]
fn paging_goes_on_and_table_changes_count_after_invlpg() {
    // 32-bit paging with one table at 0x20000: page 5 -> 6, then -> 7.
    let mut guest = guest(|a| {
        a.mov(dword_ptr(0x1_f000), 0x2_0007)?;
        a.mov(edi, 0x2_0000)?;
        a.mov(eax, 7)?;
        a.mov(ecx, 1024)?;
        let mut fill = a.create_label();
        a.set_label(&mut fill)?;
        a.stosd()?;
        a.add(eax, 0x1000)?;
        a.loop_(fill)?;
        a.mov(dword_ptr(0x6000), 0x66)?;
        a.mov(dword_ptr(0x7000), 0x77)?;
        a.mov(dword_ptr(0x2_0014), 0x6007)?;
        a.mov(eax, 0x1_f000)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32.cast_signed())?;
        a.mov(cr0, eax)?;
        a.mov(ebx, dword_ptr(0x5000))?;
        a.mov(dword_ptr(0x2_0014), 0x7007)?;
        a.invlpg(dword_ptr(0x5000))?;
        a.mov(edx, dword_ptr(0x5000))?;
        a.mov(dword_ptr(0x5000), 0x88)?;
        a.hlt()
    });
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Hlt);
    let regs = guest.vcpu.regs().unwrap();
    assert_eq!((regs.rbx, regs.rdx), (0x66, 0x77));
    let mut word = [0; 4];
    guest.ram.read(Gpa::new(0x7000), &mut word).unwrap();
    assert_eq!(u32::from_le_bytes(word), 0x88);
}

#[test]
fn cpuid_announces_no_more_than_there_is() {
    let mut guest = guest(|a| {
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.hlt()
    });
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Hlt);
    let regs = guest.vcpu.regs().unwrap();
    const XSAVE_AND_AVX: u64 = 7 << 26;
    assert_eq!(regs.rcx & XSAVE_AND_AVX, 0, "no AVX");
    assert_ne!(regs.rcx & 1 << 31, 0, "it is a virtual machine");
}

#[test]
fn paravirtual_clock_runs_with_the_counter_and_follows_when_that_is_moved() {
    const CLOCK: u32 = 0x2_0040;
    let mut guest = guest(|a| {
        a.mov(ecx, 0x4b56_4d01)?;
        a.mov(eax, CLOCK | 1)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        // The counter goes far ahead; time does not.
        a.mov(ecx, 0x10)?;
        a.mov(edx, 0x1000)?;
        a.wrmsr()?;
        a.rdtsc()?;
        a.hlt()
    });
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Hlt);
    let regs = guest.vcpu.regs().unwrap();
    let tsc = regs.rdx << 32 | regs.rax;
    let mut info = [0; 32];
    guest.ram.read(Gpa::new(u64::from(CLOCK)), &mut info).unwrap();
    let word = |at: usize| u64::from_le_bytes(info[at..at + 8].try_into().unwrap());
    assert!(tsc - word(8) < 1_000_000_000 && tsc >= word(8), "{tsc:#x} {info:x?}");
    assert!(word(16) < 60_000_000_000, "the machine is young: {info:x?}");
    assert_eq!(info[0] % 2, 0, "nobody is writing");
}
