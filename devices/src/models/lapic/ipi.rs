//! Who an interrupt message is for (SDM vol. 3A section 11.6.2), and the interrupt command register.

use super::regs;
use crate::irq::{DeliveryMode, Message};

/// The destination of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// The APIC with this identifier.
    Physical(u32),
    /// The APICs whose logical destination register matches.
    Logical(u32),
    /// All.
    All,
}

/// What one local APIC goes by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// Identifier.
    pub id: u32,
    /// Logical destination register.
    pub ldr: u32,
    /// Destination format register; an x2APIC has none.
    pub dfr: Option<u32>,
}

impl Destination {
    /// The destination that an MSI or an xAPIC's IPI names with eight bits.
    pub fn narrow(destination: u8, logical: bool) -> Self {
        match (destination, logical) {
            (0xff, _) => Self::All,
            (set, true) => Self::Logical(set.into()),
            (id, false) => Self::Physical(id.into()),
        }
    }

    /// The destination that an x2APIC's IPI names.
    pub fn wide(destination: u32, logical: bool) -> Self {
        match (destination, logical) {
            (u32::MAX, _) => Self::All,
            (set, true) => Self::Logical(set),
            (id, false) => Self::Physical(id),
        }
    }

    /// Whether it includes the APIC that goes by this.
    pub fn includes(self, apic: &Address) -> bool {
        match (self, apic.dfr) {
            (Self::All, _) => true,
            (Self::Physical(id), _) => id == apic.id,
            // Clusters of 16.
            (Self::Logical(set), None) => set >> 16 == apic.ldr >> 16 && set & apic.ldr & 0xffff != 0,
            // Flat: a bit for each of eight.
            (Self::Logical(set), Some(format)) if format >> 28 == 0xf => set & apic.ldr >> 24 != 0,
            // Clusters of four; cluster 15 is all of them.
            (Self::Logical(set), Some(_)) => {
                let own = apic.ldr >> 24;
                (set >> 4 == 0xf || set >> 4 == own >> 4) && set & own & 0xf != 0
            }
        }
    }
}

/// Bits 19:18 of the interrupt command register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shorthand {
    /// The destination says it.
    None,
    /// The sender.
    Itself,
    /// Everybody.
    Everybody,
    /// Everybody but the sender.
    Others,
}

/// An interrupt from one CPU to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipi {
    /// For whom, unless there is a shorthand.
    pub destination: Destination,
    /// For whom.
    pub shorthand: Shorthand,
    /// What it does.
    pub mode: DeliveryMode,
    /// The vector.
    pub vector: u8,
}

impl Ipi {
    /// What the interrupt command register says; `None` if nothing is sent: the de-assertion of an INIT means nothing to
    /// these APICs.
    pub fn from_command(low: u32, destination: Destination) -> Option<Self> {
        let mode = DeliveryMode::from_bits(low >> 8);
        if mode == DeliveryMode::Init && low & regs::ICR_LEVEL != 0 && low & regs::ICR_ASSERT == 0 {
            return None;
        }
        let shorthand = match low >> 18 & 3 {
            0 => Shorthand::None,
            1 => Shorthand::Itself,
            2 => Shorthand::Everybody,
            _ => Shorthand::Others,
        };
        Some(Self {
            destination,
            shorthand,
            mode,
            vector: low.to_le_bytes()[0],
        })
    }

    /// Whether its vector is one that can't be sent.
    pub fn is_illegal(&self) -> bool {
        matches!(self.mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority) && self.vector < 16
    }
}

impl From<Message> for Destination {
    fn from(message: Message) -> Self {
        Self::narrow(message.destination, message.logical)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(destination: Destination, apics: &[Address]) -> Vec<u32> {
        let included = apics.iter().filter(|apic| destination.includes(apic));
        included.map(|apic| apic.id).collect()
    }

    #[test]
    fn flat_and_cluster_sets_are_matched_as_the_manual_says() {
        let flat: Vec<_> = (0..8)
            .map(|id| Address {
                id,
                ldr: 1 << (24 + id),
                dfr: Some(u32::MAX),
            })
            .collect();
        assert_eq!(who(Destination::narrow(0b1010_0001, true), &flat), [0, 5, 7]);
        assert_eq!(who(Destination::narrow(3, false), &flat), [3]);
        assert_eq!(who(Destination::narrow(0xff, false), &flat).len(), 8);
        let clusters: Vec<_> = (0..8)
            .map(|id| Address {
                id,
                ldr: (id / 4) << 28 | 1 << (24 + id % 4),
                dfr: Some(0x0fff_ffff),
            })
            .collect();
        assert_eq!(who(Destination::narrow(0x15, true), &clusters), [4, 6]);
        assert_eq!(who(Destination::narrow(0xf3, true), &clusters), [0, 1, 4, 5]);
        let wide: Vec<_> = (0..40)
            .map(|id| Address {
                id,
                ldr: (id / 16) << 16 | 1 << (id % 16),
                dfr: None,
            })
            .collect();
        assert_eq!(who(Destination::wide(0x2_0081, true), &wide), [32, 39]);
        assert_eq!(who(Destination::wide(u32::MAX, true), &wide).len(), 40);
        assert_eq!(who(Destination::wide(17, false), &wide), [17]);
    }

    #[test]
    fn deassertion_of_init_sends_nothing() {
        let to = Destination::All;
        assert_eq!(Ipi::from_command(0x8500, to), None);
        assert!(Ipi::from_command(0xc500, to).is_some());
        let start = Ipi::from_command(0xc_4609, to).unwrap();
        assert_eq!(
            (start.mode, start.shorthand, start.vector),
            (DeliveryMode::StartUp, Shorthand::Others, 9)
        );
    }
}
