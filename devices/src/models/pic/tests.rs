use super::*;
use crate::testing::Conformance;
use std::sync::atomic::AtomicU32;

const B1: IoSize = IoSize::B1;

fn write(pic: &PicPair, offset: u64, byte: u8) {
    assert_eq!(pic.access(offset, B1, IoOp::Write(byte.into())), IoOutcome::Done);
}

fn read(pic: &PicPair, offset: u64) -> u64 {
    match pic.access(offset, B1, IoOp::Read) {
        IoOutcome::Value(value) => value,
        other => unreachable!("{other:?}"),
    }
}

/// As an operating system does it: vectors 0x20 and 0x28, nothing masked.
fn initialised() -> PicPair {
    let pic = PicPair::new();
    for (first, vectors, cascade) in [(0, 0x20, 4), (2, 0x28, 2)] {
        write(&pic, first, 0x11);
        for byte in [vectors, cascade, 1, 0] {
            write(&pic, first + 1, byte);
        }
    }
    pic
}

fn pulse(pic: &PicPair, input: u32) {
    pic.set_level(Gsi(input), true);
    pic.set_level(Gsi(input), false);
}

#[test]
fn conforms() {
    Conformance::of("pic", regs::LEN, PicPair::new).check();
}

#[test]
fn pulse_is_delivered_once() {
    let pic = initialised();
    assert!(!pic.is_pending());
    pulse(&pic, 4);
    assert!(pic.is_pending());
    assert_eq!(pic.acknowledge(), 0x24);
    assert!(!pic.is_pending());
    pulse(&pic, 4);
    assert!(!pic.is_pending(), "the first is still in service");
    write(&pic, 0, 0x20);
    assert!(pic.is_pending());
    assert_eq!(pic.acknowledge(), 0x24);
}

#[test]
fn priority_decides_and_interrupts_nest() {
    let pic = initialised();
    pulse(&pic, 4);
    pulse(&pic, 1);
    assert_eq!(pic.acknowledge(), 0x21);
    assert!(!pic.is_pending(), "4 is below 1");
    pulse(&pic, 0);
    assert_eq!(pic.acknowledge(), 0x20, "0 is above 1");
    write(&pic, 0, 0x20);
    assert!(!pic.is_pending());
    write(&pic, 0, 0x61);
    assert_eq!(pic.acknowledge(), 0x24);
}

#[test]
fn slave_comes_through_the_cascade() {
    let pic = initialised();
    pulse(&pic, 12);
    assert_eq!(pic.acknowledge(), 0x2c);
    write(&pic, 0, 0x0b);
    assert_eq!(read(&pic, 0), 4, "the cascade is in service");
    write(&pic, 2, 0x0b);
    assert_eq!(read(&pic, 2), 1 << 4);
    write(&pic, 2, 0x20);
    write(&pic, 0, 0x20);
    assert_eq!((read(&pic, 0), read(&pic, 2)), (0, 0));
}

#[test]
fn mask_holds_back_and_lets_go() {
    let pic = initialised();
    write(&pic, 1, 0xff);
    pulse(&pic, 3);
    assert!(!pic.is_pending());
    assert_eq!(read(&pic, 1), 0xff);
    write(&pic, 1, 0xf7);
    assert_eq!(pic.acknowledge(), 0x23);
}

#[test]
fn level_triggered_input_interrupts_as_long_as_it_is_high() {
    let pic = initialised();
    write(&pic, regs::ELCR, 0xff);
    assert_eq!(read(&pic, regs::ELCR), 0xf8);
    pic.set_level(Gsi(5), true);
    assert_eq!(pic.acknowledge(), 0x25);
    write(&pic, 0, 0x20);
    assert_eq!(pic.acknowledge(), 0x25);
    pic.set_level(Gsi(5), false);
    write(&pic, 0, 0x20);
    assert!(!pic.is_pending());
    assert_eq!(pic.acknowledge(), 0x27, "nothing there is the spurious interrupt");
    write(&pic, 0, 0x0b);
    assert_eq!(read(&pic, 0), 0, "which is not in service");
}

#[test]
fn automatic_end_of_interrupt_rotates_if_asked_to() {
    let pic = initialised();
    write(&pic, 0, 0x11);
    for byte in [0x40, 4, 3, 0] {
        write(&pic, 1, byte);
    }
    write(&pic, 0, 0x80);
    pulse(&pic, 0);
    pulse(&pic, 1);
    assert_eq!(pic.acknowledge(), 0x40);
    pulse(&pic, 0);
    assert_eq!(pic.acknowledge(), 0x41, "0 has the lowest priority now");
    assert_eq!(pic.acknowledge(), 0x40);
}

#[test]
fn poll_acknowledges() {
    let pic = initialised();
    write(&pic, 0, 0x0c);
    assert_eq!(read(&pic, 0), 0);
    pulse(&pic, 6);
    write(&pic, 0, 0x0c);
    assert_eq!(read(&pic, 0), 0x86);
    assert!(!pic.is_pending());
}

#[test]
fn cpu_is_woken_when_there_is_something() {
    let pic = initialised();
    let woken = Arc::new(AtomicU32::new(0));
    pic.set_waker(Box::new({
        let woken = Arc::clone(&woken);
        move || {
            woken.fetch_add(1, Ordering::SeqCst);
        }
    }));
    write(&pic, 1, 0xff);
    pulse(&pic, 0);
    assert_eq!(woken.load(Ordering::SeqCst), 0);
    write(&pic, 1, 0);
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    pic.set_level(Gsi(99), true);
}

#[test]
fn impossible_states_are_refused() {
    let pic = initialised();
    let before = pic.save();
    for change in [
        |chip: &mut ChipState| chip.vectors = 1,
        |chip: &mut ChipState| chip.first = 8,
        |chip: &mut ChipState| chip.level_triggered = 1,
    ] {
        let mut state = before;
        change(&mut state[1]);
        assert!(pic.restore(&state).is_err());
        assert_eq!(pic.save(), before);
    }
}
