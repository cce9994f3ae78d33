//! Registers of the 8259A (Intel 8259A data sheet, order 231468) and of the edge/level control (82371SB, section 4.1.3).

/// Ports of the first controller: command and data.
pub const MASTER_PORT: u16 = 0x20;
/// Ports of the second controller.
pub const SLAVE_PORT: u16 = 0xa0;
/// Edge/level control, a port for each controller.
pub const ELCR_PORT: u16 = 0x4d0;
/// Ports of each of these places.
pub const PORTS: u64 = 2;
/// Offset of the second controller's registers in the model.
pub const SLAVE: u64 = 2;
/// Offset of the edge/level registers in the model.
pub const ELCR: u64 = 4;
/// Registers of the model.
pub const LEN: u64 = 6;

/// Inputs that can be level-triggered, of either controller: not the timer, the keyboard, the cascade, the clock and the
/// coprocessor.
pub const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

/// The input of the first controller at which the second is.
pub const CASCADE: u8 = 2;
/// What is answered when an interrupt goes away before it is acknowledged.
pub const SPURIOUS: u8 = 7;

/// ICW1: bit 4 says that it is one.
pub const ICW1: u8 = 0x10;
/// ICW1: there will be an ICW4.
pub const ICW1_ICW4: u8 = 0x01;
/// ICW1: no cascade, so no ICW3.
pub const ICW1_SINGLE: u8 = 0x02;
/// ICW4: automatic end of interrupt.
pub const ICW4_AUTO_EOI: u8 = 0x02;
/// ICW4: special fully nested mode.
pub const ICW4_NESTED: u8 = 0x10;

/// OCW3 (with bit 4 clear).
pub const OCW3: u8 = 0x08;
/// OCW3: the next read polls.
pub const OCW3_POLL: u8 = 0x04;
/// OCW3: bit 0 counts.
pub const OCW3_READ: u8 = 0x02;
/// OCW3: bit 5 counts.
pub const OCW3_SPECIAL: u8 = 0x40;
