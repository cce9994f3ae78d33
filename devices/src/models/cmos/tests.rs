use super::*;
use crate::clock::ManualClock;
use crate::testing::Conformance;

const MEMORY: MemorySize = MemorySize {
    below_4g: 512 << 20,
    above_4g: 0,
};

/// 2023-11-14 22:13:20 UTC, a Tuesday.
fn device() -> (Arc<ManualClock>, Cmos) {
    let clock = Arc::new(ManualClock::at_unix_time(Duration::from_secs(1_700_000_000)));
    (Arc::clone(&clock), Cmos::new(clock, MEMORY))
}

fn read(cmos: &Cmos, index: u8) -> u8 {
    cmos.access(regs::INDEX, IoSize::B1, IoOp::Write(index.into()));
    match cmos.access(regs::DATA, IoSize::B1, IoOp::Read) {
        IoOutcome::Value(value) => value.to_le_bytes()[0],
        other => panic!("{other:?}"),
    }
}

fn write(cmos: &Cmos, index: u8, value: u8) {
    // Index and data in one wide access, as the ISA bus permits.
    cmos.access(
        regs::INDEX,
        IoSize::B2,
        IoOp::Write(u64::from(value) << 8 | u64::from(index)),
    );
}

fn time(cmos: &Cmos) -> [u8; 8] {
    [
        regs::CENTURY,
        regs::YEAR,
        regs::MONTH,
        regs::DAY,
        regs::WEEKDAY,
        regs::HOURS,
        regs::MINUTES,
        regs::SECONDS,
    ]
    .map(|index| read(cmos, index))
}

#[test]
fn conforms() {
    Conformance::of("cmos", regs::LEN, || device().1)
        .reads_are_quiet_in(0..regs::LEN)
        .check();
}

#[test]
fn time_is_the_clocks_in_each_mode() {
    let (clock, cmos) = device();
    assert_eq!(
        time(&cmos),
        [0x20, 0x23, 0x11, 0x14, 0x03, 0x22, 0x13, 0x20],
        "BCD, 24 hours"
    );
    write(&cmos, regs::B, regs::B_24_HOURS | regs::B_BINARY);
    assert_eq!(time(&cmos), [20, 23, 11, 14, 3, 22, 13, 20]);
    write(&cmos, regs::B, regs::B_BINARY);
    assert_eq!(read(&cmos, regs::HOURS), 10 | regs::HOURS_PM);
    clock.advance(Duration::from_secs(2 * 3600));
    assert_eq!(read(&cmos, regs::HOURS), 12, "a quarter past midnight");
}

#[test]
fn time_set_by_the_guest_goes_on_from_there() {
    let (clock, cmos) = device();
    write(&cmos, regs::B, regs::B_24_HOURS | regs::B_SET);
    for (index, value) in [
        (regs::CENTURY, 0x19),
        (regs::YEAR, 0x99),
        (regs::MONTH, 0x12),
        (regs::DAY, 0x31),
        (regs::HOURS, 0x23),
        (regs::MINUTES, 0x59),
        (regs::SECONDS, 0x58),
    ] {
        write(&cmos, index, value);
    }
    clock.advance(Duration::from_secs(100));
    assert_eq!(read(&cmos, regs::SECONDS), 0x58, "stands still while being set");
    write(&cmos, regs::B, regs::B_24_HOURS);
    clock.advance(Duration::from_secs(2));
    assert_eq!(time(&cmos), [0x20, 0x00, 0x01, 0x01, 0x07, 0x00, 0x00, 0x00]);
}

#[test]
fn update_in_progress_warns_before_the_second_changes() {
    let (clock, cmos) = device();
    assert_eq!(read(&cmos, regs::A), regs::A_AT_RESET);
    clock.advance(Duration::from_micros(999_800));
    assert_eq!(read(&cmos, regs::A), regs::A_AT_RESET | regs::A_UPDATE_IN_PROGRESS);
    clock.advance(Duration::from_micros(200));
    assert_eq!(read(&cmos, regs::A), regs::A_AT_RESET);
}

#[test]
fn memory_size_registers_are_what_firmware_leaves() {
    let clock = Arc::new(ManualClock::default());
    let word = |cmos: &Cmos, index| u16::from(read(cmos, index)) | u16::from(read(cmos, index + 1)) << 8;
    let small = Cmos::new(
        clock.clone(),
        MemorySize {
            below_4g: 8 << 20,
            above_4g: 0,
        },
    );
    assert_eq!(word(&small, regs::BASE_MEMORY), 640);
    assert_eq!(word(&small, regs::EXTENDED_MEMORY), 7 * 1024);
    assert_eq!(word(&small, regs::MEMORY_ABOVE_16M), 0);
    let large = Cmos::new(
        clock,
        MemorySize {
            below_4g: 3 << 30,
            above_4g: 5 << 30,
        },
    );
    assert_eq!(word(&large, regs::EXTENDED_MEMORY_2), 0xffff);
    assert_eq!(word(&large, regs::MEMORY_ABOVE_16M), (3072 - 16) * 16);
    assert_eq!(
        word(&large, regs::MEMORY_ABOVE_4G),
        u16::try_from((5 * 1024 * 16) & 0xffff).unwrap()
    );
    assert_eq!(read(&large, regs::MEMORY_ABOVE_4G + 2), 1);
}

#[test]
fn any_date_a_guest_writes_is_some_date() {
    let (_, cmos) = device();
    for mode in [0, regs::B_BINARY, regs::B_24_HOURS, regs::B_SET | regs::B_BINARY] {
        write(&cmos, regs::B, mode);
        for value in 0..=255 {
            for index in [regs::CENTURY, regs::MONTH, regs::DAY, regs::HOURS, regs::SECONDS] {
                write(&cmos, index, value);
                time(&cmos);
            }
        }
    }
}

#[test]
fn state_out_of_range_is_refused() {
    let (_, cmos) = device();
    let good = cmos.save();
    assert!(
        cmos.restore(&CmosState {
            index: 0x80,
            ..good.clone()
        })
        .is_err()
    );
    assert!(
        cmos.restore(&CmosState {
            registers: vec![0; 64],
            ..good.clone()
        })
        .is_err()
    );
    assert_eq!(cmos.save(), good);
    assert!(
        cmos.restore(&CmosState {
            offset_seconds: i64::MAX,
            ..good.clone()
        })
        .is_err()
    );
    assert!(
        cmos.restore(&CmosState {
            stopped_at: Some(i64::MIN),
            ..good
        })
        .is_err()
    );
}

#[test]
fn time_at_its_limits_does_not_overflow() {
    let (_, cmos) = device();
    let good = cmos.save();
    for at in [-TIME_LIMIT, TIME_LIMIT] {
        for (offset_seconds, stopped_at) in [(at, None), (-at, Some(at))] {
            cmos.restore(&CmosState {
                offset_seconds,
                stopped_at,
                ..good.clone()
            })
            .unwrap();
            write(&cmos, regs::MONTH, 0xff);
            time(&cmos);
            write(&cmos, regs::CENTURY, 0xff);
            write(&cmos, regs::B, 0);
            time(&cmos);
        }
    }
}
