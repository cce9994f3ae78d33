//! Guests that do what no sane one does, on the software CPU: they get the architecture's answer, and the host keeps control.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how tests fail")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "small addresses, and bits"
)]

#[path = "support/soft_machine.rs"]
mod soft_machine;

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
fn store_into_the_next_instruction_counts_at_once() {
    // Through the same address and through another page that is the same memory; also in code that ran before.
    for page in [1_u32, 0x30] {
        let mut guest = Guest::paged(|a| {
            let mut again = a.create_label();
            a.xor(ecx, ecx)?;
            a.set_label(&mut again)?;
            // esi: the immediate of the instruction behind, at 15.
            a.inc(byte_ptr(esi))?;
            a.mov(ebx, 0x10)?;
            a.inc(ecx)?;
            a.cmp(ecx, 3)?;
            a.jne(again)?;
            a.hlt()
        });
        guest.map(0x30, CODE as u32 | 3);
        let mut regs = guest.vcpu.regs().unwrap();
        // xor, inc [esi], opcode.
        regs.rsi = u64::from(page << 12) + 5;
        guest.vcpu.set_regs(&regs).unwrap();
        guest.finish();
        assert_eq!(guest.rbx(), 0x13, "through page {page:#x}");
    }
}

#[test]
fn string_instruction_may_overwrite_itself() {
    // rep stosb over itself with nops and what comes behind it with hlt.
    let mut guest = Guest::new(|a| {
        a.mov(edi, CODE as u32 + 12)?;
        a.mov(ecx, 8)?;
        a.mov(al, 0xf4)?;
        // At 12.
        a.rep().stosb()?;
        a.mov(ebx, 1)?;
        a.hlt()
    });
    guest.finish();
    let regs = guest.vcpu.regs().unwrap();
    // Whether what is left of it is done, or the new code runs at once, is the processor's choice; the rest is not.
    assert!(
        regs.rbx == 0 && (regs.rip == CODE + 15 || regs.rip == CODE + 13),
        "{:#x}",
        regs.rip
    );
}

#[test]
fn loop_that_another_cpu_patches_ends() {
    let machine = Machine::new(RAM);
    load(&machine, CODE, |a| {
        let mut spin = a.create_label();
        a.set_label(&mut spin)?;
        // Patched into a jump over itself to `hlt`.
        a.jmp(spin)?;
        a.nop()?;
        a.hlt()
    });
    load(&machine, HANDLER, |a| {
        a.mov(byte_ptr(CODE as u32 + 1), 1)?;
        a.hlt()
    });
    let mut spinner = machine.vcpu(CODE, STACK);
    let mut patcher = machine.vcpu(HANDLER, STACK - 0x100);
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(spinner.run(VmEntry::Resume).unwrap(), VmExit::Hlt));
        scope.spawn(|| assert_eq!(patcher.run(VmEntry::Resume).unwrap(), VmExit::Hlt));
    });
    assert_eq!(spinner.regs().unwrap().rip, CODE + 4);
}

#[test]
fn instruction_whose_second_page_is_missing_faults_there_and_runs_once_it_is_mapped() {
    let mut guest = Guest::paged(|a| a.jmp(0x2ffe));
    // mov ebx, 0x44332211, with its opcode and first byte on one page; hlt.
    guest.write(0x2ffe, &[0xbb, 0x11, 0x22, 0x33, 0x44, 0xf4]);
    guest.map(3, 0);
    guest.handler(14, |a| {
        a.pop(edx)?;
        a.mov(eax, cr2)?;
        a.mov(dword_ptr(TABLE as u32 + 12), 0x3003)?;
        a.invlpg(byte_ptr(eax))?;
        a.iretd()
    });
    guest.finish();
    let regs = guest.vcpu.regs().unwrap();
    assert_eq!((regs.rax, regs.rdx, regs.rbx), (0x3000, 0, 0x4433_2211));

    // One that ends at the page's end doesn't touch the next.
    let mut guest = Guest::paged(|a| a.jmp(0x2fff));
    guest.write(0x2fff, &[0xf4]);
    guest.map(3, 0);
    guest.finish();
}

#[test]
fn instruction_whose_second_part_is_in_a_device_is_fetched_from_both() {
    let mut guest = Guest::new(|a| a.jmp(u64::from(DEVICE) - 2));
    guest.write(RAM - 2, &[0xbb, 0x11]);
    let mut exit = guest.run(VmEntry::Resume);
    assert!(matches!(exit, VmExit::Mmio { gpa, op: IoOp::Read, .. } if gpa == Gpa::new(RAM)));
    // The rest of the instruction, and nothing but hlt.
    let mut device = [0xf4; 64];
    device[..3].copy_from_slice(&[0x22, 0x33, 0x44]);
    let mut fetches = 0;
    while let VmExit::Mmio {
        gpa,
        size,
        op: IoOp::Read,
    } = exit
    {
        fetches += 1;
        assert!(fetches < 100);
        let mut value = [0; 8];
        value.copy_from_slice(&device[(gpa.get() - RAM) as usize..][..8]);
        exit = guest.run(VmEntry::Value(size.truncate(u64::from_le_bytes(value))));
    }
    assert_eq!(exit, VmExit::Hlt);
    assert_eq!(guest.rbx(), 0x4433_2211);
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

/// Code at `CODE` is another page's; the same address without paging is what lies there.
fn pages_under_its_feet(code: Code, there: Code) -> Guest {
    let mut guest = Guest::paged(there);
    load(&guest.machine, 0x5000, code);
    guest.map(1, 0x5003);
    let system = guest.vcpu.system_regs().unwrap();
    guest.vcpu.set_system_regs(&system).unwrap();
    guest
}

#[test]
fn guest_that_turns_paging_off_goes_on_with_what_lies_there() {
    let mut guest = pages_under_its_feet(
        |a| {
            a.mov(eax, cr0)?;
            a.and(eax, 0x7fff_ffff)?;
            a.mov(cr0, eax)?;
            a.mov(ebx, 1)?;
            a.hlt()
        },
        |a| {
            for _ in 0..11 {
                a.nop()?;
            }
            a.mov(ebx, 2)?;
            a.hlt()
        },
    );
    guest.finish();
    assert_eq!(guest.rbx(), 2);
}

#[test]
fn guest_that_changes_its_tables_goes_on_where_they_lead() {
    // mov cr3 to a directory in which everything is where it is.
    let mut guest = pages_under_its_feet(
        |a| {
            a.mov(eax, 0x1_8000)?;
            a.mov(cr3, eax)?;
            a.mov(ebx, 1)?;
            a.hlt()
        },
        |a| {
            for _ in 0..8 {
                a.nop()?;
            }
            a.mov(ebx, 2)?;
            a.hlt()
        },
    );
    guest.put(0x1_8000, 0x1_9003);
    for page in 0..16 {
        guest.put(0x1_9000 + 4 * page, (page as u32) << 12 | 3);
    }
    guest.finish();
    assert_eq!(guest.rbx(), 2);
}

#[test]
fn guest_that_turns_paging_off_in_the_middle_of_nowhere_fetches_from_there() {
    let mut guest = Guest::paged(|a| a.jmp(0x20_0000));
    guest.map(0x200, 0x5003);
    load(&guest.machine, 0x5000, |a| {
        a.mov(eax, cr0)?;
        a.and(eax, 0x7fff_ffff)?;
        a.mov(cr0, eax)?;
        a.hlt()
    });
    let exit = guest.run(VmEntry::Resume);
    assert!(
        matches!(exit, VmExit::Mmio { gpa, op: IoOp::Read, .. } if gpa.get() & !15 == 0x20_0000),
        "{exit:?}"
    );
}

#[test]
fn guest_that_turns_paging_on_without_tables_shuts_down() {
    let mut guest = Guest::new(|a| {
        a.mov(eax, 0x1_0000)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr0)?;
        a.or(eax, PAGING as u32 as i32)?;
        a.mov(cr0, eax)?;
        a.hlt()
    });
    guest.handler(14, |a| a.hlt());
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Shutdown);
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

/// A TSS descriptor in the second half of a GDT at 0x700, whose limit is raised.
fn add_task(guest: &mut Guest, selector: u64, base: u64, kind: u64) {
    let descriptor = 0x67 | (base & 0xff_ffff) << 16 | kind << 40;
    guest.write(0x700 + selector, &descriptor.to_le_bytes());
    let mut system = guest.vcpu.system_regs().unwrap();
    system.gdt.limit = 0x3f;
    guest.vcpu.set_system_regs(&system).unwrap();
}

/// The state of a task that begins at `entry` with its stack below 0x8000, as words from the place of CR3 on.
fn task(entry: u32) -> [u32; 18] {
    let mut words = [0; 18];
    (words[1], words[2], words[7]) = (entry, 2, 0x8000);
    words[11..17].copy_from_slice(&[16, 8, 16, 16, 16, 16]);
    words
}

#[test]
fn double_fault_of_a_broken_stack_is_survived_by_a_task_of_its_own() {
    let mut guest = Guest::new(|a| {
        a.mov(ax, 0x18)?;
        a.ltr(ax)?;
        // The stack's segment ends here: neither #SS nor #DF could push anything.
        a.mov(ax, 0x28)?;
        a.mov(ss, ax)?;
        a.mov(esp, 0x100)?;
        a.push(eax)?;
        a.hlt()
    });
    add_task(&mut guest, 0x18, 0x5000, 0x89);
    add_task(&mut guest, 0x20, 0x5100, 0x89);
    // Expand-down data with a limit above its stack pointer: there is no stack at all.
    guest.write(0x728, &0x0040_9700_0000_0fff_u64.to_le_bytes());
    for (index, word) in (0..).zip(task(HANDLER as u32)) {
        guest.put(0x511c + 4 * index, word);
    }
    guest.write(IDT + 8 * 8, &(0x20_u64 << 16 | 0x8500 << 32).to_le_bytes());
    load(&guest.machine, HANDLER, |a| {
        a.pop(ebx)?;
        a.str(dx)?;
        a.hlt()
    });
    guest.run(VmEntry::Resume);
    let regs = guest.vcpu.regs().unwrap();
    assert_eq!((regs.rbx, regs.rdx & 0xffff, regs.rip), (0, 0x20, HANDLER + 6));
    // The faulting instruction is in the old task's state.
    let saved = u64::from(guest.word(0x5020));
    assert_eq!((guest.word(0x5038), guest.word(0x5050) & 0xffff), (0x100, 0x28));
    assert!((CODE..CODE + 0x40).contains(&saved));
}

#[test]
fn task_state_in_a_device_is_read_and_written_once() {
    let mut guest = Guest::new(|a| {
        a.mov(ax, 0x18)?;
        a.ltr(ax)?;
        a.jmp(0x1_2345)?;
        a.hlt()
    });
    // ltr; then jmp 0x20:0 by hand.
    guest.write(
        CODE,
        &[0x66, 0xb8, 0x18, 0, 0x0f, 0x00, 0xd8, 0xea, 0, 0, 0, 0, 0x20, 0],
    );
    add_task(&mut guest, 0x18, u64::from(DEVICE), 0x89);
    add_task(&mut guest, 0x20, u64::from(DEVICE) + 0x1000, 0x89);
    load(&guest.machine, HANDLER, |a| a.hlt());
    let image = task(HANDLER as u32);
    let mut device = vec![0_u8; 0x2000];
    for (index, word) in image.into_iter().enumerate() {
        device[0x101c + 4 * index..][..4].copy_from_slice(&word.to_le_bytes());
    }
    let mut seen = Vec::new();
    let mut entry = VmEntry::Resume;
    loop {
        match guest.run(entry) {
            VmExit::Mmio { gpa, size, op } => {
                assert!(!seen.contains(&(gpa, op)), "{gpa:?} {op:?} twice");
                seen.push((gpa, op));
                let at = (gpa.get() - RAM) as usize;
                let bytes = size.bytes() as usize;
                entry = match op {
                    IoOp::Read => {
                        let mut value = [0; 8];
                        value[..bytes].copy_from_slice(&device[at..at + bytes]);
                        VmEntry::Value(u64::from_le_bytes(value))
                    }
                    IoOp::Write(value) => {
                        device[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
                        VmEntry::Resume
                    }
                };
            }
            exit => break assert_eq!(exit, VmExit::Hlt),
        }
    }
    assert_eq!(guest.vcpu.regs().unwrap().rip, HANDLER + 1);
    assert_eq!(device[0x20..0x24], (CODE as u32 + 14).to_le_bytes());
    assert_eq!(guest.vcpu.system_regs().unwrap().tr.selector, 0x20);
    assert_eq!((guest.word(0x71c) >> 8 & 15, guest.word(0x724) >> 8 & 15), (9, 11));
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
