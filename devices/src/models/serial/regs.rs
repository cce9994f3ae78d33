//! Registers of the 16550A UART: National Semiconductor data sheet PC16550D, table II, and the places that PCs put them.

/// First port of COM1.
pub const COM1_PORT: u16 = 0x3f8;
/// ISA interrupt of COM1.
pub const COM1_IRQ: u32 = 4;
/// Number of ports.
pub const LEN: u64 = 8;

/// Receive buffer (read), transmit holding register (write), or low divisor latch.
pub const DATA: u64 = 0;
/// Interrupt enable, or high divisor latch.
pub const IER: u64 = 1;
/// Interrupt identification (read; reading acknowledges), FIFO control (write).
pub const IIR: u64 = 2;
/// Line control; bit 7 shows the divisor latch at offsets 0 and 1.
pub const LCR: u64 = 3;
/// Modem control.
pub const MCR: u64 = 4;
/// Line status.
pub const LSR: u64 = 5;
/// Modem status.
pub const MSR: u64 = 6;
/// Scratch.
pub const SCR: u64 = 7;

/// In [`IER`]: interrupt when data was received.
pub const IER_RECEIVED: u8 = 1 << 0;
/// In [`IER`]: interrupt when the transmit holding register is empty.
pub const IER_TRANSMIT_EMPTY: u8 = 1 << 1;
/// In [`MCR`]: what is sent is received.
pub const MCR_LOOPBACK: u8 = 1 << 4;
/// In [`LSR`]: a received byte can be read.
pub const LSR_DATA_READY: u8 = 1 << 0;
/// Bytes that the receive FIFO holds (a 16550A has 16; more only means fewer interrupts).
pub const FIFO_LEN: usize = 64;
/// How long a byte takes on a line of 115 200 baud: ten bits.
pub const BYTE_TIME: std::time::Duration = std::time::Duration::from_nanos(10_000_000_000 / 115_200);
