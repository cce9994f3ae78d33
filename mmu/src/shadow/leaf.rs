//! Leaves: entries that map a 4 KiB page, in x86 format. KVM's `make_spte`.

use super::bits::bits;
use super::layout::MMU_PRESENT;
use crate::access_mask::AccessMask;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// The slot may be written (`DEFAULT_SPTE_HOST_WRITABLE`).
const HOST_WRITABLE: u64 = 1 << 9;
/// Nothing but write tracking may take the right to write away (`DEFAULT_SPTE_MMU_WRITABLE`).
const MMU_WRITABLE: u64 = 1 << 10;
const NO_EXECUTE: u64 = 1 << 63;

/// What a leaf is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LeafParts {
    /// Where the walker finds the page; a multiple of 4096.
    pub(crate) address: u64,
    /// What the guest allows.
    pub(crate) access: AccessMask,
    /// The guest's protection key, which the walker applies as the guest's CR4 says.
    pub(crate) key: u8,
    /// The slot may be written.
    pub(crate) host_writable: bool,
    /// The page is a guest table that has a shadow.
    pub(crate) tracked: bool,
}

/// Makes a leaf.
pub(crate) const fn encode(parts: LeafParts) -> u64 {
    let mut entry = parts.address & bits(12, 51) | MMU_PRESENT | PRESENT | ACCESSED | (parts.key as u64 & 0xf) << 59;
    if parts.access.contains(AccessMask::USER) {
        entry |= USER;
    }
    if !parts.access.contains(AccessMask::EXEC) {
        entry |= NO_EXECUTE;
    }
    if parts.host_writable {
        entry |= HOST_WRITABLE;
        if parts.access.contains(AccessMask::WRITE) && !parts.tracked {
            entry |= WRITABLE | DIRTY | MMU_WRITABLE;
        }
    }
    entry
}

/// The same leaf without the right to write (`spte_write_protect`), if it had it.
pub(crate) const fn write_protected(entry: u64) -> Option<u64> {
    if entry & WRITABLE != 0 {
        Some(entry & !(WRITABLE | MMU_WRITABLE))
    } else {
        None
    }
}
