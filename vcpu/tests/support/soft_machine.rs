//! A machine of software CPUs in flat 32-bit mode without paging, for tests.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a panic is how tests fail")]

use std::sync::Arc;
use umbra_devices::ManualClock;
use umbra_memslots::ram::{GuestRam, HostMapping};
use umbra_memslots::{Gpa, GuestMemory, SlotLimits, SlotTable};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::regs::{DescriptorTable, Regs, Segment, SystemRegs};
use umbra_vcpu::soft::{SoftOptions, SoftVcpu, SoftVm};

/// Where the IDT lies, below a GDT with null, code and data.
pub const IDT: u64 = 0x800;
const GDT: u64 = 0x700;

/// The machine; its vCPUs are made one by one.
pub struct Machine {
    pub ram: GuestRam,
    vm: SoftVm,
}

impl Machine {
    /// With `ram` bytes from address 0 on, and a GDT in them.
    pub fn new(ram: u64) -> Self {
        Self::of(SoftVm::new(SoftOptions { mmio_caching: true }).unwrap(), ram)
    }

    /// The same with CPUs that take turns and move `clock`.
    pub fn in_turns(ram: u64, clock: Arc<ManualClock>) -> Self {
        let vm = SoftVm::in_turns(SoftOptions { mmio_caching: true }, clock);
        Self::of(vm.unwrap(), ram)
    }

    fn of(vm: SoftVm, ram: u64) -> Self {
        let mut slots = SlotTable::new(SlotLimits::X86_64);
        slots.add_observer(vm.slot_follower());
        let memory = GuestRam::from_table(slots);
        memory
            .map(Gpa::new(0), Arc::new(HostMapping::anonymous(ram).unwrap()))
            .unwrap();
        for (index, descriptor) in [0u64, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff]
            .into_iter()
            .enumerate()
        {
            memory
                .write(Gpa::new(GDT + 8 * index as u64), &descriptor.to_le_bytes())
                .unwrap();
        }
        Self { ram: memory, vm }
    }

    /// Writes as a device with DMA does.
    pub fn write_as_device(&self, at: u64, bytes: &[u8]) {
        self.ram.write(Gpa::new(at), bytes).unwrap();
        self.vm.write_follower()(Gpa::new(at), bytes.len() as u64);
    }

    /// A vCPU that begins at `rip`, with its stack below `rsp`.
    pub fn vcpu(&self, rip: u64, rsp: u64) -> SoftVcpu {
        let mut vcpu = self.vm.create_vcpu(self.ram.reader());
        let data = Segment {
            selector: 16,
            limit: u32::MAX,
            kind: 3,
            non_system: true,
            present: true,
            db: true,
            granularity: true,
            ..Segment::default()
        };
        vcpu.set_system_regs(&SystemRegs {
            cs: Segment {
                selector: 8,
                kind: 11,
                ..data
            },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            gdt: DescriptorTable { base: GDT, limit: 23 },
            idt: DescriptorTable { base: IDT, limit: 0xff },
            cr0: 0x11,
            ..SystemRegs::default()
        })
        .unwrap();
        vcpu.set_regs(&Regs {
            rip,
            rsp,
            rflags: 2,
            ..Regs::default()
        })
        .unwrap();
        vcpu
    }

    /// The same in 64-bit mode at CPL 0, where 2 MiB from address 0 on are mapped to themselves by three tables.
    pub fn long_vcpu(&self, rip: u64, rsp: u64, tables: u64) -> SoftVcpu {
        const LARGE: u64 = 1 << 7;
        for (at, entry) in [
            (tables, tables + 0x1007),
            (tables + 0x1000, tables + 0x2007),
            (tables + 0x2000, LARGE | 7),
            // A 64-bit code segment in the place of the 32-bit one.
            (GDT + 8, 0x00af_9b00_0000_ffff),
        ] {
            self.ram.write(Gpa::new(at), &entry.to_le_bytes()).unwrap();
        }
        let mut vcpu = self.vcpu(rip, rsp);
        let system = vcpu.system_regs().unwrap();
        vcpu.set_system_regs(&SystemRegs {
            cs: Segment {
                long: true,
                db: false,
                ..system.cs
            },
            cr0: 1 << 31 | 0x11,
            cr3: tables,
            cr4: 1 << 5 | 3 << 9,
            efer: 0xd00,
            idt: DescriptorTable {
                base: IDT,
                limit: 0x1ff,
            },
            ..system
        })
        .unwrap();
        vcpu
    }
}
