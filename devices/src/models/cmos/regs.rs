//! Registers of the MC146818 real-time clock (Motorola data sheet MC146818A/D) and the uses that the PC makes of its RAM
//! (IBM AT Technical Reference; Bochs and QEMU for the memory sizes above 16 MiB).

/// First port: index register. Bit 7 masks the NMI on a PC and is not part of the index.
pub const PORT: u16 = 0x70;
/// Number of ports: index and data.
pub const LEN: u64 = 2;
/// Offset of the index register.
pub const INDEX: u64 = 0;
/// Offset of the data register.
pub const DATA: u64 = 1;
/// The bits of the index.
pub const INDEX_MASK: u8 = 0x7f;
/// Number of registers.
pub const REGISTERS: usize = 128;

/// Seconds, 0 to 59.
pub const SECONDS: u8 = 0x00;
/// Minutes, 0 to 59.
pub const MINUTES: u8 = 0x02;
/// Hours, 0 to 23, or 1 to 12 with bit 7 for the afternoon.
pub const HOURS: u8 = 0x04;
/// Day of the week, Sunday is 1.
pub const WEEKDAY: u8 = 0x06;
/// Day of the month, from 1.
pub const DAY: u8 = 0x07;
/// Month, from 1.
pub const MONTH: u8 = 0x08;
/// Year within the century.
pub const YEAR: u8 = 0x09;
/// Century (the FADT names this register).
pub const CENTURY: u8 = 0x32;

/// Register A: divider, rate, [`A_UPDATE_IN_PROGRESS`].
pub const A: u8 = 0x0a;
/// Register B: modes.
pub const B: u8 = 0x0b;
/// Register C: interrupt flags, cleared by reading. No interrupts here: always 0.
pub const C: u8 = 0x0c;
/// Register D: [`D_VALID`].
pub const D: u8 = 0x0d;

/// The time is about to be updated; it does not change within 244 µs while this is 0.
pub const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Register A at reset: a 32.768 kHz crystal, 1024 Hz rate.
pub const A_AT_RESET: u8 = 0x26;
/// The time is being set: it stands still.
pub const B_SET: u8 = 1 << 7;
/// Numbers are binary instead of BCD.
pub const B_BINARY: u8 = 1 << 2;
/// Hours count to 24 instead of 12.
pub const B_24_HOURS: u8 = 1 << 1;
/// Register B at reset.
pub const B_AT_RESET: u8 = B_24_HOURS;
/// The battery is good.
pub const D_VALID: u8 = 1 << 7;
/// In [`HOURS`] of the 12-hour mode: afternoon.
pub const HOURS_PM: u8 = 1 << 7;

/// Base memory in KiB, low byte; high byte follows. Always 640.
pub const BASE_MEMORY: u8 = 0x15;
/// Memory above 1 MiB in KiB, at most 65535, low byte; high byte follows.
pub const EXTENDED_MEMORY: u8 = 0x17;
/// The same once more.
pub const EXTENDED_MEMORY_2: u8 = 0x30;
/// Memory between 16 MiB and 4 GiB in units of 64 KiB, low byte; high byte follows.
pub const MEMORY_ABOVE_16M: u8 = 0x34;
/// Memory above 4 GiB in units of 64 KiB, low byte; two higher bytes follow.
pub const MEMORY_ABOVE_4G: u8 = 0x5b;
