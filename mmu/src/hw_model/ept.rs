//! Walks Intel's extended page tables (SDM vol. 3C, 29.3), four levels, without A/D flags.

use super::cpu::{HwAccess, HwMemory};

/// What becomes of an access to a guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EptOutcome {
    /// It goes to memory.
    Access {
        /// The host-physical address, to the byte.
        address: u64,
    },
    /// Exit reason 48: an entry isn't present or doesn't permit it.
    Violation,
    /// Exit reason 49: an entry is ill-formed.
    Misconfiguration,
}

/// Translates the guest-physical `address` through the tables at `root`, on a CPU with `maxphyaddr` physical bits that
/// knows execute-only translations.
pub fn ept_walk(root: u64, maxphyaddr: u32, memory: &impl HwMemory, address: u64, access: HwAccess) -> EptOutcome {
    let reserved_high = 0x000f_ffff_ffff_ffff & !((1u64 << maxphyaddr) - 1);
    let mut table = root & 0x000f_ffff_ffff_f000;
    let mut rights = 0b111;
    for (level, shift) in [(4, 39), (3, 30), (2, 21), (1, 12)] {
        let entry = memory.load(table + (address >> shift & 0x1ff) * 8, 8);
        if entry & 0b111 == 0 {
            return EptOutcome::Violation;
        }
        let large = entry & 0x80 != 0 && (level == 2 || level == 3);
        let offset = (1u64 << shift) - 1;
        let mut reserved = reserved_high;
        if level == 4 {
            reserved |= 0xf8;
        } else if large {
            reserved |= offset & !0xfff;
        } else if level != 1 {
            reserved |= 0x78;
        }
        let write_without_read = entry & 0b011 == 0b010;
        // Memory types 2, 3 and 7 don't exist.
        let bad_type = (large || level == 1) && matches!(entry >> 3 & 7, 2 | 3 | 7);
        if write_without_read || bad_type || entry & reserved != 0 {
            return EptOutcome::Misconfiguration;
        }
        rights &= entry & 0b111;
        if large || level == 1 {
            let wanted = if access.fetch {
                0b100
            } else if access.write {
                0b010
            } else {
                0b001
            };
            if rights & wanted == 0 {
                return EptOutcome::Violation;
            }
            let frame = entry & 0x000f_ffff_ffff_f000 & !offset;
            return EptOutcome::Access {
                address: frame | (address & offset),
            };
        }
        table = entry & 0x000f_ffff_ffff_f000;
    }
    // Level 1 always ends the walk.
    EptOutcome::Violation
}
