//! [`RamLeaf`]: an entry of a direct table that maps memory, in x86 format (AMD's nested tables; guests without paging) and
//! in EPT format. KVM's `make_spte` for direct pages.

use crate::access_mask::AccessMask;
use crate::shadow::bits::bits;
use crate::shadow::layout::MMU_PRESENT;
use crate::shadow::{DirtyLog, EntryFormat, SpteLayout};

/// Memory to be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RamLeaf {
    /// Where the walker finds it: a multiple of the size that `level` stands for (of the rest, the lower bits don't count).
    pub address: u64,
    /// 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB; other numbers are taken as the nearest. Logged memory is mapped by 4 KiB.
    pub level: u8,
    /// W and X count; a direct table has no use for U.
    pub access: AccessMask,
    /// How it becomes known that it was written to.
    pub log: DirtyLog,
    /// The guest is just about to write: the leaf is as after that.
    pub for_write: bool,
}

/// Which bits mean what, in one of the two formats.
#[derive(Clone, Copy)]
pub(super) struct LeafBits {
    /// What every leaf has.
    always: u64,
    write: u64,
    /// Set to allow execution, or to forbid it.
    exec: u64,
    exec_forbids: bool,
    pub(super) dirty: u64,
}

/// Both formats: the leaf is above level 1.
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = bits(12, 51);

impl LeafBits {
    pub(super) const fn of(layout: &SpteLayout) -> Self {
        match layout.host().format {
            // P, U/S (nested tables are walked as by a user, APM vol. 2, 15.25.5) and A; R/W, NX, D.
            EntryFormat::X86 => Self {
                always: MMU_PRESENT | 1 | 1 << 2 | 1 << 5,
                write: 1 << 1,
                exec: 1 << 63,
                exec_forbids: true,
                dirty: 1 << 6,
            },
            // R, write-back (6 in bits 5:3) whatever the guest's PAT says (bit 6), A; W, X, D (SDM vol. 3C, 29.3.2).
            EntryFormat::Ept { .. } => Self {
                always: MMU_PRESENT | 1 | 6 << 3 | 1 << 6 | 1 << 8,
                write: 1 << 1,
                exec: 1 << 2,
                exec_forbids: false,
                dirty: 1 << 9,
            },
        }
    }

    /// Makes a leaf of `level`.
    pub(super) const fn encode(self, leaf: RamLeaf, level: u8) -> u64 {
        let size = 1u64 << (12 + 9 * (level as u32 - 1));
        let mut entry = self.always | leaf.address & ADDRESS & !(size - 1);
        if level > 1 {
            entry |= LARGE;
        }
        if leaf.access.contains(AccessMask::EXEC) != self.exec_forbids {
            entry |= self.exec;
        }
        let faults_first = matches!(leaf.log, DirtyLog::WriteProtection) && !leaf.for_write;
        if leaf.access.contains(AccessMask::WRITE) && !faults_first {
            entry |= self.write;
            if leaf.for_write || !matches!(leaf.log, DirtyLog::DirtyFlags) {
                entry |= self.dirty;
            }
        }
        entry
    }

    /// Part `index` of a large leaf of `level`, as a leaf of the level below: the same rights and flags.
    pub(super) const fn part(entry: u64, level: u8, index: u16) -> u64 {
        let offset = (index as u64) << (12 + 9 * (level as u32 - 2));
        let part = (entry & !ADDRESS) | ((entry & ADDRESS) + offset);
        if level == 2 { part & !LARGE } else { part }
    }

    /// The leaf that takes the place of `old`: if both map the same memory, what was written to stays dirty.
    pub(super) const fn replacing(self, entry: u64, old: u64) -> u64 {
        if (entry ^ old) & (ADDRESS | LARGE | MMU_PRESENT) == 0 {
            entry | old & self.dirty
        } else {
            entry
        }
    }

    /// The same leaf without the right to write, if it had that. Dirty it remains.
    pub(super) const fn write_protected(self, entry: u64) -> Option<u64> {
        if entry & self.write != 0 {
            Some(entry & !self.write)
        } else {
            None
        }
    }

    /// The same leaf, clean, if it was written to since it was made or last cleaned.
    pub(super) const fn cleaned(self, entry: u64) -> Option<u64> {
        if entry & self.dirty != 0 {
            Some(entry & !self.dirty)
        } else {
            None
        }
    }
}

/// Whether an entry of `level` maps memory.
pub(super) const fn is_leaf(layout: &SpteLayout, entry: u64, level: u8) -> bool {
    layout.is_mmu_present(entry) && (level == 1 || entry & LARGE != 0)
}
