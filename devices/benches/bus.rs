//! What it costs to find the device for an address and call it, against the limit and against two published buses.
//!
//! `bus/<devices>/<random|repeated>/<independent|dependent>/<threads>t/<implementation>`; the unit is one access.
#![expect(clippy::unwrap_used, reason = "a benchmark that can't be set up can't be run")]

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use std::any::Any;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use umbra_devices::{Bus, BusCursor, Device, IoOp, IoOutcome, IoSize};
use umbra_memslots::Gpa;
use vm_device::device_manager::MmioManager as _;

/// Where the devices lie: side by side, a page each, as virtio-mmio devices do.
const BASE: u64 = 0xd000_0000;
const PAGE: u64 = 0x1000;
/// Accesses per iteration.
const BATCH: usize = 4096;

/// The trivial device: a register that holds the number of a device.
struct Register(u64);

impl Device for Register {
    fn access(&self, _offset: u64, _size: IoSize, op: IoOp) -> IoOutcome {
        if op.is_read() {
            IoOutcome::Value(self.0)
        } else {
            IoOutcome::Done
        }
    }
    fn reset(&self) {}
}

impl Register {
    fn read_into(&self, data: &mut [u8]) {
        data.copy_from_slice(&self.0.to_le_bytes()[..data.len()]);
    }
}

impl vm_device::DeviceMmio for Register {
    fn mmio_read(&self, _base: vm_device::bus::MmioAddress, _offset: u64, data: &mut [u8]) {
        self.read_into(data);
    }
    fn mmio_write(&self, _base: vm_device::bus::MmioAddress, _offset: u64, _data: &[u8]) {}
}

impl dbs_device::DeviceIo for Register {
    fn read(&self, _base: dbs_device::IoAddress, _offset: dbs_device::IoAddress, data: &mut [u8]) {
        self.read_into(data);
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// One implementation, as one thread uses it. Each is inlined into the measured loop as far as it lets itself be.
trait Subject: Send {
    /// Reads 4 bytes.
    fn read(&mut self, addr: u64) -> u64;
}

impl Subject for BusCursor<Gpa> {
    #[inline(always)]
    fn read(&mut self, addr: u64) -> u64 {
        BusCursor::read(self, Gpa::new(addr), IoSize::B4).value
    }
}

/// The limit: an array by page number, and nothing else.
struct FlatTable(Arc<[Arc<dyn Device>]>);

impl Subject for FlatTable {
    #[inline(always)]
    fn read(&mut self, addr: u64) -> u64 {
        let page = usize::try_from((addr - BASE) / PAGE).unwrap();
        match self.0[page].access(addr % PAGE, IoSize::B4, IoOp::Read) {
            IoOutcome::Value(value) => value,
            _ => 0,
        }
    }
}

/// Without the lock that its users put around it.
struct VmDevice(Arc<vm_device::device_manager::IoManager>);

impl Subject for VmDevice {
    #[inline(always)]
    fn read(&mut self, addr: u64) -> u64 {
        let mut data = [0; 4];
        self.0.mmio_read(vm_device::bus::MmioAddress(addr), &mut data).unwrap();
        u32::from_le_bytes(data).into()
    }
}

/// Without the lock that its users put around it.
struct DbsDevice(Arc<dbs_device::device_manager::IoManager>);

impl Subject for DbsDevice {
    #[inline(always)]
    fn read(&mut self, addr: u64) -> u64 {
        let mut data = [0; 4];
        self.0.mmio_read(addr, &mut data).unwrap();
        u32::from_le_bytes(data).into()
    }
}

/// The four implementations with the same devices. Device `i` holds `next[i]`.
struct Subjects {
    umbra: Bus<Gpa>,
    flat: Arc<[Arc<dyn Device>]>,
    vm_device: Arc<vm_device::device_manager::IoManager>,
    dbs_device: Arc<dbs_device::device_manager::IoManager>,
}

impl Subjects {
    fn new(next: &[u64]) -> Self {
        let umbra = Bus::new();
        let claimed = umbra.edit(|draft| {
            (0..).zip(next).try_for_each(|(i, &value)| {
                draft
                    .claim("register", Gpa::new(BASE + i * PAGE), PAGE, Arc::new(Register(value)))
                    .map(|_| ())
            })
        });
        claimed.unwrap();
        let flat = next
            .iter()
            .map(|&value| Arc::new(Register(value)) as Arc<dyn Device>)
            .collect();
        let mut vm_device = vm_device::device_manager::IoManager::new();
        let mut dbs_device = dbs_device::device_manager::IoManager::new();
        for (i, &value) in (0..).zip(next) {
            let range = vm_device::bus::MmioRange::new(vm_device::bus::MmioAddress(BASE + i * PAGE), PAGE).unwrap();
            vm_device.register_mmio(range, Arc::new(Register(value))).unwrap();
            let resource = dbs_device::resources::Resource::MmioAddressRange {
                base: BASE + i * PAGE,
                size: PAGE,
            };
            dbs_device
                .register_device_io(Arc::new(Register(value)), &[resource])
                .unwrap();
        }
        Self {
            umbra,
            flat,
            vm_device: Arc::new(vm_device),
            dbs_device: Arc::new(dbs_device),
        }
    }
}

/// `BATCH` accesses to addresses known beforehand.
fn independent(subject: &mut impl Subject, addrs: &[u64]) -> u64 {
    addrs.iter().map(|&addr| subject.read(addr)).fold(0, u64::wrapping_add)
}

/// `BATCH` accesses, each to the device that the one before named.
fn dependent(subject: &mut impl Subject, start: u64) -> u64 {
    (0..BATCH).fold(start, |device, _| subject.read(BASE + device * PAGE))
}

/// Random numbers below each of `bounds`, the same each time (xorshift64).
fn random(bounds: impl Iterator<Item = u64>) -> impl Iterator<Item = u64> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    bounds.map(move |bound| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    })
}

/// The numbers below `n`, shuffled.
fn shuffled(n: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..n).collect();
    for (i, other) in (1..order.len()).zip(random(2..=n)) {
        order.swap(i, usize::try_from(other).unwrap());
    }
    order
}

/// One row's access pattern.
#[derive(Clone)]
struct Pattern {
    addrs: Vec<u64>,
    dependent: bool,
}

impl Pattern {
    fn run(&self, subject: &mut impl Subject) -> u64 {
        if self.dependent {
            dependent(subject, (self.addrs[0] - BASE) / PAGE)
        } else {
            independent(subject, &self.addrs)
        }
    }
}

fn measure<S: Subject>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    threads: usize,
    pattern: &Pattern,
    subject: impl Fn() -> S,
) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            let mut other = subject();
            scope.spawn({
                let stop = &stop;
                move || {
                    while !stop.load(Ordering::Relaxed) {
                        black_box(pattern.run(&mut other));
                    }
                }
            });
        }
        let mut subject = subject();
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(pattern.run(black_box(&mut subject))));
        });
        stop.store(true, Ordering::Relaxed);
    });
}

fn bus(criterion: &mut Criterion) {
    for devices in [4, 32, 256, 4096] {
        for scattered in [true, false] {
            let order = shuffled(devices);
            // Random: the devices name each other in one long cycle. Repeated: each names itself.
            let mut next: Vec<u64> = (0..devices).collect();
            if scattered {
                for (i, &device) in order.iter().enumerate() {
                    next[usize::try_from(device).unwrap()] = order[(i + 1) % order.len()];
                }
            }
            let subjects = Subjects::new(&next);
            let addrs = random(std::iter::repeat_n(devices, BATCH))
                .map(|device| BASE + if scattered { device } else { order[0] } * PAGE)
                .collect::<Vec<_>>();
            for dependent in [false, true] {
                let pattern = Pattern {
                    addrs: addrs.clone(),
                    dependent,
                };
                for threads in [1, 2] {
                    let mut group = criterion.benchmark_group(format!(
                        "bus/{devices}/{}/{}/{threads}t",
                        if scattered { "random" } else { "repeated" },
                        if dependent { "dependent" } else { "independent" },
                    ));
                    group.throughput(Throughput::Elements(BATCH as u64));
                    measure(&mut group, "umbra", threads, &pattern, || subjects.umbra.cursor());
                    measure(&mut group, "flat_table", threads, &pattern, || {
                        FlatTable(subjects.flat.clone())
                    });
                    measure(&mut group, "vm_device", threads, &pattern, || {
                        VmDevice(subjects.vm_device.clone())
                    });
                    measure(&mut group, "dbs_device", threads, &pattern, || {
                        DbsDevice(subjects.dbs_device.clone())
                    });
                    group.finish();
                }
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .sample_size(40);
    targets = bus
}
criterion_main!(benches);
