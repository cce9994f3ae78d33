//! What it costs to take a fault of user code out of the VM and to go back: an MMIO read at CPL 3 through the shadow
//! backend, next to the same read through KVM's own page tables.
#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]

use criterion::{Criterion, criterion_group, criterion_main};
use std::sync::Arc;
use umbra_memslots::ram::{GuestRam, HostMapping};
use umbra_memslots::{Gpa, GuestMemory, SlotLimits, SlotObserver, SlotTable};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::kvm::{Irqchip, KvmHost, KvmVm, VmOptions};
use umbra_vcpu::regs::{Regs, Segment, SystemRegs};
use umbra_vcpu::shadow::{ShadowOptions, ShadowVm};

const PML4: u64 = 0x1000;
const CODE: u64 = 0x10_0000;
const DEVICE: u64 = 0xc000_0000;

/// A guest in long mode at CPL 3 that reads a device for ever.
fn guest(limits: SlotLimits, observers: Vec<Box<dyn SlotObserver>>) -> GuestRam {
    let mut slots = SlotTable::new(limits);
    for observer in observers {
        slots.add_observer(observer);
    }
    let ram = GuestRam::from_table(slots);
    ram.map(Gpa::new(0), Arc::new(HostMapping::anonymous(2 << 20).unwrap()))
        .unwrap();
    for (at, entry) in [
        (PML4, 0x2067),
        (0x2000, 0x3067),
        (0x2018, 0x4067),
        (0x3000, 0xe7),
        (0x4000, DEVICE | 0xe7),
    ] {
        ram.write(Gpa::new(at), &u64::to_le_bytes(entry)).unwrap();
    }
    // again: mov eax, [rbx]; jmp again
    ram.write(Gpa::new(CODE), &[0x8b, 0x03, 0xeb, 0xfc]).unwrap();
    ram
}

fn start(vcpu: &mut impl VcpuBackend) {
    let data = Segment {
        selector: 0x2b,
        limit: u32::MAX,
        kind: 3,
        dpl: 3,
        present: true,
        non_system: true,
        db: true,
        granularity: true,
        ..Segment::default()
    };
    let mut system = vcpu.system_regs().unwrap();
    system = SystemRegs {
        cs: Segment {
            selector: 0x33,
            kind: 11,
            long: true,
            db: false,
            ..data
        },
        ds: data,
        es: data,
        ss: data,
        cr0: 0x8001_0033,
        cr3: PML4,
        cr4: 0x620,
        efer: 0xd00,
        ..system
    };
    vcpu.set_system_regs(&system).unwrap();
    let regs = Regs {
        rip: CODE,
        rbx: DEVICE,
        rflags: 2,
        ..Regs::default()
    };
    vcpu.set_regs(&regs).unwrap();
}

fn read_once(vcpu: &mut impl VcpuBackend, entry: &mut VmEntry) {
    loop {
        match vcpu.run(*entry).unwrap() {
            VmExit::Mmio { .. } => {
                *entry = VmEntry::Value(1);
                return;
            }
            other => assert_eq!(other, VmExit::Interrupted),
        }
        *entry = VmEntry::Resume;
    }
}

fn mmio_read_of_user_code(criterion: &mut Criterion) {
    let Ok(host) = KvmHost::open() else {
        println!("skipped: no usable KVM");
        return;
    };
    let mut group = criterion.benchmark_group("mmio read at CPL 3");
    let vm = ShadowVm::new(&host, ShadowOptions { mmio_caching: true }).unwrap();
    let ram = guest(vm.slot_limits(), vm.slot_observers());
    let mut vcpu = vm.create_vcpu(|| ram.reader()).unwrap();
    start(&mut vcpu);
    let mut entry = VmEntry::Resume;
    group.bench_function("shadow", |bencher| bencher.iter(|| read_once(&mut vcpu, &mut entry)));

    let options = VmOptions {
        irqchip: Irqchip::None,
        ..VmOptions::default()
    };
    let vm = KvmVm::new(&host, options).unwrap();
    let _ram = guest(vm.slot_limits(), vec![Box::new(vm.slot_mirror())]);
    let mut vcpu = vm.create_vcpu(0).unwrap();
    start(&mut vcpu);
    let mut entry = VmEntry::Resume;
    group.bench_function("kvm", |bencher| bencher.iter(|| read_once(&mut vcpu, &mut entry)));
    group.finish();
}

criterion_group!(benches, mmio_read_of_user_code);
criterion_main!(benches);
