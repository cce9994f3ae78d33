//! Device models. Each folder is one device: `regs` (its registers, with the data sheet they are from), the device, and
//! its tests. Every model passes [`testing::Conformance`](crate::testing::Conformance).
//!
//! PC devices: [`serial`], [`i8042`], [`cmos`], [`pm`], and for machines without KVM's own [`pic`], [`pit`], [`ioapic`],
//! [`lapic`] and [`fpu_error`]. For tests and small guests: [`debug_exit`], [`debug_console`], [`scratch`], [`slot_control`].

mod bytewise;
pub mod cmos;
pub mod debug_console;
pub mod debug_exit;
pub mod fpu_error;
pub mod i8042;
pub mod ioapic;
pub mod lapic;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod scratch;
pub mod serial;
pub mod slot_control;
