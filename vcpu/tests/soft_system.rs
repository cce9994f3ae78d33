//! What crosses privilege levels in 64-bit mode – `syscall sysret swapgs int iretq`, and exceptions and interrupts on the
//! way – does the same by fast operations as by the instruction core, in good order and in bad.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "parts of instructions are cut from larger numbers"
)]

#[path = "emulate_silicon/rng.rs"]
#[allow(dead_code, reason = "shared with another test")]
mod rng;

use rng::Rng;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use umbra_devices::IntrSource;
use umbra_devices::irq::Waker;
use umbra_memslots::ram::{GuestRam, HostMapping};
use umbra_memslots::{Gpa, GuestMemory, SlotLimits, SlotTable};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::regs::{DescriptorTable, Regs, Segment, SystemRegs};
use umbra_vcpu::soft::{SoftOptions, SoftVcpu, SoftVm};

const RAM: u64 = 1 << 18;
const TABLES: u64 = 0x1000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
const CODE: u64 = 0x8000;
const HANDLER: u64 = 0x9000;
const USER_STACK: u64 = 0xc000;
const KERNEL_STACK: u64 = 0xe000;
const OTHER_STACK: u64 = 0xf800;
const PER_CPU: u64 = 0x1_0000;
const SETUP: u64 = 0x1_1000;
/// A page that is not mapped, one that is read-only, one of the kernel's, one that is a device.
const ABSENT: u64 = 0x2_0000;
const READ_ONLY: u64 = 0x2_1000;
const SUPERVISOR: u64 = 0x2_2000;
const DEVICE: u64 = 0x10_0000;

const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const USER_CODE_32: u16 = 0x1b;
const USER_DATA: u16 = 0x23;
const USER_CODE: u16 = 0x2b;
const CONFORMING: u16 = 0x30;
const BROKEN: u16 = 0x38;
const TASK: u16 = 0x40;
const LAST: u16 = 0x4f;

const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
const NT: u64 = 1 << 14;
const RF: u64 = 1 << 16;
const AC: u64 = 1 << 18;

/// PAE, and SSE may be used.
const CR4: u64 = 0x620;

/// Programs of an ordinary run; more if `UMBRA_SILICON_CASES` asks for millions of cases elsewhere.
const PROGRAMS: u64 = 150;
/// Instructions that one may execute.
const ENOUGH: u64 = 250;

/// `out 0x80, al`: the end.
const END: [u8; 2] = [0xe6, 0x80];

/// Interrupts that wait, in their order.
#[derive(Default)]
struct Line(Mutex<VecDeque<u8>>);

impl IntrSource for Line {
    fn is_pending(&self) -> bool {
        !self.0.lock().unwrap().is_empty()
    }

    fn acknowledge(&self) -> u8 {
        self.0.lock().unwrap().pop_front().unwrap()
    }

    fn set_waker(&self, _waker: Waker) {
        // All wait from the beginning.
    }
}

/// MSRs of system calls.
#[derive(Clone, Copy)]
struct Msrs {
    star: u64,
    lstar: u64,
    sfmask: u64,
    efer: u64,
}

const GOOD_MSRS: Msrs = Msrs {
    star: (USER_CODE_32 as u64) << 48 | (KERNEL_CODE as u64) << 32,
    lstar: HANDLER,
    sfmask: TF | IF | NT | AC | 1 << 10,
    efer: 0xd01,
};

/// All that a machine is made of.
#[derive(Clone)]
struct World {
    memory: Vec<(u64, Vec<u8>)>,
    msrs: Msrs,
    interrupts: Vec<u8>,
    cpl: u8,
    cr4: u64,
    regs: Regs,
}

impl World {
    /// Flat segments, gates that lead to [`HANDLER`], stacks, and this code of CPL 3 and of the handler.
    fn good(code: &[u8], handler: &[u8]) -> Self {
        let mut memory: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut put = |at: u64, words: &[u64]| {
            let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            memory.push((at, bytes));
        };
        put(TABLES, &[TABLES + 0x1007]);
        put(TABLES + 0x1000, &[TABLES + 0x2007]);
        put(TABLES + 0x2000, &[TABLES + 0x3007]);
        let pages: Vec<u64> = (0..512u64)
            .map(|page| match page << 12 {
                ABSENT => 0,
                at @ READ_ONLY => at | 5,
                // With SMAP no descriptor may be in a user's page.
                at @ (SUPERVISOR | GDT | IDT | TSS) => at | 3,
                at => at | 7,
            })
            .collect();
        put(TABLES + 0x3000, &pages);
        let task = 0x0000_8b00_0000_0067 | TSS << 16;
        put(
            GDT,
            &[
                0,
                0x00af_9b00_0000_ffff,
                0x00cf_9300_0000_ffff,
                0x00cf_fb00_0000_ffff,
                0x00cf_f300_0000_ffff,
                0x00af_fb00_0000_ffff,
                0x00af_9f00_0000_ffff,
                0,
                task,
                0,
            ],
        );
        let gates: Vec<u64> = (0..256).flat_map(|_| gate(HANDLER, KERNEL_CODE, 14, 3, 0)).collect();
        put(IDT, &gates);
        memory.push((TSS + 4, KERNEL_STACK.to_le_bytes().to_vec()));
        memory.push((TSS + 0x24, OTHER_STACK.to_le_bytes().to_vec()));
        memory.push((CODE, code.to_vec()));
        memory.push((HANDLER, handler.to_vec()));
        Self {
            memory,
            msrs: GOOD_MSRS,
            interrupts: Vec::new(),
            cpl: 3,
            cr4: CR4,
            regs: Regs {
                rsp: USER_STACK,
                rip: CODE,
                rflags: 2,
                ..Regs::default()
            },
        }
    }

    fn put(&mut self, at: u64, word: u64) {
        self.memory.push((at, word.to_le_bytes().to_vec()));
    }
}

/// A gate's 16 bytes.
fn gate(target: u64, selector: u16, kind: u64, dpl: u64, ist: u64) -> [u64; 2] {
    let low = target & 0xffff | u64::from(selector) << 16 | ist << 32 | (0x80 | dpl << 5 | kind) << 40;
    [low | (target & 0xffff_0000) << 32, target >> 32]
}

struct Machine {
    ram: GuestRam,
    vcpu: SoftVcpu,
}

impl Machine {
    fn new(world: &World, fast: bool) -> Self {
        let vm = SoftVm::new(SoftOptions { mmio_caching: true }).unwrap();
        let mut slots = SlotTable::new(SlotLimits::X86_64);
        slots.add_observer(vm.slot_follower());
        let ram = GuestRam::from_table(slots);
        ram.map(Gpa::new(0), Arc::new(HostMapping::anonymous(RAM).unwrap()))
            .unwrap();
        for (at, bytes) in &world.memory {
            ram.write(Gpa::new(*at), bytes).unwrap();
        }
        let mut vcpu = vm.create_vcpu(ram.reader());
        vcpu.set_fast(fast);
        let mut machine = Self { ram, vcpu };
        machine.set_up(world);
        machine.vcpu.set_system_regs(&system(world, world.cpl)).unwrap();
        machine.vcpu.set_regs(&world.regs).unwrap();
        machine
    }

    /// MSRs are written by the guest.
    fn set_up(&mut self, world: &World) {
        let mut code = Vec::new();
        let msrs = [
            (0xc000_0081u32, world.msrs.star),
            (0xc000_0082, world.msrs.lstar),
            (0xc000_0084, world.msrs.sfmask),
            (0xc000_0102, PER_CPU),
        ];
        for (msr, value) in msrs {
            code.push(0xb9);
            code.extend(msr.to_le_bytes());
            code.push(0xb8);
            code.extend((value as u32).to_le_bytes());
            code.push(0xba);
            code.extend(((value >> 32) as u32).to_le_bytes());
            code.extend([0x0f, 0x30]);
        }
        code.push(0xf4);
        self.ram.write(Gpa::new(SETUP), &code).unwrap();
        let plain = SystemRegs {
            cr4: CR4,
            ..system(world, 0)
        };
        self.vcpu.set_system_regs(&plain).unwrap();
        self.vcpu
            .set_regs(&Regs {
                rip: SETUP,
                rflags: 2,
                ..Regs::default()
            })
            .unwrap();
        assert_eq!(self.vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
        let line = Line(Mutex::new(world.interrupts.iter().copied().collect()));
        self.vcpu.set_interrupts(Arc::new(line));
    }

    /// Runs to the end, or far enough, and gives the exits on the way.
    fn run(&mut self, instructions: u64) -> Vec<VmExit> {
        self.vcpu.stop_after(instructions);
        let mut exits = vec![self.vcpu.run(VmEntry::Resume).unwrap()];
        while let Some(last @ VmExit::Mmio { .. }) = exits.last() {
            let entry = if last.wants_value() {
                VmEntry::Value(0x1234_8765)
            } else {
                VmEntry::Resume
            };
            exits.push(self.vcpu.run(entry).unwrap());
        }
        exits
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; RAM as usize];
        self.ram.read(Gpa::new(0), &mut bytes).unwrap();
        bytes
    }
}

fn system(world: &World, cpl: u8) -> SystemRegs {
    let data = Segment {
        selector: if cpl == 0 { KERNEL_DATA } else { USER_DATA },
        limit: u32::MAX,
        kind: 3,
        dpl: cpl,
        non_system: true,
        present: true,
        db: true,
        granularity: true,
        ..Segment::default()
    };
    SystemRegs {
        cs: Segment {
            selector: if cpl == 0 { KERNEL_CODE } else { USER_CODE },
            kind: 11,
            long: true,
            db: false,
            ..data
        },
        ds: data,
        es: data,
        ss: data,
        fs: data,
        gs: data,
        tr: Segment {
            selector: TASK,
            base: TSS,
            limit: 0x67,
            kind: 11,
            present: true,
            ..Segment::default()
        },
        gdt: DescriptorTable { base: GDT, limit: LAST },
        idt: DescriptorTable {
            base: IDT,
            limit: 0xfff,
        },
        cr0: 0x8005_0031,
        cr3: TABLES,
        cr4: world.cr4,
        efer: world.msrs.efer,
        ..SystemRegs::default()
    }
}

/// Runs a world both ways, compares, and gives the machine with fast operations.
fn compare(world: &World, instructions: u64, what: &str) -> (Machine, Vec<VmExit>) {
    let (mut fast, mut core) = (Machine::new(world, true), Machine::new(world, false));
    let (exits, expected) = (fast.run(instructions), core.run(instructions));
    let (state, wanted) = (fast.vcpu.state(), core.vcpu.state());
    assert!(
        exits == expected && state == wanted && fast.vcpu.executed() == core.vcpu.executed(),
        "{what}\nfast: {exits:?} {:x?} {:x?} after {}\ncore: {expected:?} {:x?} {:x?} after {}",
        state.regs(),
        state.sys,
        fast.vcpu.executed(),
        wanted.regs(),
        wanted.sys,
        core.vcpu.executed(),
    );
    let (memory, wanted) = (fast.memory(), core.memory());
    let differs = memory.iter().zip(&wanted).position(|(a, b)| a != b);
    assert_eq!(differs, None, "RAM, {what}");
    (fast, exits)
}

/// What the instruction core executed, by mnemonic.
fn by_core(machine: &Machine, mnemonic: &str) -> u64 {
    let counts = machine.vcpu.counts().get();
    counts.by_core.get(mnemonic).copied().unwrap_or(0)
}

#[test]
fn system_calls_in_a_loop_need_the_core_at_first_only() {
    // mov r15d, 100; again: mov eax, r15d; syscall; dec r15d; jnz again; int 0x80
    let code = [
        &[0x41, 0xbf, 100, 0, 0, 0, 0x44, 0x89, 0xf8, 0x0f, 0x05][..],
        &[0x41, 0xff, 0xcf, 0x75, 0xf6, 0xcd, 0x80],
    ]
    .concat();
    // swapgs; mov gs:[8], rsp; mov rsp, gs:[0]; add r8, rax; mov rsp, gs:[8]; swapgs; sysretq
    let handler = [
        &[0x0f, 0x01, 0xf8, 0x65, 0x48, 0x89, 0x24, 0x25, 8, 0, 0, 0][..],
        &[0x65, 0x48, 0x8b, 0x24, 0x25, 0, 0, 0, 0, 0x49, 0x01, 0xc0],
        &[
            0x65, 0x48, 0x8b, 0x24, 0x25, 8, 0, 0, 0, 0x0f, 0x01, 0xf8, 0x48, 0x0f, 0x07,
        ],
    ]
    .concat();
    let mut world = World::good(&code, &handler);
    world.put(PER_CPU, KERNEL_STACK);
    let [low, high] = gate(HANDLER + 0x100, KERNEL_CODE, 14, 3, 0);
    world.put(IDT + 16 * 0x80, low);
    world.put(IDT + 16 * 0x80 + 8, high);
    world.memory.push((HANDLER + 0x100, END.to_vec()));
    let (machine, exits) = compare(&world, 2000, "system calls");
    assert!(matches!(exits[..], [VmExit::Pio { port: 0x80, .. }]), "{exits:?}");
    assert_eq!(machine.vcpu.state().gpr[8], 5050);
    for mnemonic in ["syscall", "swapgs", "sysretq", "int"] {
        assert_eq!(by_core(&machine, mnemonic), 0, "{mnemonic}");
    }
}

#[test]
fn interrupts_in_a_loop_need_the_core_at_first_only() {
    // mov r15d, 100; again: mov eax, r15d; int 0x80; dec r15d; jnz again; int 0x81
    let code = [
        &[0x41, 0xbf, 100, 0, 0, 0, 0x44, 0x89, 0xf8, 0xcd, 0x80][..],
        &[0x41, 0xff, 0xcf, 0x75, 0xf6, 0xcd, 0x81],
    ]
    .concat();
    for (ist, level) in [(0, 3), (1, 3), (0, 0)] {
        // add r8, rax; iretq
        let mut world = World::good(&code, &[0x49, 0x01, 0xc0, 0x48, 0xcf]);
        world.cpl = level;
        for (vector, target) in [(0x80, HANDLER), (0x81, HANDLER + 0x100)] {
            let [low, high] = gate(target, KERNEL_CODE, 14, 3, ist);
            world.put(IDT + 16 * vector, low);
            world.put(IDT + 16 * vector + 8, high);
        }
        world.memory.push((HANDLER + 0x100, END.to_vec()));
        let (machine, exits) = compare(&world, 2000, "interrupts");
        assert!(matches!(exits[..], [VmExit::Pio { port: 0x80, .. }]), "{exits:?}");
        assert_eq!(machine.vcpu.state().gpr[8], 5050);
        assert_eq!(by_core(&machine, "int"), 0);
        // The first finds the frame in a page that was written to only.
        assert!(by_core(&machine, "iretq") <= 1);
    }
}

#[test]
fn interrupt_that_waits_is_taken_as_soon_as_a_return_lets_it_in() {
    // At CPL 0: mov ecx, user; mov r11d, 0x202; sysretq. At CPL 3: add r9, 1; syscall.
    let user = CODE as u32 + 0x100;
    let mut sysret = vec![0xb9];
    sysret.extend(user.to_le_bytes());
    sysret.extend([0x41, 0xbb, 0x02, 0x02, 0, 0, 0x48, 0x0f, 0x07]);
    // push data; push stack; push 0x202; push code; push user; iretq
    let mut iret = vec![0x6a, USER_DATA as u8, 0x68];
    iret.extend((USER_STACK as u32).to_le_bytes());
    iret.extend([0x68, 0x02, 0x02, 0, 0, 0x6a, USER_CODE as u8, 0x68]);
    iret.extend(user.to_le_bytes());
    iret.extend([0x48, 0xcf]);
    for code in [sysret, iret] {
        let mut world = World::good(&code, &END);
        world.memory.push((CODE + 0x100, vec![0x49, 0x83, 0xc1, 1, 0x0f, 0x05]));
        world.cpl = 0;
        world.interrupts = vec![0x30];
        let (machine, _) = compare(&world, 100, "an interrupt waits");
        let state = machine.vcpu.state();
        assert_eq!(state.gpr[9], 0, "no instruction of CPL 3 comes first");
        assert_eq!(state.gpr[4], KERNEL_STACK - 40);
    }
}

#[test]
fn users_page_is_shut_again_when_flags_are_popped() {
    // At CPL 0: mov r15d, 12; again: stac; mov rax, [rbx]; push 2; popfq; dec r15d; jnz again; mov rcx, [rbx]; out
    let code = [
        &[
            0x41, 0xbf, 12, 0, 0, 0, 0x0f, 0x01, 0xcb, 0x48, 0x8b, 0x03, 0x6a, 2, 0x9d,
        ][..],
        &[0x41, 0xff, 0xcf, 0x75, 0xf2, 0x48, 0x8b, 0x0b],
        &END,
    ]
    .concat();
    // inc r8; out
    let mut world = World::good(&code, &[&[0x49, 0xff, 0xc0][..], &END].concat());
    world.cpl = 0;
    world.cr4 |= 1 << 21;
    world.regs.rsp = SUPERVISOR + 0x800;
    world.regs.rbx = USER_STACK;
    world.put(USER_STACK, 0x77);
    let (machine, _) = compare(&world, 200, "a user's page");
    let state = machine.vcpu.state();
    assert_eq!((state.gpr[0], state.gpr[1], state.gpr[8]), (0x77, 0, 1));
    assert_eq!(state.sys.cr2, USER_STACK);
    // The flag says what may be accessed, and not what is translated to what.
    let stats = machine.vcpu.shadow_stats();
    assert!(stats.roots + stats.root_hits < 6, "{stats:?}");
}

/// One instruction, or a few that belong together. `starts` are places where code begins.
fn instruction(rng: &mut Rng, starts: &[u64], code: &mut Vec<u8>) {
    let place = if rng.chance(85) {
        rng.pick(starts)
    } else {
        rng.pick(&[HANDLER, CODE, 0x8000_0000_0000, u64::MAX, ABSENT, SUPERVISOR])
    };
    let rflags = 2
        | rng.next() & 0xcd5
        | if rng.chance(30) {
            rng.pick(&[TF, IF, NT, RF, AC, 3 << 12, IF | RF, 1 << 17, 1 << 21])
        } else {
            0
        };
    match rng.below(14) {
        0 | 1 => code.extend([0x0f, 0x05]),
        2 | 3 => code.extend([0xcd, rng.pick(&[0x80, 0x81, 0x82, 3, 14, 0xff])]),
        4 | 5 => {
            // `iretq` to wherever. Only what is pushed with 32 bits is right for certain.
            let (ss, cs) = rng.pick(&[
                (USER_DATA, USER_CODE),
                (USER_DATA, USER_CODE),
                (USER_DATA, USER_CODE),
                (KERNEL_DATA, KERNEL_CODE),
                (0, KERNEL_CODE),
                (3, USER_CODE),
                (USER_DATA, USER_CODE_32),
                (USER_DATA, BROKEN | 3),
                (BROKEN | 3, USER_CODE),
                (USER_DATA, CONFORMING | 3),
                (KERNEL_DATA, USER_CODE),
                (USER_DATA, 0x53),
            ]);
            let stack = rng.pick(&[
                USER_STACK,
                USER_STACK - 0xff9,
                ABSENT + 8,
                READ_ONLY + 0x800,
                KERNEL_STACK,
            ]);
            for word in [u64::from(ss), stack, rflags, u64::from(cs), place] {
                // mov rax, word; push rax
                code.extend([0x48, 0xb8]);
                code.extend(word.to_le_bytes());
                code.push(0x50);
            }
            code.extend([0x48, 0xcf]);
        }
        6 | 7 => {
            // mov rcx, place; mov r11, flags; sysret
            code.extend([0x48, 0xb9]);
            code.extend(place.to_le_bytes());
            code.extend([0x49, 0xbb]);
            code.extend(rflags.to_le_bytes());
            if rng.chance(80) {
                code.push(0x48);
            }
            code.extend([0x0f, 0x07]);
        }
        8 => code.extend([0x0f, 0x01, rng.pick(&[0xf8, 0xf8, 0xca, 0xcb])]),
        9 => {
            // Arithmetic on flags that are still to be worked out, or a look at them.
            code.extend(rng.pick(&[
                &[0x49u8, 0x01, 0xc0][..],
                &[0x49, 0xff, 0xc1],
                &[0x9c, 0x58],
                &[0x6a, 2, 0x9d],
                &[0xbb, 0, 0xb0, 0, 0, 0x48, 0x8b, 0x03],
                &[0x48, 0x19, 0xc2],
                &[0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0],
                &[0x48, 0x89, 0xe6],
            ]));
        }
        10 => {
            // A store to somewhere.
            let at = rng.pick(&[
                ABSENT,
                READ_ONLY + 8,
                SUPERVISOR,
                USER_STACK - 0x100,
                DEVICE,
                ABSENT - 4,
            ]);
            code.extend([0xbb]);
            code.extend((at as u32).to_le_bytes());
            code.extend([0x48, 0x89, 0x03]);
        }
        11 => {
            // The stack goes elsewhere.
            let at = rng.pick(&[
                USER_STACK - 0x20,
                KERNEL_STACK - 0x333,
                ABSENT + 0x10,
                READ_ONLY + 0x100,
                OTHER_STACK,
                DEVICE + 0x100,
                0x8000_0000_0010,
            ]);
            code.extend([0x48, 0xbc]);
            code.extend(at.to_le_bytes());
        }
        12 => code.extend(rng.pick(&[&[0x48u8, 0xcf][..], &[0x48, 0x83, 0xc4, 8, 0x48, 0xcf], &[0x0f, 0x0b]])),
        _ => code.extend(END),
    }
}

/// A program of some instructions from `at` on.
fn program(rng: &mut Rng, starts: &[u64], instructions: u64) -> Vec<u8> {
    let mut code = Vec::new();
    for _ in 0..instructions {
        instruction(rng, starts, &mut code);
    }
    code.extend(END);
    code
}

/// Where the tables are other than [`World::good`] has them.
fn spoil(rng: &mut Rng, world: &mut World) {
    // The odd descriptor may be anything.
    let odd = if rng.chance(50) {
        rng.next()
    } else {
        rng.pick(&[0x00af_fb00_0000_ffff, 0x00cf_f300_0000_ffff, 0x00ef_fb00_0000_ffff]) ^ 1 << (40 + rng.below(8))
    };
    world.put(GDT + u64::from(BROKEN), odd);
    if rng.chance(40) {
        // Segments that were never used are marked.
        let selector = rng.pick(&[KERNEL_CODE, USER_DATA & !3, USER_CODE & !3, USER_CODE_32 & !3]);
        let kind = if selector == USER_DATA & !3 { 0xf2 } else { 0xfa };
        let kind = if selector == KERNEL_CODE { 0x9a } else { kind };
        let size = if selector == USER_CODE_32 & !3 { 0xcf } else { 0xaf };
        world.put(GDT + u64::from(selector), size << 48 | kind << 40 | 0xffff);
    }
    for vector in [0x80, 0x81, 0x82, 13, 14, 6, 1, 0x30] {
        if rng.chance(70) {
            continue;
        }
        let target = rng.pick(&[HANDLER, HANDLER, CODE, 0x8000_0000_0000, ABSENT]);
        let selector = rng.pick(&[
            KERNEL_CODE,
            KERNEL_CODE,
            CONFORMING,
            BROKEN,
            0,
            USER_CODE,
            KERNEL_DATA,
            0x50,
        ]);
        let kind = rng.pick(&[14, 14, 15, 15, 12, 5, 6]);
        let (dpl, ist) = (rng.pick(&[3, 3, 0]), rng.pick(&[0, 0, 0, 1, 2, 3]));
        let [low, high] = gate(target, selector, kind, dpl, ist);
        let absent = if rng.chance(10) { 1 << 47 } else { 0 };
        world.put(IDT + 16 * vector, low & !absent);
        world.put(IDT + 16 * vector + 8, high);
    }
    for (offset, percent) in [(4, 30), (0x24, 30), (0x2c, 90), (0x34, 100)] {
        if rng.chance(percent) {
            let stack = rng.pick(&[
                KERNEL_STACK,
                KERNEL_STACK - 0x777,
                ABSENT + 0x18,
                ABSENT,
                READ_ONLY + 0x200,
                0x8000_0000_0000,
                DEVICE + 0x200,
                // Page tables, and code.
                TABLES + 0x3ff0,
                HANDLER + 0x20,
            ]);
            world.put(TSS + offset, stack);
        }
    }
    if rng.chance(20) {
        world.msrs.star = rng.next();
        world.msrs.sfmask = rng.next() & 0xffff_ffff;
    }
    if rng.chance(10) {
        world.msrs.lstar = rng.pick(&[ABSENT, SUPERVISOR, CODE]);
    }
    if rng.chance(5) {
        world.msrs.efer &= !1;
    }
    if rng.chance(30) {
        // SMEP, SMAP.
        world.cr4 |= rng.pick(&[1 << 20, 1 << 21]);
    }
    for _ in 0..rng.below(4) {
        world.interrupts.push(rng.pick(&[0x30, 0x31, 0x80]));
    }
}

#[test]
fn random_crossings_fast_and_by_the_core_end_alike() {
    let cases: Option<u64> = std::env::var("UMBRA_SILICON_CASES").ok().and_then(|n| n.parse().ok());
    let programs = cases.map_or(PROGRAMS, |cases| (cases / 1000).max(PROGRAMS));
    let seed = std::env::var("UMBRA_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| std::process::id().into());
    println!("UMBRA_SEED={seed}, {programs} programs");
    let mut rng = Rng::new(seed);
    let (mut executed, mut fast) = (0, 0);
    for number in 0..programs {
        let length = 1 + rng.below(8);
        let mut starts = vec![CODE, HANDLER];
        let code = program(&mut rng, &starts, length);
        starts.push(CODE + code.len() as u64 - 2);
        let length = rng.below(5);
        let handler = program(&mut rng, &starts, length);
        let mut world = World::good(&code, &handler);
        if rng.chance(70) {
            spoil(&mut rng, &mut world);
        }
        world.cpl = rng.pick(&[0, 3]);
        world.regs.rflags |= rng.next() & 0x8d5 | if rng.chance(30) { IF } else { 0 };
        if rng.chance(10) {
            world.regs.rsp = rng.pick(&[USER_STACK - 0x123, ABSENT + 0x10, 0x8000_0000_0000]);
        }
        world.put(PER_CPU, KERNEL_STACK);
        let what = format!("program {number} of {seed}: {code:02x?}, handler {handler:02x?}");
        let (machine, _) = compare(&world, ENOUGH, &what);
        executed += machine.vcpu.executed();
        fast += machine.vcpu.executed() - machine.vcpu.counts().get().core_instructions();
    }
    println!("{executed} instructions, {fast} of them not by the core");
    assert!(fast > executed / 4, "too little is fast");
}
