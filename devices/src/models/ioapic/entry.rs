//! One redirection entry.

use super::regs;
use crate::irq::{DeliveryMode, Message};
use std::fmt;

/// A redirection entry: what an input sends, and when.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// As after reset: masked.
    pub const RESET: Self = Self(regs::MASKED);

    /// The entry with these bits; `None` if it has some that no entry has.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        let remote_irr_of_edge = bits & regs::REMOTE_IRR != 0 && bits & regs::LEVEL == 0;
        if bits & !(regs::WRITABLE | regs::REMOTE_IRR) != 0 || remote_irr_of_edge {
            return None;
        }
        Some(Self(bits))
    }

    /// Its bits, as the guest reads them.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Replaces one half, as far as it can be written.
    pub(super) const fn write_half(&mut self, high: bool, value: u32) {
        let shift = if high { 32 } else { 0 };
        let mask = regs::WRITABLE & 0xffff_ffff << shift;
        self.0 = self.0 & !mask | (value as u64) << shift & mask;
        // Edge-triggered interrupts have none; operating systems rely on this to clear it.
        if self.0 & regs::LEVEL == 0 {
            self.0 &= !regs::REMOTE_IRR;
        }
    }

    /// Nothing is sent.
    pub const fn is_masked(self) -> bool {
        self.0 & regs::MASKED != 0
    }

    /// Sent while the input is asserted, each time after the last one has ended. Only ordinary interrupts end, so the
    /// other modes are taken as edge-triggered whatever the entry says (data sheet, section 3.2.4).
    pub fn is_level(self) -> bool {
        self.0 & regs::LEVEL != 0 && matches!(self.message_mode(), DeliveryMode::Fixed | DeliveryMode::LowestPriority)
    }

    /// Waiting for the end of interrupt.
    pub const fn remote_irr(self) -> bool {
        self.0 & regs::REMOTE_IRR != 0
    }

    pub(super) const fn set_remote_irr(&mut self, waits: bool) {
        if waits {
            self.0 |= regs::REMOTE_IRR;
        } else {
            self.0 &= !regs::REMOTE_IRR;
        }
    }

    /// The vector.
    pub const fn vector(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    #[expect(clippy::cast_possible_truncation, reason = "three bits are kept")]
    const fn message_mode(self) -> DeliveryMode {
        DeliveryMode::from_bits((self.0 >> regs::MODE_SHIFT) as u32)
    }

    /// What is sent; `None` in a mode that an I/O APIC doesn't have.
    pub fn message(self) -> Option<Message> {
        let mode = self.message_mode();
        let known = !matches!(mode, DeliveryMode::Reserved | DeliveryMode::StartUp);
        known.then(|| Message {
            destination: self.0.to_le_bytes()[7],
            logical: self.0 & regs::LOGICAL != 0,
            mode,
            vector: self.vector(),
            level: self.is_level(),
        })
    }
}

impl Default for Entry {
    fn default() -> Self {
        Self::RESET
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({:#018x})", self.0)
    }
}
