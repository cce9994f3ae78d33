//! Small guests on a real KVM, for the tests of this folder.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code on a 64-bit host"
)]

use iced_x86::code_asm::CodeAssembler;
use std::sync::Arc;
use umbra_memslots::{Backing, Gpa, Hva, NewSlot, SlotTable};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::kvm::{Irqchip, KvmHost, KvmVcpu, KvmVm, VmOptions};
use umbra_vcpu::regs::{Regs, Segment, SystemRegs};
use vm_memory::VolatileMemory;
use vm_memory::mmap::MmapRegion;

/// Where the code of every test guest starts.
pub const CODE: u64 = 0x1000;
/// A frame without a slot in every test guest, and the next one has none either.
pub const MMIO: u64 = 0x1000_0000;
/// RAM of a test guest, from address 0.
pub const RAM: u64 = 1 << 20;

/// Opens KVM, or says why the test is skipped.
pub fn host() -> Option<KvmHost> {
    KvmHost::open().map_err(|error| eprintln!("skipped: {error}")).ok()
}

/// `count` of something, or a tenth of it in the lab, whose emulated machine is some fifty times slower.
pub fn in_full(count: u32) -> u32 {
    if std::env::var_os("UMBRA_LAB").is_some() {
        count / 10
    } else {
        count
    }
}

/// Anonymous memory that a guest may be given.
#[derive(Debug)]
pub struct TestRam(MmapRegion);

impl TestRam {
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self(MmapRegion::new(bytes).unwrap()))
    }

    pub fn write(&self, offset: usize, data: &[u8]) {
        self.0.get_slice(offset, data.len()).unwrap().copy_from(data);
    }

    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.0.get_slice(offset, length).unwrap().copy_to(&mut data[..]);
        data
    }

    pub fn read_u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.read(offset, 8).try_into().unwrap())
    }
}

// SAFETY: an anonymous mapping that only `drop` unmaps; all access here is by volatile copies.
#[expect(unsafe_code, reason = "vouching for a mapping is the trait's point")]
unsafe impl Backing for TestRam {
    fn start(&self) -> Hva {
        Hva::new(self.0.as_ptr() as u64)
    }

    fn bytes(&self) -> u64 {
        self.0.size() as u64
    }
}

/// A machine of RAM at 0 and vCPUs, without devices.
pub struct Guest {
    pub vm: KvmVm,
    pub table: SlotTable,
    pub ram: Arc<TestRam>,
}

/// The vCPU with these system registers and all others as small as they may be, about to execute at [`CODE`].
fn start_at_code(mut vcpu: KvmVcpu, system: &SystemRegs) -> KvmVcpu {
    vcpu.set_system_regs(system).unwrap();
    vcpu.set_regs(&Regs {
        rip: CODE,
        rsp: CODE,
        rflags: 2,
        ..Regs::default()
    })
    .unwrap();
    vcpu
}

impl Guest {
    pub fn new(irqchip: Irqchip, vcpus: u32) -> Option<Self> {
        Some(Self::with(
            VmOptions {
                irqchip,
                vcpus,
                ..VmOptions::default()
            },
            &host()?,
        ))
    }

    pub fn with(options: VmOptions, host: &KvmHost) -> Self {
        let vm = KvmVm::new(host, options).unwrap();
        let mut table = SlotTable::new(vm.slot_limits());
        table.add_observer(Box::new(vm.slot_mirror()));
        let ram = TestRam::new(RAM as usize);
        table.add(NewSlot::whole(Gpa::new(0), ram.clone())).unwrap();
        Self { vm, table, ram }
    }

    /// A vCPU about to run `code` at [`CODE`] in real mode, with segments at 0 and a stack below the code.
    pub fn real_mode(
        &self,
        id: u32,
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) -> KvmVcpu {
        self.load(16, CODE, code);
        let mut vcpu = self.vm.create_vcpu(id).unwrap();
        let mut system = vcpu.system_regs().unwrap();
        for segment in [
            &mut system.cs,
            &mut system.ds,
            &mut system.es,
            &mut system.fs,
            &mut system.gs,
            &mut system.ss,
        ] {
            segment.base = 0;
            segment.selector = 0;
        }
        start_at_code(vcpu, &system)
    }

    /// A vCPU about to run `code` at [`CODE`] in long mode at CPL 0, with the first GiB mapped to itself.
    pub fn long_mode(
        &self,
        id: u32,
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) -> KvmVcpu {
        self.load(64, CODE, code);
        let mut vcpu = self.vm.create_vcpu(id).unwrap();
        let mut system = vcpu.system_regs().unwrap();
        self.enter_long_mode(&mut system);
        start_at_code(vcpu, &system)
    }

    /// Assembles code to a place in RAM.
    pub fn load(&self, bits: u32, at: u64, code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) {
        let mut assembler = CodeAssembler::new(bits).unwrap();
        code(&mut assembler).unwrap();
        self.ram.write(at as usize, &assembler.assemble(at).unwrap());
    }

    fn enter_long_mode(&self, system: &mut SystemRegs) {
        const PML4: u64 = 0x8000;
        const PDPT: u64 = 0x9000;
        const PD: u64 = 0xa000;
        // Present, writable, user; 2 MiB pages in the directory.
        self.ram.write(PML4 as usize, &(PDPT | 7).to_le_bytes());
        self.ram.write(PDPT as usize, &(PD | 7).to_le_bytes());
        for index in 0..512u64 {
            self.ram
                .write((PD + 8 * index) as usize, &(index << 21 | 0x87).to_le_bytes());
        }
        let flat = Segment {
            selector: 8,
            limit: 0xffff_ffff,
            kind: 0xb,
            non_system: true,
            present: true,
            long: true,
            granularity: true,
            ..Segment::default()
        };
        system.cs = flat;
        let data = Segment {
            selector: 16,
            kind: 3,
            long: false,
            db: true,
            ..flat
        };
        system.ds = data;
        system.es = data;
        system.fs = data;
        system.gs = data;
        system.ss = data;
        system.cr3 = PML4;
        system.cr4 |= 1 << 5;
        system.cr0 |= 1 << 31 | 1;
        system.efer |= 1 << 8 | 1 << 10;
    }
}

/// Runs once and expects success.
pub fn run(vcpu: &mut KvmVcpu, entry: VmEntry) -> VmExit {
    vcpu.run(entry).unwrap()
}

/// A small random number generator (splitmix64). Its seed is printed, and `UMBRA_SEED` sets it.
pub struct Random(u64);

impl Random {
    pub fn new(what: &str) -> Self {
        let given = std::env::var("UMBRA_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap()
                .as_nanos() as u64
        });
        println!("{what}: UMBRA_SEED={seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `one_in` times.
    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
