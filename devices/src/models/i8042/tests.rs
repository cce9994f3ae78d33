use super::*;
use crate::testing::Conformance;

fn write(device: &I8042, offset: u64, value: u8) -> IoOutcome {
    device.access(offset, IoSize::B1, IoOp::Write(value.into()))
}

fn read(device: &I8042, offset: u64) -> u8 {
    match device.access(offset, IoSize::B1, IoOp::Read) {
        IoOutcome::Value(value) => value.to_le_bytes()[0],
        other => panic!("{other:?}"),
    }
}

#[test]
fn conforms() {
    Conformance::of("i8042", regs::LEN, I8042::new)
        .reads_are_quiet_in(1..regs::LEN)
        .check();
}

#[test]
fn reset_commands_reset() {
    let reset = IoOutcome::effect(Effect::Reset);
    let device = I8042::new();
    assert_eq!(write(&device, regs::COMMAND, regs::CMD_RESET), reset);
    for command in 0xf0..=0xff {
        assert_eq!(
            write(&device, regs::COMMAND, command) == reset,
            command & 1 == 0,
            "{command:#x}"
        );
    }
    write(&device, regs::COMMAND, regs::CMD_WRITE_OUTPUT_PORT);
    assert_eq!(write(&device, regs::DATA, 0x02), reset);
}

/// The steps of a driver's probe; each answer must be there at once, as a driver polls for half a second otherwise.
#[test]
fn probe_gets_every_answer_at_once() {
    let device = I8042::new();
    assert_eq!(
        read(&device, regs::COMMAND) & regs::STATUS_OUTPUT_FULL,
        0,
        "nothing to flush"
    );
    for (command, answer) in [
        (regs::CMD_SELF_TEST, regs::SELF_TEST_PASSED),
        (regs::CMD_READ_CONFIG, regs::CONFIG_AT_RESET | regs::CONFIG_SYSTEM),
        (regs::CMD_TEST_AUX, regs::TEST_CLOCK_LOW),
        (regs::CMD_TEST_KEYBOARD, regs::TEST_OK),
    ] {
        write(&device, regs::COMMAND, command);
        assert_ne!(
            read(&device, regs::COMMAND) & regs::STATUS_OUTPUT_FULL,
            0,
            "{command:#x}"
        );
        assert_eq!(read(&device, regs::DATA), answer, "{command:#x}");
        assert_eq!(
            read(&device, regs::COMMAND) & regs::STATUS_OUTPUT_FULL,
            0,
            "{command:#x}"
        );
    }
    write(&device, regs::COMMAND, regs::CMD_WRITE_CONFIG);
    write(&device, regs::DATA, 0x77);
    write(&device, regs::COMMAND, regs::CMD_READ_CONFIG);
    assert_eq!(read(&device, regs::DATA), 0x77);
    write(&device, regs::COMMAND, regs::CMD_AUX_LOOP);
    write(&device, regs::DATA, 0x5a);
    assert_eq!(read(&device, regs::DATA), 0x5a);
}

#[test]
fn claims_its_two_ports_and_leaves_those_between() {
    let bus = Bus::new();
    let device = Arc::new(I8042::new());
    device.claim(&bus).unwrap();
    bus.claim("speaker", Port::new(0x61), 1, Arc::new(crate::testing::Constant(0)))
        .unwrap();
    let mut cursor = bus.cursor();
    cursor.write(Port::new(0x64), IoSize::B1, regs::CMD_SELF_TEST.into());
    assert_eq!(cursor.read(Port::new(0x60), IoSize::B1).value, 0x55);
    let answer = cursor.write(Port::new(0x64), IoSize::B1, regs::CMD_RESET.into());
    assert_eq!(answer.effect.as_deref(), Some(&Effect::Reset));
    assert!(device.claim(&bus).is_err());
}
