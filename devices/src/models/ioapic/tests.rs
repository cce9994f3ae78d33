use super::*;
use crate::irq::{DeliveryMode, Message};
use crate::testing::{Conformance, RecordingMsiSink};
use proptest::prelude::*;

fn bench() -> (IoApic, Arc<RecordingMsiSink>) {
    let sink = Arc::new(RecordingMsiSink::default());
    (IoApic::new(Arc::clone(&sink) as _), sink)
}

fn write(chip: &IoApic, index: u8, value: u32) {
    chip.access(regs::SELECT, IoSize::B1, IoOp::Write(index.into()));
    chip.access(regs::WINDOW, IoSize::B4, IoOp::Write(value.into()));
}

fn read(chip: &IoApic, index: u8) -> IoOutcome {
    chip.access(regs::SELECT, IoSize::B4, IoOp::Write(index.into()));
    chip.access(regs::WINDOW, IoSize::B4, IoOp::Read)
}

/// Programs an input with the low half of its entry, for CPU 1.
fn program(chip: &IoApic, pin: u8, low: u64) {
    write(chip, regs::REDIRECTION + 2 * pin + 1, 1 << 24);
    write(chip, regs::REDIRECTION + 2 * pin, super::low(low));
}

fn vectors(sink: &RecordingMsiSink) -> Vec<u8> {
    let vector = |msi| Message::from_msi(msi).unwrap().vector;
    sink.take().into_iter().map(vector).collect()
}

#[test]
fn conforms() {
    Conformance::of("ioapic", regs::LEN, || bench().0)
        .reads_are_quiet_in(0..regs::LEN)
        .check();
}

#[test]
fn registers_after_reset_are_the_data_sheets() {
    let (chip, _) = bench();
    assert_eq!(read(&chip, regs::ID), IoOutcome::Value(0));
    assert_eq!(read(&chip, regs::VERSION), IoOutcome::Value(0x0017_0020));
    for pin in 0..regs::PINS {
        assert_eq!(read(&chip, regs::REDIRECTION + 2 * pin), IoOutcome::Value(0x1_0000));
        assert_eq!(read(&chip, regs::REDIRECTION + 2 * pin + 1), IoOutcome::Value(0));
    }
    assert_eq!(read(&chip, 0x40), IoOutcome::Refused(Refusal::NoRegister));
    assert_eq!(read(&chip, 3), IoOutcome::Refused(Refusal::NoRegister));
    let narrow = chip.access(regs::WINDOW, IoSize::B2, IoOp::Read);
    assert_eq!(narrow, IoOutcome::Refused(Refusal::WrongSize));
}

#[test]
fn read_only_bits_stay() {
    let (chip, _) = bench();
    for index in [regs::ID, regs::VERSION, regs::ARBITRATION, 0x10, 0x11] {
        write(&chip, index, u32::MAX);
    }
    assert_eq!(read(&chip, regs::ID), IoOutcome::Value(0x0f00_0000));
    assert_eq!(read(&chip, regs::ARBITRATION), IoOutcome::Value(0x0f00_0000));
    assert_eq!(read(&chip, regs::VERSION), IoOutcome::Value(0x0017_0020));
    assert_eq!(read(&chip, 0x10), IoOutcome::Value(0x1_afff));
    assert_eq!(read(&chip, 0x11), IoOutcome::Value(0xff00_0000));
}

#[test]
fn edge_is_sent_once_and_lost_while_masked() {
    let (chip, sink) = bench();
    chip.set_level(Gsi(4), true);
    assert!(sink.take().is_empty(), "masked");
    program(&chip, 4, 0x34);
    assert!(sink.take().is_empty(), "no edge since");
    chip.set_level(Gsi(4), false);
    chip.set_level(Gsi(4), true);
    let sent = sink.take();
    let expected = Message {
        destination: 1,
        logical: false,
        mode: DeliveryMode::Fixed,
        vector: 0x34,
        level: false,
    };
    assert_eq!(sent, [expected.to_msi()]);
    chip.set_level(Gsi(4), true);
    chip.end_of_interrupt(0x34);
    assert!(sink.take().is_empty());
}

#[test]
fn level_is_sent_again_after_its_end_while_asserted() {
    let (chip, sink) = bench();
    program(&chip, 9, 0x41 | regs::LEVEL);
    chip.set_level(Gsi(9), true);
    assert_eq!(vectors(&sink), [0x41]);
    assert_eq!(
        read(&chip, regs::REDIRECTION + 18),
        IoOutcome::Value(0x41 | regs::LEVEL | regs::REMOTE_IRR)
    );
    chip.end_of_interrupt(0x40);
    assert!(sink.take().is_empty(), "another vector");
    chip.end_of_interrupt(0x41);
    assert_eq!(vectors(&sink), [0x41]);
    chip.set_level(Gsi(9), false);
    chip.access(regs::EOI, IoSize::B4, IoOp::Write(0x41));
    assert!(sink.take().is_empty());
    assert_eq!(
        read(&chip, regs::REDIRECTION + 18),
        IoOutcome::Value(0x41 | regs::LEVEL)
    );
}

#[test]
fn shared_vector_ends_for_all_its_inputs() {
    let (chip, sink) = bench();
    for pin in [16, 17] {
        program(&chip, pin, 0x50 | regs::LEVEL);
        chip.set_level(Gsi(pin.into()), true);
    }
    assert_eq!(vectors(&sink), [0x50, 0x50]);
    chip.end_of_interrupt(0x50);
    assert_eq!(vectors(&sink), [0x50, 0x50]);
}

#[test]
fn unmasking_sends_what_is_asserted_and_edge_mode_clears_remote_irr() {
    let (chip, sink) = bench();
    program(&chip, 9, 0x41 | regs::LEVEL | regs::MASKED);
    chip.set_level(Gsi(9), true);
    assert!(sink.take().is_empty());
    program(&chip, 9, 0x41 | regs::LEVEL);
    assert_eq!(vectors(&sink), [0x41]);
    // As operating systems clear a remote IRR: to edge, and back.
    program(&chip, 9, 0x41 | regs::MASKED);
    program(&chip, 9, 0x41 | regs::LEVEL);
    assert_eq!(vectors(&sink), [0x41]);
}

#[test]
fn nmi_of_a_level_entry_is_an_edge_and_reserved_modes_send_nothing() {
    let (chip, sink) = bench();
    program(&chip, 1, regs::LEVEL | 4 << regs::MODE_SHIFT);
    for _ in 0..2 {
        chip.set_level(Gsi(1), true);
        chip.set_level(Gsi(1), false);
    }
    assert_eq!(sink.take().len(), 2, "no end is waited for");
    for mode in [3, 6] {
        program(&chip, 1, mode << regs::MODE_SHIFT);
        chip.set_level(Gsi(1), true);
        chip.set_level(Gsi(1), false);
    }
    assert!(sink.take().is_empty());
}

#[test]
fn routes_are_told_when_they_change_and_stay_while_masked() {
    let (chip, sink) = bench();
    program(&chip, 4, 0x34 | regs::MASKED);
    assert!(sink.take_routes().is_empty());
    program(&chip, 4, 0x34);
    assert_eq!(sink.take_routes().len(), 1);
    program(&chip, 4, 0x34 | regs::MASKED);
    program(&chip, 4, 0x34);
    assert!(sink.take_routes().is_empty());
    program(&chip, 4, 0x35);
    assert_eq!(
        sink.take_routes(),
        [(
            4,
            Msi {
                address: 0xfee0_1000,
                data: 0x35
            }
        )]
    );
}

#[test]
fn impossible_states_are_refused() {
    let (chip, _) = bench();
    let good = chip.save();
    for bad in [
        IoApicState { id: 1, ..good.clone() },
        IoApicState {
            levels: 1 << 24,
            ..good.clone()
        },
    ] {
        assert!(chip.restore(&bad).is_err());
    }
    assert_eq!(chip.save(), good);
    assert_eq!(Entry::from_bits(regs::REMOTE_IRR), None, "remote IRR of an edge");
    assert_eq!(Entry::from_bits(1 << 12), None, "delivery status");
    assert!(Entry::from_bits(regs::LEVEL | regs::REMOTE_IRR).is_some());
}

/// One input, thought of as a person would: what is set, and what that means when something happens.
#[derive(Clone, Copy)]
struct NaivePin {
    bits: u64,
    asserted: bool,
    in_service: bool,
}

impl NaivePin {
    fn ordinary(&self) -> bool {
        self.bits >> 8 & 7 <= 1
    }

    fn due(&mut self) -> Option<u8> {
        let masked = self.bits >> 16 & 1 == 1;
        let level = self.bits >> 15 & 1 == 1;
        if self.asserted && !masked && level && self.ordinary() && !self.in_service {
            self.in_service = true;
            return Some(self.bits.to_le_bytes()[0]);
        }
        None
    }

    fn changed(&mut self, asserted: bool) -> Option<u8> {
        let rose = asserted && !self.asserted;
        self.asserted = asserted;
        let (level, masked, mode) = (self.bits >> 15 & 1 == 1, self.bits >> 16 & 1 == 1, self.bits >> 8 & 7);
        if level && self.ordinary() {
            return self.due();
        }
        (rose && !masked && mode != 3 && mode != 6).then(|| self.bits.to_le_bytes()[0])
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Level { pin: u8, high: bool },
    Entry { pin: u8, low: u32 },
    End { vector: u8 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Few pins, vectors and bits, so that they meet.
    let level = (0u8..4, any::<bool>()).prop_map(|(pin, high)| Step::Level { pin, high });
    let entry = (0u8..4, 0x30u32..0x33, 0u32..8, any::<[bool; 3]>()).prop_map(|(pin, vector, mode, bits)| {
        let [level, masked, often] = bits.map(u32::from);
        // Mostly ordinary interrupts.
        Step::Entry {
            pin,
            low: vector | (mode * often) << 8 | level << 15 | masked << 16,
        }
    });
    let end = (0x30u8..0x33).prop_map(|vector| Step::End { vector });
    prop::collection::vec(prop_oneof![3 => level, 2 => entry, 2 => end], 0..200)
}

proptest! {
    #[test]
    fn history_sends_what_a_naive_model_sends(history in steps()) {
        let (chip, sink) = bench();
        let mut naive = [NaivePin { bits: regs::MASKED, asserted: false, in_service: false }; 4];
        for step in history {
            let mut expected = Vec::new();
            match step {
                Step::Level { pin, high } => {
                    chip.set_level(Gsi(pin.into()), high);
                    expected.extend(naive[usize::from(pin)].changed(high));
                }
                Step::Entry { pin, low } => {
                    write(&chip, regs::REDIRECTION + 2 * pin, low);
                    let pin = &mut naive[usize::from(pin)];
                    pin.bits = low.into();
                    if low >> 15 & 1 == 0 {
                        pin.in_service = false;
                    }
                    expected.extend(pin.due());
                }
                Step::End { vector } => {
                    chip.end_of_interrupt(vector);
                    for pin in &mut naive {
                        if pin.in_service && pin.bits.to_le_bytes()[0] == vector {
                            pin.in_service = false;
                            expected.extend(pin.due());
                        }
                    }
                }
            }
            prop_assert_eq!(vectors(&sink), expected);
            for (pin, naive) in (0u8..).zip(&naive) {
                let remote = if naive.in_service { regs::REMOTE_IRR } else { 0 };
                prop_assert_eq!(read(&chip, regs::REDIRECTION + 2 * pin), IoOutcome::Value(naive.bits | remote));
            }
        }
    }
}
