//! Leaves: entries that map memory, in x86 format. KVM's `make_spte`.

use super::bits::{BitSpan, bits};
use super::layout::MMU_PRESENT;
use super::ports::DirtyLog;
use crate::access_mask::AccessMask;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// The leaf is above level 1.
const LARGE: u64 = 1 << 7;
/// The slot may be written (`DEFAULT_SPTE_HOST_WRITABLE`).
const HOST_WRITABLE: u64 = 1 << 9;
/// Nothing but write tracking may take the right to write away (`DEFAULT_SPTE_MMU_WRITABLE`).
const MMU_WRITABLE: u64 = 1 << 10;
const NO_EXECUTE: u64 = 1 << 63;
const KEY: BitSpan = BitSpan::fixed(59, 62);

/// The highest level at which there are leaves: 1 GiB.
pub(crate) const MAX_LEVEL: u8 = 3;

/// What a leaf is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LeafParts {
    /// Where the walker finds the memory; a multiple of the leaf's size.
    pub(crate) address: u64,
    /// What the guest allows.
    pub(crate) access: AccessMask,
    /// The guest's protection key, which the walker applies as the guest's CR4 says.
    pub(crate) key: u8,
    /// The slot may be written.
    pub(crate) host_writable: bool,
    /// Writes must fault, though both allow them.
    pub(crate) tracked: bool,
    /// The level: 1 for 4 KiB.
    pub(crate) level: u8,
    /// How writes come to be known of.
    pub(crate) log: DirtyLog,
    /// The leaf is made for a write.
    pub(crate) for_write: bool,
}

/// Makes a leaf.
pub(crate) const fn encode(parts: LeafParts) -> u64 {
    let mut entry = parts.address & bits(12, 51) | MMU_PRESENT | PRESENT | ACCESSED | KEY.put(parts.key as u64);
    if parts.level > 1 {
        entry |= LARGE;
    }
    if parts.access.contains(AccessMask::USER) {
        entry |= USER;
    }
    if !parts.access.contains(AccessMask::EXEC) {
        entry |= NO_EXECUTE;
    }
    if parts.host_writable {
        entry |= HOST_WRITABLE;
        if parts.access.contains(AccessMask::WRITE) && !parts.tracked {
            entry |= WRITABLE | MMU_WRITABLE;
            if !matches!(parts.log, DirtyLog::DirtyFlags) || parts.for_write {
                entry |= DIRTY;
            }
        }
    }
    entry
}

/// The same leaf without the right to write (`spte_write_protect`), if it had it, or could have got it back without
/// being asked why it was taken.
pub(crate) const fn write_protected(entry: u64) -> Option<u64> {
    if entry & (WRITABLE | MMU_WRITABLE) != 0 {
        Some(entry & !(WRITABLE | MMU_WRITABLE))
    } else {
        None
    }
}

/// The same leaf without the right to write, so that the next write becomes known; if it had it.
pub(crate) const fn logged(entry: u64) -> Option<u64> {
    if entry & WRITABLE != 0 {
        Some(entry & !WRITABLE)
    } else {
        None
    }
}

/// Whether it is writable.
pub(crate) const fn is_writable(entry: u64) -> bool {
    entry & WRITABLE != 0
}

/// Whether it was written to (or nobody wants to know).
pub(crate) const fn is_dirty(entry: u64) -> bool {
    entry & DIRTY != 0
}

/// The same leaf, not yet written to; if it was.
pub(crate) const fn clean(entry: u64) -> Option<u64> {
    if is_dirty(entry) { Some(entry & !DIRTY) } else { None }
}

/// The same leaf, not yet used; if it was.
pub(crate) const fn old(entry: u64) -> Option<u64> {
    if entry & ACCESSED != 0 {
        Some(entry & !ACCESSED)
    } else {
        None
    }
}

/// The same leaf, made ahead of any use.
pub(crate) const fn unused(entry: u64) -> u64 {
    entry & !ACCESSED
}

/// The same leaf with the right to write that was taken away so that the next write becomes known; if only for that.
pub(crate) const fn writable_again(entry: u64) -> Option<u64> {
    if entry & MMU_WRITABLE != 0 {
        Some(entry | WRITABLE)
    } else {
        None
    }
}

/// `new` in the place of `old`, with what the walker noted there for the log.
pub(crate) const fn keeping_dirty(old: u64, new: u64) -> u64 {
    new | (old & DIRTY)
}

/// Whether a CPU that knows `old` must forget it when `new` takes its place: another page, or less rights.
pub(crate) const fn needs_flush(old: u64, new: u64) -> bool {
    let page = bits(12, 51) | PRESENT | LARGE | KEY.mask();
    let (lost, gained) = (old & !new, new & !old);
    (old ^ new) & page != 0 || lost & (WRITABLE | USER) != 0 || gained & NO_EXECUTE != 0
}

/// The same leaf with other rights: what the guest allows now, but writes only if they were allowed before (else they
/// fault first, and whoever has to know of them does). `None` if that changes nothing.
pub(crate) const fn with_rights(entry: u64, access: AccessMask, key: u8) -> Option<u64> {
    let mut new = entry & !(USER | NO_EXECUTE | KEY.mask()) | KEY.put(key as u64);
    if access.contains(AccessMask::USER) {
        new |= USER;
    }
    if !access.contains(AccessMask::EXEC) {
        new |= NO_EXECUTE;
    }
    if !access.contains(AccessMask::WRITE) {
        new &= !(WRITABLE | MMU_WRITABLE);
    }
    if new == entry { None } else { Some(new) }
}
