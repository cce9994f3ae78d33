//! Registers of the 8254 (Intel 8254 data sheet, order 231164) and of the PC's port 0x61.

/// Ports of the three counters and the control word.
pub const PORT: u16 = 0x40;
/// Ports there.
pub const LEN: u64 = 4;
/// Offset of the control word.
pub const CONTROL: u64 = 3;
/// System control port B: the third counter's gate and output.
pub const GATE_PORT: u16 = 0x61;
/// Offset of that port's register in the model.
pub const GATE: u64 = 4;
/// Registers of the model.
pub const ALL: u64 = 5;
/// ISA interrupt of the first counter.
pub const IRQ: u32 = 0;
/// Input clock in Hz.
pub const HZ: u64 = 1_193_182;

/// Port 0x61: the third counter's gate.
pub const GATE_2: u8 = 0x01;
/// Port 0x61: the bits that can be written: gate and speaker.
pub const WRITABLE: u8 = 0x03;
/// Port 0x61: toggles with each refresh of the memory, every 15 µs.
pub const REFRESH: u8 = 0x10;
/// Port 0x61: the third counter's output.
pub const OUT_2: u8 = 0x20;

/// Read-back command: the counter number that it is sent to.
pub const READ_BACK: u8 = 3;
/// Read-back: don't latch the count.
pub const NO_COUNT: u8 = 0x20;
/// Read-back: don't latch the status.
pub const NO_STATUS: u8 = 0x10;
