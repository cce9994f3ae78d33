use super::*;
use crate::clock::ManualClock;
use crate::irq::{Gsi, IrqPins};
use crate::testing::{Conformance, RecordingSink};

const B1: IoSize = IoSize::B1;
const MILLISECOND: Duration = Duration::from_millis(1);

struct Bench {
    clock: Arc<ManualClock>,
    sink: Arc<RecordingSink>,
    pit: Pit,
}

fn bench() -> Bench {
    let (clock, sink) = (Arc::new(ManualClock::default()), Arc::new(RecordingSink::default()));
    let pins = IrqPins::new(Arc::clone(&sink) as _);
    let pit = Pit::new(Arc::clone(&clock) as _, pins.line(Gsi(regs::IRQ)));
    Bench { clock, sink, pit }
}

impl Bench {
    fn write(&self, offset: u64, byte: u8) {
        assert_eq!(self.pit.access(offset, B1, IoOp::Write(byte.into())), IoOutcome::Done);
    }

    fn read(&self, offset: u64) -> u64 {
        match self.pit.access(offset, B1, IoOp::Read) {
            IoOutcome::Value(value) => value,
            other => unreachable!("{other:?}"),
        }
    }

    /// Interrupts since the last time.
    fn interrupts(&self) -> usize {
        self.pit.tick();
        self.sink.take().iter().filter(|(_, high)| *high).count()
    }
}

#[test]
fn conforms() {
    let new = || Pit::new(Arc::new(ManualClock::default()), IrqLine::detached());
    Conformance::of("pit", regs::ALL, new).check();
}

#[test]
fn rate_generator_interrupts_in_each_period() {
    let bench = bench();
    assert_eq!(bench.pit.tick(), None, "nothing was programmed");
    bench.write(3, 0x34);
    // 11932 ticks are 10 ms.
    bench.write(0, 0x9c);
    bench.write(0, 0x2e);
    let wait = bench.pit.tick().unwrap();
    assert!(
        (Duration::from_micros(9_990)..Duration::from_micros(10_010)).contains(&wait),
        "{wait:?}"
    );
    bench.clock.advance(9 * MILLISECOND);
    assert_eq!(bench.interrupts(), 0);
    for _ in 0..5 {
        bench.clock.advance(10 * MILLISECOND);
        assert_eq!(bench.interrupts(), 1);
    }
    bench.clock.advance(50 * MILLISECOND);
    assert_eq!(bench.interrupts(), 1, "late ones are one");
}

#[test]
fn one_shot_interrupts_once() {
    for mode in [0, 4] {
        let bench = bench();
        bench.write(3, 0x30 | mode << 1);
        bench.write(0, 0xa9);
        assert_eq!(bench.pit.tick(), None, "half a count is none");
        bench.write(0, 0x04);
        bench.clock.advance(MILLISECOND / 2);
        assert_eq!(bench.interrupts(), 0);
        bench.clock.advance(MILLISECOND);
        assert_eq!(bench.interrupts(), 1);
        assert_eq!(bench.pit.tick(), None);
        bench.clock.advance(100 * MILLISECOND);
        assert_eq!(bench.interrupts(), 0);
    }
}

#[test]
fn third_counter_counts_while_its_gate_is_high_and_shows_its_output() {
    let bench = bench();
    bench.write(3, 0xb0);
    bench.write(2, 0xff);
    bench.write(2, 0xff);
    bench.clock.advance(MILLISECOND);
    bench.write(regs::GATE, regs::GATE_2);
    let count = || bench.read(2) | bench.read(2) << 8;
    assert_eq!(count(), 0xffff, "the gate was low");
    bench.clock.advance(MILLISECOND);
    let after = 0xffff - count();
    assert!((1192..=1194).contains(&after), "{after}");
    assert_eq!(bench.read(regs::GATE) & u64::from(regs::OUT_2), 0);
    bench.clock.advance(54 * MILLISECOND);
    assert_eq!(bench.read(regs::GATE) & u64::from(regs::OUT_2), u64::from(regs::OUT_2));
}

#[test]
fn latched_count_and_status_stand_still() {
    let bench = bench();
    bench.write(3, 0x34);
    bench.write(0, 0);
    bench.write(0, 0x10);
    bench.clock.advance(MILLISECOND);
    bench.write(3, 0xc2);
    bench.clock.advance(MILLISECOND);
    assert_eq!(bench.read(0) & 0x7f, 0x34, "status first");
    let count = bench.read(0) | bench.read(0) << 8;
    assert_eq!(count, 0x1000 - 1193);
    bench.write(3, 0);
    bench.clock.advance(MILLISECOND);
    let count = bench.read(0) | bench.read(0) << 8;
    assert_eq!(count, 0x1000 - 2386);
}

#[test]
fn decimal_counts_are_digits() {
    let bench = bench();
    bench.write(3, 0x31);
    bench.write(0, 0x00);
    bench.write(0, 0x20);
    bench.clock.advance(MILLISECOND);
    let count = bench.read(0) | bench.read(0) << 8;
    assert_eq!(count, 0x0807);
}

#[test]
fn every_count_in_every_mode_divides_by_nothing() {
    for control in 0..=0xff {
        for value in [0, 1, 2, 0xff] {
            let bench = bench();
            bench.write(3, control);
            for offset in 0..3 {
                bench.write(offset, value);
                bench.write(offset, 0);
            }
            bench.write(regs::GATE, 3);
            bench.clock.advance(MILLISECOND);
            bench.pit.tick();
            for offset in [0, 1, 2, 4] {
                bench.read(offset);
            }
        }
    }
}

#[test]
fn programming_wakes() {
    let bench = bench();
    let woken = Arc::new(std::sync::atomic::AtomicBool::new(false));
    bench.pit.set_waker(Box::new({
        let woken = Arc::clone(&woken);
        move || woken.store(true, std::sync::atomic::Ordering::SeqCst)
    }));
    bench.write(3, 0x14);
    bench.write(0, 9);
    assert!(woken.load(std::sync::atomic::Ordering::SeqCst));
}
