//! Interrupts as messages to local APICs: what an I/O APIC sends, a device writes to 0xfee00000, and an IPI carries.

use std::fmt;

/// Bits 31:20 of a message's address.
const ADDRESS: u64 = 0xfee0_0000;
const ADDRESS_LOGICAL: u64 = 1 << 2;
const ADDRESS_HINT: u64 = 1 << 3;
const DATA_ASSERT: u32 = 1 << 14;
const DATA_LEVEL: u32 = 1 << 15;

/// What an interrupt does to the CPU that it reaches (SDM vol. 3A table 11-1, "delivery mode").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DeliveryMode {
    /// Interrupts with its vector.
    Fixed,
    /// The same, one CPU of those that are addressed.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Mode 3, which is reserved.
    Reserved,
    /// Non-maskable interrupt.
    Nmi,
    /// Resets the CPU, which then waits.
    Init,
    /// Starts a CPU that waits, at the page whose number is the vector. Not something a device can send.
    StartUp,
    /// Interrupts with the vector that an 8259 tells.
    ExtInt,
}

impl DeliveryMode {
    /// All modes, by number.
    pub const ALL: [Self; 8] = [
        Self::Fixed,
        Self::LowestPriority,
        Self::Smi,
        Self::Reserved,
        Self::Nmi,
        Self::Init,
        Self::StartUp,
        Self::ExtInt,
    ];

    /// The mode with the number in the low three bits.
    pub const fn from_bits(bits: u32) -> Self {
        Self::ALL[(bits & 7) as usize]
    }

    /// Its number, 0 to 7.
    pub const fn bits(self) -> u32 {
        self as u32
    }
}

/// A message-signalled interrupt as a write to memory (SDM vol. 3A section 11.11).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Msi {
    /// Address, 0xfeeXXXXX.
    pub address: u64,
    /// Data, of which 16 bits have a meaning.
    pub data: u32,
}

impl fmt::Debug for Msi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Msi({:#x} = {:#06x})", self.address, self.data)
    }
}

/// The same in words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Which local APICs: an identifier, or what [`Message::logical`] says.
    pub destination: u8,
    /// The destination is a set, to be compared with the logical destination registers.
    pub logical: bool,
    /// What it does.
    pub mode: DeliveryMode,
    /// The vector.
    pub vector: u8,
    /// It is level-triggered: the end of this interrupt is to be told to the I/O APICs.
    pub level: bool,
}

impl Message {
    /// As a write to memory.
    pub fn to_msi(self) -> Msi {
        let hint = self.mode == DeliveryMode::LowestPriority;
        let mut address = ADDRESS | u64::from(self.destination) << 12;
        if self.logical {
            address |= ADDRESS_LOGICAL;
        }
        if hint {
            address |= ADDRESS_HINT;
        }
        let mut data = u32::from(self.vector) | self.mode.bits() << 8;
        if self.level {
            data |= DATA_LEVEL | DATA_ASSERT;
        }
        Msi { address, data }
    }

    /// What a write to memory says; `None` if it is not one to the range of local APICs.
    pub fn from_msi(msi: Msi) -> Option<Self> {
        if msi.address & !0xf_ffff != ADDRESS {
            return None;
        }
        let [_, low, high, _, ..] = msi.address.to_le_bytes();
        Some(Self {
            destination: low >> 4 | high << 4,
            logical: msi.address & ADDRESS_LOGICAL != 0,
            mode: DeliveryMode::from_bits(msi.data >> 8),
            vector: msi.data.to_le_bytes()[0],
            level: msi.data & DATA_LEVEL != 0,
        })
    }
}

/// Where messages go: local APICs, ours or KVM's.
pub trait MsiSink: Send + Sync {
    /// Delivers one message now. From any thread; an I/O APIC calls this while it holds its lock, so it must not call
    /// that back.
    fn deliver(&self, msi: Msi);

    /// From now on this is what input `pin` of the I/O APIC sends. For those who must know beforehand whose end of
    /// interrupt to report; called when an input that is not masked changes, under the same lock as
    /// [`MsiSink::deliver`].
    fn route(&self, _pin: u8, _msi: Msi) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_survives_being_written_to_memory() {
        for mode in DeliveryMode::ALL {
            for bits in 0..4 {
                let message = Message {
                    destination: 0xa5,
                    logical: bits & 1 != 0,
                    mode,
                    vector: 0x31,
                    level: bits & 2 != 0,
                };
                assert_eq!(Message::from_msi(message.to_msi()), Some(message));
            }
        }
    }

    #[test]
    fn bits_are_where_the_manual_has_them() {
        let message = Message {
            destination: 3,
            logical: true,
            mode: DeliveryMode::LowestPriority,
            vector: 0x41,
            level: true,
        };
        let msi = message.to_msi();
        assert_eq!((msi.address, msi.data), (0xfee0_300c, 0xc141));
        assert_eq!(
            Message::from_msi(Msi {
                address: 0xfed0_0000,
                data: 0
            }),
            None
        );
        assert_eq!(
            Message::from_msi(Msi {
                address: 0x1_fee0_0000,
                data: 0
            }),
            None
        );
    }
}
