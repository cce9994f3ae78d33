//! Registers of the I/O APIC (Intel 82093AA data sheet, order 290566; the end-of-interrupt register is of the later
//! chipsets, for instance ICH9 data sheet section 13.5).

/// Bytes of address space.
pub const LEN: u64 = 0x1000;
/// Offset of the register select: the index of the register that [`WINDOW`] shows.
pub const SELECT: u64 = 0x00;
/// Offset of the selected register, 4 bytes.
pub const WINDOW: u64 = 0x10;
/// Offset of the end-of-interrupt register: a vector is written.
pub const EOI: u64 = 0x40;

/// Index of the identifier, bits 27:24.
pub const ID: u8 = 0x00;
/// Bits of [`ID`] that can be written.
pub const ID_MASK: u32 = 0x0f00_0000;
/// Index of the version.
pub const VERSION: u8 = 0x01;
/// What [`VERSION`] reads as: version 0x20, the first with an end-of-interrupt register, and the last input's number.
pub const VERSION_VALUE: u32 = 0x20 | (PINS as u32 - 1) << 16;
/// Index of the arbitration identifier, which here is the identifier.
pub const ARBITRATION: u8 = 0x02;
/// Index of the low half of input 0's redirection entry; the high half follows, then input 1's.
pub const REDIRECTION: u8 = 0x10;

/// Inputs.
pub const PINS: u8 = 24;

/// Redirection entry: vector.
pub const VECTOR: u64 = 0xff;
/// Redirection entry: first bit of the delivery mode's three.
pub const MODE_SHIFT: u32 = 8;
/// Redirection entry: the destination is logical.
pub const LOGICAL: u64 = 1 << 11;
/// Redirection entry, read-only: a level-triggered interrupt was accepted and has not ended.
pub const REMOTE_IRR: u64 = 1 << 14;
/// Redirection entry: level-triggered.
pub const LEVEL: u64 = 1 << 15;
/// Redirection entry: masked. Set at reset.
pub const MASKED: u64 = 1 << 16;
/// Redirection entry: first bit of the destination's eight.
pub const DESTINATION_SHIFT: u32 = 56;
/// Redirection entry: what can be written. Besides the fields above, the polarity (bit 13); not the delivery status
/// (bit 12), which is always idle because delivery takes no time.
pub const WRITABLE: u64 = 0xff00_0000_0001_afff;
