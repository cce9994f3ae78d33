//! Registers and commands of the PS/2 controller: IBM PS/2 Technical Reference, "Keyboard and Auxiliary Device Controller
//! (Type 1)", and the Intel 8042 (UPI-41AH) data sheet for the status register.

/// Data port: read the output buffer, write to the keyboard or the parameter of a command.
pub const DATA_PORT: u16 = 0x60;
/// Status (read) and command (write) port. The ports between the two belong to other devices.
pub const COMMAND_PORT: u16 = 0x64;

/// Offset of [`DATA_PORT`] in the device.
pub const DATA: u64 = 0;
/// Offset of [`COMMAND_PORT`] in the device.
pub const COMMAND: u64 = 4;
/// Number of offsets of the device.
pub const LEN: u64 = 5;

/// Status: the output buffer holds a byte for the CPU.
pub const STATUS_OUTPUT_FULL: u8 = 1 << 0;
/// Status: the self-test has passed.
pub const STATUS_SYSTEM: u8 = 1 << 2;
/// Status: the last write was a command.
pub const STATUS_COMMAND: u8 = 1 << 3;
/// Status: the keyboard is not inhibited by a lock.
pub const STATUS_UNLOCKED: u8 = 1 << 4;

/// Read the controller command byte.
pub const CMD_READ_CONFIG: u8 = 0x20;
/// Write the controller command byte; parameter follows at the data port.
pub const CMD_WRITE_CONFIG: u8 = 0x60;
/// Disable the auxiliary device (mouse) interface.
pub const CMD_DISABLE_AUX: u8 = 0xa7;
/// Enable the auxiliary device interface.
pub const CMD_ENABLE_AUX: u8 = 0xa8;
/// Test the auxiliary device interface.
pub const CMD_TEST_AUX: u8 = 0xa9;
/// Self-test of the controller.
pub const CMD_SELF_TEST: u8 = 0xaa;
/// Test the keyboard interface.
pub const CMD_TEST_KEYBOARD: u8 = 0xab;
/// Disable the keyboard interface.
pub const CMD_DISABLE_KEYBOARD: u8 = 0xad;
/// Enable the keyboard interface.
pub const CMD_ENABLE_KEYBOARD: u8 = 0xae;
/// Read the output port.
pub const CMD_READ_OUTPUT_PORT: u8 = 0xd0;
/// Write the output port; parameter follows.
pub const CMD_WRITE_OUTPUT_PORT: u8 = 0xd1;
/// Put the parameter that follows into the output buffer, as if the keyboard had sent it.
pub const CMD_KEYBOARD_LOOP: u8 = 0xd2;
/// As [`CMD_KEYBOARD_LOOP`], as if the auxiliary device had.
pub const CMD_AUX_LOOP: u8 = 0xd3;
/// Send the parameter that follows to the auxiliary device.
pub const CMD_WRITE_AUX: u8 = 0xd4;
/// First of 16 commands that pulse the output port lines whose bits in the low nibble are 0.
pub const CMD_PULSE_FIRST: u8 = 0xf0;
/// Pulse the reset line: the usual way to reset a PC.
pub const CMD_RESET: u8 = 0xfe;

/// Answer of a passed self-test.
pub const SELF_TEST_PASSED: u8 = 0x55;
/// Answer of an interface test: no error.
pub const TEST_OK: u8 = 0x00;
/// Answer of an interface test: clock line stuck low. What we say of the auxiliary interface, as nothing is there.
pub const TEST_CLOCK_LOW: u8 = 0x01;

/// Command byte: the self-test has passed (shows in the status).
pub const CONFIG_SYSTEM: u8 = 1 << 2;
/// Command byte: the keyboard interface is disabled.
pub const CONFIG_KEYBOARD_DISABLED: u8 = 1 << 4;
/// Command byte: the auxiliary interface is disabled.
pub const CONFIG_AUX_DISABLED: u8 = 1 << 5;
/// Command byte after reset.
pub const CONFIG_AT_RESET: u8 = CONFIG_AUX_DISABLED;

/// Output port: the reset line; 0 resets the CPU.
pub const OUTPUT_NOT_RESET: u8 = 1 << 0;
/// Output port: address line A20 is let through.
pub const OUTPUT_A20: u8 = 1 << 1;
