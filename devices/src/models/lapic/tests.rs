use super::*;
use crate::clock::ManualClock;
use crate::irq::{Gsi, IrqSink, Message, MsiSink};
use crate::models::ioapic::{self, IoApic};
use crate::models::pic::PicPair;
use crate::testing::Conformance;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

const HZ: u64 = 2_000_000_000;

struct Bench {
    bus: Arc<ApicBus>,
    clock: Arc<ManualClock>,
}

fn bench(cpus: u32) -> Bench {
    let clock = Arc::new(ManualClock::default());
    Bench {
        bus: ApicBus::new(cpus, Arc::clone(&clock) as _, HZ),
        clock,
    }
}

impl Bench {
    fn apic(&self, id: u32) -> &LocalApic {
        self.bus.apic(id).unwrap()
    }

    /// On, with a logical identifier.
    fn enabled(cpus: u32) -> Self {
        let bench = bench(cpus);
        for id in 0..cpus {
            bench.write(id, regs::SVR, 0x1ff);
            bench.write(id, regs::LDR, 1 << (24 + id % 8));
        }
        bench
    }

    fn write(&self, id: u32, offset: u16, value: u32) {
        let done = self
            .apic(id)
            .access(offset.into(), IoSize::B4, IoOp::Write(value.into()));
        assert_eq!(done, IoOutcome::Done, "{offset:#x}");
    }

    fn read(&self, id: u32, offset: u16) -> u64 {
        match self.apic(id).access(offset.into(), IoSize::B4, IoOp::Read) {
            IoOutcome::Value(value) => value,
            other => unreachable!("{other:?}"),
        }
    }

    fn pass(&self, nanoseconds: u64) -> Option<Duration> {
        self.clock.advance(Duration::from_nanos(nanoseconds));
        self.bus.tick()
    }

    fn x2apic(&self, id: u32) {
        let base = self.apic(id).base();
        self.apic(id).set_base(base | regs::BASE_X2APIC, 46).unwrap();
    }
}

fn message(vector: u8) -> Message {
    Message {
        destination: 0,
        logical: false,
        mode: DeliveryMode::Fixed,
        vector,
        level: false,
    }
}

#[test]
fn conforms() {
    Conformance::of("lapic", regs::LEN, || LocalApic::new(0, Weak::new())).check();
}

#[test]
fn registers_after_reset_are_the_manuals() {
    let bench = bench(2);
    assert_eq!(bench.apic(0).base(), 0xfee0_0900);
    assert_eq!(bench.apic(1).base(), 0xfee0_0800);
    for (offset, value) in [
        (regs::ID, 1 << 24),
        (regs::VERSION, 0x5_0014),
        (regs::TPR, 0),
        (regs::LDR, 0),
        (regs::DFR, 0xffff_ffff),
        (regs::SVR, 0xff),
        (regs::LVT, 0x1_0000),
        (regs::CURRENT_COUNT, 0),
    ] {
        assert_eq!(bench.read(1, offset), value, "{offset:#x}");
    }
}

#[test]
fn higher_class_interrupts_lower_and_ends_in_order() {
    let bench = Bench::enabled(1);
    let apic = bench.apic(0);
    for vector in [0x45, 0x41, 0x62] {
        bench.bus.deliver(message(vector).to_msi());
    }
    assert_eq!(apic.acknowledge(), 0x62);
    assert!(!apic.is_pending());
    assert_eq!(bench.read(0, regs::PPR), 0x60);
    bench.write(0, regs::EOI, 0);
    assert_eq!(apic.acknowledge(), 0x45);
    assert!(!apic.is_pending(), "the same class");
    bench.write(0, regs::EOI, 0);
    assert_eq!(apic.acknowledge(), 0x41);
    bench.write(0, regs::EOI, 0);
    assert_eq!(apic.acknowledge(), 0xff, "spurious");
}

#[test]
fn task_priority_holds_back_and_cr8_is_its_upper_half() {
    let bench = Bench::enabled(1);
    let apic = bench.apic(0);
    apic.set_cr8(4);
    assert_eq!(bench.read(0, regs::TPR), 0x40);
    bench.bus.deliver(message(0x4f).to_msi());
    assert!(!apic.is_pending());
    apic.set_cr8(3);
    assert!(apic.is_pending());
    bench.write(0, regs::TPR, 0x5a);
    assert_eq!((apic.is_pending(), apic.cr8()), (false, 5));
}

#[test]
fn gained_interrupt_wakes_once() {
    let bench = Bench::enabled(1);
    let woken = Arc::new(AtomicU32::new(0));
    bench.apic(0).set_waker(Box::new({
        let woken = Arc::clone(&woken);
        move || {
            woken.fetch_add(1, Ordering::SeqCst);
        }
    }));
    bench.bus.deliver(message(0x50).to_msi());
    bench.bus.deliver(message(0x40).to_msi());
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    bench.apic(0).acknowledge();
    bench.write(0, regs::EOI, 0);
    assert_eq!(woken.load(Ordering::SeqCst), 2, "the lower one can come now");
}

#[test]
fn ioapic_level_interrupt_goes_round() {
    let bench = Bench::enabled(1);
    let ioapic = Arc::new(IoApic::new(Arc::clone(&bench.bus) as _));
    let listener: Arc<dyn EoiListener> = Arc::clone(&ioapic) as _;
    bench.bus.set_listener(Arc::downgrade(&listener));
    let entry = 0x55 | ioapic::regs::LEVEL;
    ioapic.access(ioapic::regs::SELECT, IoSize::B4, IoOp::Write(0x10 + 2 * 9));
    ioapic.access(ioapic::regs::WINDOW, IoSize::B4, IoOp::Write(entry));
    ioapic.set_level(Gsi(9), true);
    for asserted in [true, false] {
        assert_eq!(bench.apic(0).acknowledge(), 0x55);
        ioapic.set_level(Gsi(9), asserted);
        bench.write(0, regs::EOI, 0);
        assert_eq!(bench.apic(0).is_pending(), asserted);
    }
}

#[test]
fn pic_comes_through_lint0_while_it_is_open() {
    let bench = bench(1);
    let (pic, apic) = (Arc::new(PicPair::new()), bench.apic(0));
    apic.set_external(Arc::clone(&pic) as _);
    for (port, bytes) in [(0, &[0x11][..]), (1, &[0x20, 4, 1, 0])] {
        for byte in bytes {
            pic.access(port, IoSize::B1, IoOp::Write(*byte));
        }
    }
    pic.set_level(Gsi(3), true);
    assert!(apic.is_pending(), "virtual wire mode");
    bench.write(0, regs::SVR, 0x1ff);
    bench.write(0, regs::LVT + 0x30, 0x1_0700);
    assert!(!apic.is_pending());
    bench.write(0, regs::LVT + 0x30, 0x700);
    assert_eq!(apic.acknowledge(), 0x23);
    assert_eq!(bench.read(0, regs::ISR + 0x10), 0, "not in service here");
}

#[test]
fn start_up_sequence_reaches_the_others() {
    let bench = Bench::enabled(3);
    bench.write(0, regs::ICR, 0xc_4500);
    bench.write(0, regs::ICR, 0xc_4699);
    assert_eq!(bench.apic(0).take_event(true), None);
    for id in 1..3 {
        let apic = bench.apic(id);
        assert_eq!(apic.take_event(true), Some(CpuEvent::Init));
        assert_eq!(apic.take_event(true), Some(CpuEvent::StartUp(0x99)));
        assert_eq!(apic.take_event(true), None);
        assert_eq!(bench.read(id, regs::SVR), 0xff, "reset by INIT");
        assert_eq!(bench.read(id, regs::LVT + 0x30), 0x1_0000);
    }
}

#[test]
fn errors_are_latched_by_a_write_and_interrupt() {
    let bench = Bench::enabled(1);
    bench.write(0, regs::LVT + 0x50, 0xfe);
    bench.write(0, regs::ICR, 0x4_0005);
    assert_eq!(bench.read(0, regs::ESR), 0);
    bench.bus.deliver(message(3).to_msi());
    let nowhere = bench.apic(0).access(0x3f0, IoSize::B4, IoOp::Read);
    assert_eq!(nowhere, IoOutcome::Refused(Refusal::NoRegister));
    bench.write(0, regs::ESR, 0);
    assert_eq!(bench.read(0, regs::ESR), 0xe0);
    assert_eq!(bench.apic(0).acknowledge(), 0xfe);
}

#[test]
fn timer_interrupts_in_each_mode() {
    let bench = Bench::enabled(1);
    let apic = bench.apic(0);
    assert_eq!(bench.pass(0), None);
    bench.write(0, regs::DIVIDE, 0b1011);
    bench.write(0, regs::LVT, 0x40);
    bench.write(0, regs::INITIAL_COUNT, 1_000_000);
    assert_eq!(bench.pass(400_000), Some(Duration::from_micros(600)));
    assert_eq!(bench.read(0, regs::CURRENT_COUNT), 600_000);
    assert_eq!(bench.pass(600_000), None);
    assert_eq!(apic.acknowledge(), 0x40);
    bench.write(0, regs::EOI, 0);

    bench.write(0, regs::LVT, 0x2_0041);
    bench.write(0, regs::INITIAL_COUNT, 1_000_000);
    for _ in 0..3 {
        assert_eq!(bench.pass(1_000_000), Some(Duration::from_millis(1)));
        assert_eq!(apic.acknowledge(), 0x41);
        bench.write(0, regs::EOI, 0);
    }
    // Masked, it counts on.
    bench.write(0, regs::LVT, 0x3_0041);
    assert!(bench.pass(1_000_000).is_some());
    assert!(!apic.is_pending());

    bench.write(0, regs::LVT, 0x4_0042);
    assert_eq!(bench.pass(0), None, "the mode has changed");
    apic.write_msr(regs::TSC_DEADLINE_MSR, 5_000, 1_000).unwrap();
    assert_eq!(apic.read_msr(regs::TSC_DEADLINE_MSR), Ok(5_000));
    assert_eq!(bench.pass(500), Some(Duration::from_nanos(1500)));
    assert_eq!(bench.pass(1500), None);
    assert_eq!(apic.acknowledge(), 0x42);
    assert_eq!(apic.read_msr(regs::TSC_DEADLINE_MSR), Ok(0));
}

#[test]
fn earlier_timer_wakes_who_keeps_the_time() {
    let bench = Bench::enabled(2);
    let woken = Arc::new(AtomicU32::new(0));
    bench.bus.set_waker(Box::new({
        let woken = Arc::clone(&woken);
        move || {
            woken.fetch_add(1, Ordering::SeqCst);
        }
    }));
    bench.write(0, regs::INITIAL_COUNT, 1_000_000);
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    bench.bus.tick();
    bench.write(1, regs::INITIAL_COUNT, 2_000_000);
    assert_eq!(woken.load(Ordering::SeqCst), 1, "later than the other");
    bench.write(1, regs::INITIAL_COUNT, 1_000);
    assert_eq!(woken.load(Ordering::SeqCst), 2);
}

#[test]
fn x2apic_is_reached_by_msrs_and_no_longer_by_memory() {
    let bench = Bench::enabled(20);
    assert_eq!(bench.apic(17).read_msr(0x802), Err(BadAccess), "not one yet");
    for id in 0..20 {
        bench.x2apic(id);
    }
    let apic = bench.apic(17);
    assert_eq!(
        apic.access(regs::VERSION.into(), IoSize::B4, IoOp::Read),
        IoOutcome::Refused(Refusal::NoRegister)
    );
    for (index, value) in [(0x802, 17), (0x803, 0x5_0014), (0x80d, 0x1_0002), (0x80f, 0x1ff)] {
        assert_eq!(apic.read_msr(index), Ok(value), "{index:#x}");
    }
    for index in [0x80e, 0x831, 0x80b, 0x83f, 0x8ff, 0x900, 0x809] {
        assert_eq!(apic.read_msr(index), Err(BadAccess), "{index:#x}");
    }
    for (index, value) in [
        (0x80b, 1),
        (0x828, 1),
        (0x80f, 1 << 12),
        (0x80d, 0),
        (0x808, 0x100),
        (0x802, 0),
    ] {
        assert_eq!(apic.write_msr(index, value, 0), Err(BadAccess), "{index:#x}");
    }
    // To the logical set {17, 18}.
    apic.write_msr(0x830, 0x0001_0006_0000_0800 | 0x77, 0).unwrap();
    let reached: Vec<_> = bench
        .bus
        .apics()
        .iter()
        .filter(|apic| apic.is_pending())
        .map(|apic| apic.id())
        .collect();
    assert_eq!(reached, [17, 18]);
    apic.write_msr(0x83f, 0x80, 0).unwrap();
    assert_eq!(apic.acknowledge(), 0x80);
    apic.write_msr(0x80b, 0, 0).unwrap();
    assert_eq!(apic.acknowledge(), 0x77);
}

#[test]
fn modes_follow_each_other_as_the_manual_allows() {
    let (on, x2, at) = (regs::BASE_ON, regs::BASE_X2APIC, regs::BASE);
    let reach = |steps: &[u64]| {
        let bench = bench(1);
        let mut last = Ok(());
        for mode in steps {
            last = bench.apic(0).set_base(at | mode, 46);
        }
        last
    };
    for good in [&[on | x2][..], &[0], &[0, on], &[on | x2, 0], &[on | x2, 0, on]] {
        assert_eq!(reach(good), Ok(()), "{good:x?}");
    }
    for bad in [&[x2][..], &[0, on | x2], &[on | x2, on], &[1 << 46 | on], &[1 | on]] {
        assert_eq!(reach(bad), Err(BadAccess), "{bad:x?}");
    }
}

#[test]
fn timer_left_is_saved_whatever_the_clock() {
    let (from, to) = (Bench::enabled(1), Bench::enabled(1));
    to.pass(12_345);
    from.write(0, regs::DIVIDE, 0b1011);
    from.write(0, regs::INITIAL_COUNT, 1_000);
    from.pass(300);
    let state = crate::Persist::save(from.apic(0));
    crate::Persist::restore(to.apic(0), &state).unwrap();
    assert_eq!(to.read(0, regs::CURRENT_COUNT), 700);
    let bad = LapicState { svr: 1 << 31, ..state };
    assert!(crate::Persist::restore(to.apic(0), &bad).is_err());
}

#[test]
fn concurrent_senders_lose_nothing() {
    let bench = Bench::enabled(2);
    let target = bench.apic(1);
    std::thread::scope(|scope| {
        for first in [0x40u8, 0x80, 0xc0] {
            let bus = &bench.bus;
            scope.spawn(move || {
                for vector in first..first + 0x30 {
                    bus.deliver(
                        Message {
                            destination: 1,
                            ..message(vector)
                        }
                        .to_msi(),
                    );
                }
            });
        }
        let mut seen = 0;
        while seen < 3 * 0x30 {
            if target.is_pending() {
                target.acknowledge();
                seen += 1;
                bench.write(1, regs::EOI, 0);
            } else {
                std::thread::yield_now();
            }
        }
    });
    assert!(!target.is_pending());
}
