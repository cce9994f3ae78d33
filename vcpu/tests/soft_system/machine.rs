//! A machine in 64-bit mode with everything that system calls, interrupts and returns need, run by fast operations and by the
//! instruction core.

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

pub const RAM: u64 = 1 << 18;
pub const TABLES: u64 = 0x1000;
pub const GDT: u64 = 0x5000;
pub const IDT: u64 = 0x6000;
pub const TSS: u64 = 0x7000;
pub const CODE: u64 = 0x8000;
pub const HANDLER: u64 = 0x9000;
pub const USER_STACK: u64 = 0xc000;
pub const KERNEL_STACK: u64 = 0xe000;
pub const OTHER_STACK: u64 = 0xf800;
pub const PER_CPU: u64 = 0x1_0000;
pub const SETUP: u64 = 0x1_1000;
/// A page that is not mapped, one that is read-only, one of the kernel's, one that is a device.
pub const ABSENT: u64 = 0x2_0000;
pub const READ_ONLY: u64 = 0x2_1000;
pub const SUPERVISOR: u64 = 0x2_2000;
pub const DEVICE: u64 = 0x10_0000;

pub const KERNEL_CODE: u16 = 0x08;
pub const KERNEL_DATA: u16 = 0x10;
pub const USER_CODE_32: u16 = 0x1b;
pub const USER_DATA: u16 = 0x23;
pub const USER_CODE: u16 = 0x2b;
pub const CONFORMING: u16 = 0x30;
pub const BROKEN: u16 = 0x38;
pub const TASK: u16 = 0x40;
pub const LAST: u16 = 0x4f;

pub const TF: u64 = 1 << 8;
pub const IF: u64 = 1 << 9;
pub const NT: u64 = 1 << 14;
pub const RF: u64 = 1 << 16;
pub const AC: u64 = 1 << 18;

/// PAE, and SSE may be used.
pub const CR4: u64 = 0x620;

/// `out 0x80, al`: the end.
pub const END: [u8; 2] = [0xe6, 0x80];

/// Interrupts that wait, in their order.
#[derive(Default)]
pub struct Line(Mutex<VecDeque<u8>>);

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
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub sfmask: u64,
    pub efer: u64,
}

pub const GOOD_MSRS: Msrs = Msrs {
    star: (USER_CODE_32 as u64) << 48 | (KERNEL_CODE as u64) << 32,
    lstar: HANDLER,
    sfmask: TF | IF | NT | AC | 1 << 10,
    efer: 0xd01,
};

/// All that a machine is made of.
#[derive(Clone)]
pub struct World {
    pub memory: Vec<(u64, Vec<u8>)>,
    pub msrs: Msrs,
    pub interrupts: Vec<u8>,
    pub cpl: u8,
    pub cr4: u64,
    pub regs: Regs,
}

impl World {
    /// Flat segments, gates that lead to [`HANDLER`], stacks, and this code of CPL 3 and of the handler.
    pub fn good(code: &[u8], handler: &[u8]) -> Self {
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

    pub fn put(&mut self, at: u64, word: u64) {
        self.memory.push((at, word.to_le_bytes().to_vec()));
    }
}

/// A gate's 16 bytes.
pub fn gate(target: u64, selector: u16, kind: u64, dpl: u64, ist: u64) -> [u64; 2] {
    let low = target & 0xffff | u64::from(selector) << 16 | ist << 32 | (0x80 | dpl << 5 | kind) << 40;
    [low | (target & 0xffff_0000) << 32, target >> 32]
}

pub struct Machine {
    pub ram: GuestRam,
    pub vcpu: SoftVcpu,
}

impl Machine {
    pub fn new(world: &World, fast: bool) -> Self {
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
    pub fn run(&mut self, instructions: u64) -> Vec<VmExit> {
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

    pub fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; RAM as usize];
        self.ram.read(Gpa::new(0), &mut bytes).unwrap();
        bytes
    }
}

pub fn system(world: &World, cpl: u8) -> SystemRegs {
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
pub fn compare(world: &World, instructions: u64, what: &str) -> (Machine, Vec<VmExit>) {
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
pub fn by_core(machine: &Machine, mnemonic: &str) -> u64 {
    let counts = machine.vcpu.counts().get();
    counts.by_core.get(mnemonic).copied().unwrap_or(0)
}
