//! What our side of an exit costs, from the exit's value to the next entry's, with a device that does nothing.
//! `exit_path/<what>/<slots>`; the guest, the kernel and the processor's world switch are not in it.
#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;
use umbra_devices::{Bus, Device, IoOp, IoOutcome, IoSize, Port};
use umbra_memslots::{AddressSpaceId, Gfn, Gpa, Hva, SlotFlags, SlotLimits, SlotRequest, SlotTable};
use umbra_mmu::direct::{DirectMmu, DirectOptions};
use umbra_mmu::shadow::{HostParams, SpteLayout};
use umbra_vcpu::exit::VmExit;
use umbra_vcpu::handle::ExitHandler;

const DEVICES: u64 = 64;
const MMIO: u64 = 0xd000_0000;

struct Nothing;

impl Device for Nothing {
    fn access(&self, offset: u64, _: IoSize, _: IoOp) -> IoOutcome {
        IoOutcome::Value(offset)
    }

    fn reset(&self) {}
}

/// `slots` slots of two pages, four apart; 64 devices of a page each, and as many ranges of ports.
fn handler(slots: u64, caching: bool) -> ExitHandler {
    let mut table = SlotTable::new(SlotLimits::default());
    for index in 0..slots {
        let at = Gfn::new(index * 4).unwrap().base();
        let slot = u32::try_from(index).unwrap();
        table
            .apply(SlotRequest::set(
                slot,
                SlotFlags::empty(),
                at,
                0x2000,
                Hva::new(0x7000_0000_0000),
            ))
            .unwrap();
    }
    let (mmio, ports) = (Bus::<Gpa>::new(), Bus::<Port>::new());
    for index in 0..DEVICES {
        mmio.claim("nothing", Gpa::new(MMIO + index * 0x1000), 0x1000, Arc::new(Nothing))
            .unwrap();
        let port = u16::try_from(index * 8).unwrap();
        ports.claim("nothing", Port::new(port), 8, Arc::new(Nothing)).unwrap();
    }
    let layout = SpteLayout::new(HostParams::x86(46).with_mmio_caching(caching)).unwrap();
    let mmu = Arc::new(DirectMmu::new(DirectOptions::new(layout)).unwrap());
    ExitHandler::new(mmu, table.reader(AddressSpaceId::Normal).unwrap(), &mmio, &ports)
}

fn read(page: u64) -> VmExit {
    VmExit::Mmio {
        gpa: Gpa::new(MMIO + page * 0x1000 + 8),
        size: IoSize::B4,
        op: IoOp::Read,
    }
}

fn exit_path(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("exit_path");
    let one = [read(3)];
    let many: Vec<VmExit> = (0..DEVICES).map(|page| read(page * 29 % DEVICES)).collect();
    let port = [VmExit::Pio {
        port: 0x61,
        size: IoSize::B1,
        op: IoOp::Read,
    }];
    for slots in [1, 4096] {
        let cases: [(&str, &[VmExit], ExitHandler); 5] = [
            ("mmio_one_page", &one, handler(slots, true)),
            ("mmio_many_pages", &many, handler(slots, true)),
            ("mmio_many_pages_caching_off", &many, handler(slots, false)),
            ("mmio_one_page_timed", &one, handler(slots, true).timed()),
            ("port", &port, handler(slots, true)),
        ];
        for (name, exits, mut handler) in cases {
            let mut exits = exits.iter().cycle();
            group.bench_function(BenchmarkId::new(name, slots), |bencher| {
                bencher.iter(|| exits.next().map(|exit| black_box(handler.handle(black_box(exit)))));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, exit_path);
criterion_main!(benches);
