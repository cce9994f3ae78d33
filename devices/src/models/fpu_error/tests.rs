use super::*;
use crate::irq::{Gsi, IrqPins};
use crate::testing::{Conformance, RecordingSink};

fn write(device: &FpuErrorLogic, offset: u64) {
    assert_eq!(device.access(offset, IoSize::B1, IoOp::Write(0)), IoOutcome::Done);
}

fn wired() -> (FpuErrorLogic, Arc<RecordingSink>) {
    let sink = Arc::new(RecordingSink::default());
    let pins = IrqPins::new(Arc::clone(&sink) as _);
    (FpuErrorLogic::new(pins.line(Gsi(regs::IRQ))), sink)
}

#[test]
fn conforms() {
    Conformance::of("fpu_error", regs::LEN, || FpuErrorLogic::new(IrqLine::detached()))
        .reads_are_quiet_in(0..regs::LEN)
        .check();
}

#[test]
fn error_interrupts_and_is_ignored_from_the_write_to_its_end() {
    let (device, sink) = wired();
    assert!(!device.set_error(true));
    assert!(!device.set_error(true), "still the same error");
    assert_eq!(sink.take(), [(Gsi(13), true)]);
    write(&device, 0);
    assert_eq!(sink.take(), [(Gsi(13), false)]);
    assert!(device.set_error(true));
    assert!(!device.set_error(false));
    assert_eq!(sink.take(), []);
    assert!(!device.set_error(true), "another error");
    assert_eq!(sink.take(), [(Gsi(13), true)]);
}

#[test]
fn interrupt_outlives_the_error_until_it_is_let_go() {
    let (device, sink) = wired();
    device.set_error(true);
    device.set_error(false);
    assert_eq!(sink.take(), [(Gsi(13), true)]);
    write(&device, 0);
    assert_eq!(sink.take(), [(Gsi(13), false)]);
    assert!(!device.set_error(false));
}

#[test]
fn reset_port_does_not_have_the_error_ignored() {
    let (device, sink) = wired();
    device.set_error(true);
    write(&device, regs::RESET);
    assert_eq!(sink.take(), [(Gsi(13), true), (Gsi(13), false)]);
    assert!(!device.set_error(true));
}

#[test]
fn restored_request_raises_the_line_and_nonsense_is_refused() {
    let (device, sink) = wired();
    let state = FpuErrorState {
        error: true,
        requested: true,
        ignored: false,
    };
    device.restore(&state).unwrap();
    assert_eq!(sink.take(), [(Gsi(13), true)]);
    let nonsense = FpuErrorState {
        error: false,
        requested: false,
        ignored: true,
    };
    assert!(device.restore(&nonsense).is_err());
    assert_eq!(device.save(), state);
}
