//! Registers of the local APIC (SDM vol. 3A chapter 11): offsets in its page, which divided by 16 are the x2APIC's MSRs
//! from [`X2APIC_MSRS`] on.

/// Bytes of address space.
pub const LEN: u64 = 0x1000;
/// Where the page is after reset.
pub const BASE: u64 = 0xfee0_0000;

/// IA32_APIC_BASE.
pub const BASE_MSR: u32 = 0x1b;
/// IA32_APIC_BASE, read-only: this is the processor that starts first.
pub const BASE_BOOTSTRAP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC.
pub const BASE_X2APIC: u64 = 1 << 10;
/// IA32_APIC_BASE: on.
pub const BASE_ON: u64 = 1 << 11;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE_MSR: u32 = 0x6e0;
/// First MSR of the x2APIC.
pub const X2APIC_MSRS: u32 = 0x800;
/// MSRs set aside for it.
pub const X2APIC_MSR_COUNT: u32 = 0x100;

/// Identifier; an xAPIC's is in bits 31:24.
pub const ID: u16 = 0x020;
/// Version.
pub const VERSION: u16 = 0x030;
/// What [`VERSION`] reads as: an integrated APIC with six local vector table entries.
pub const VERSION_VALUE: u32 = 0x0005_0014;
/// Task priority.
pub const TPR: u16 = 0x080;
/// Arbitration priority, not in an x2APIC.
pub const APR: u16 = 0x090;
/// Processor priority.
pub const PPR: u16 = 0x0a0;
/// End of interrupt.
pub const EOI: u16 = 0x0b0;
/// Remote read, not in an x2APIC.
pub const REMOTE_READ: u16 = 0x0c0;
/// Logical destination.
pub const LDR: u16 = 0x0d0;
/// Destination format, not in an x2APIC.
pub const DFR: u16 = 0x0e0;
/// Spurious interrupt vector.
pub const SVR: u16 = 0x0f0;
/// [`SVR`]: the APIC accepts interrupts.
pub const SVR_ENABLED: u32 = 1 << 8;
/// [`SVR`]: bits that can be written: vector, enabled, focus checking.
pub const SVR_WRITABLE: u32 = 0x3ff;
/// In service, eight registers.
pub const ISR: u16 = 0x100;
/// Trigger mode, eight registers.
pub const TMR: u16 = 0x180;
/// Requested, eight registers.
pub const IRR: u16 = 0x200;
/// Error status.
pub const ESR: u16 = 0x280;
/// [`ESR`]: an IPI with a vector below 16 was to be sent.
pub const ESR_SEND_VECTOR: u32 = 1 << 5;
/// [`ESR`]: a vector below 16 was received.
pub const ESR_RECEIVED_VECTOR: u32 = 1 << 6;
/// [`ESR`]: there is no such register.
pub const ESR_NO_REGISTER: u32 = 1 << 7;
/// Interrupt command; writing it sends.
pub const ICR: u16 = 0x300;
/// High half of [`ICR`], not in an x2APIC.
pub const ICR_HIGH: u16 = 0x310;
/// [`ICR`]: what of the low half can be written; not the delivery status, bit 12.
pub const ICR_WRITABLE: u32 = 0x000c_cfff;
/// [`ICR`]: the destination is logical.
pub const ICR_LOGICAL: u32 = 1 << 11;
/// [`ICR`]: assert.
pub const ICR_ASSERT: u32 = 1 << 14;
/// [`ICR`]: level-triggered.
pub const ICR_LEVEL: u32 = 1 << 15;
/// First of the local vector table's six entries: timer.
pub const LVT: u16 = 0x320;
/// Index of the timer in the local vector table.
pub const LVT_TIMER: usize = 0;
/// Index of pin LINT0.
pub const LVT_LINT0: usize = 3;
/// Index of pin LINT1.
pub const LVT_LINT1: usize = 4;
/// Index of the error interrupt.
pub const LVT_ERROR: usize = 5;
/// Local vector table: masked.
pub const LVT_MASKED: u32 = 1 << 16;
/// What can be written of each entry of the local vector table: timer, thermal sensor, performance counters, pins, error.
pub const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
/// Initial count.
pub const INITIAL_COUNT: u16 = 0x380;
/// Current count.
pub const CURRENT_COUNT: u16 = 0x390;
/// Divide configuration.
pub const DIVIDE: u16 = 0x3e0;
/// An IPI to itself, x2APIC only.
pub const SELF_IPI: u16 = 0x3f0;
