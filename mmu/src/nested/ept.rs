//! Walks over a guest's own EPT tables (SDM vol. 3C, 29.3), as its CPU would do them for the guest's guest. Four levels; the
//! CPU that the guest sees knows no execute-only translations.

use crate::access_mask::AccessMask;
use crate::shadow::bits::bits;
use crate::x86::{Access, AccessKind};
use umbra_memslots::{EntrySize, Exchange, Gpa, GuestMemory, MemoryFault};

const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const EXEC: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
/// How often a walk starts again because an entry changed before its flags were set.
const ATTEMPTS: u32 = 16;

/// A guest's EPT pointer, as far as walks depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Eptp {
    /// Where the root table is (bits 51–12).
    pub root: Gpa,
    /// Accessed and dirty flags are in use (bit 6).
    pub flags: bool,
    /// The guest's physical address bits, 32 to 52.
    pub physical_bits: u32,
}

/// Where an address of the guest's guest leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Found {
    pub(super) gpa: Gpa,
    pub(super) level: u8,
    pub(super) access: AccessMask,
    /// A write needs no flag that is not set yet.
    pub(super) dirty: bool,
}

/// Why it leads nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    Violation(AccessMask, bool),
    Misconfiguration,
    Retry,
}

pub(super) fn walk(eptp: &Eptp, memory: &impl GuestMemory, address: Gpa, access: Access) -> Result<Found, Stop> {
    for _ in 0..ATTEMPTS {
        if let Some(result) = once(eptp, memory, address, access) {
            return result;
        }
    }
    Err(Stop::Retry)
}

/// `None`: an entry changed under the walk.
fn once(eptp: &Eptp, memory: &impl GuestMemory, address: Gpa, access: Access) -> Option<Result<Found, Stop>> {
    let mut table = eptp.root;
    let mut rights = READ | WRITE | EXEC;
    let mut path = [(Gpa::new(0), 0u64); 4];
    for (depth, level) in (1u8..=4).rev().enumerate() {
        let shift = 12 + 9 * (u32::from(level) - 1);
        let at = table.wrapping_add((address.get() >> shift & 0x1ff) * 8);
        let entry = match memory.read_entry(at, EntrySize::B8) {
            Ok(entry) => entry,
            Err(MemoryFault::BeingRemoved { .. }) => return Some(Err(Stop::Retry)),
            // Where there is no memory, there is no entry.
            Err(_) => 0,
        };
        if entry & (READ | WRITE | EXEC) == 0 {
            return Some(Err(Stop::Violation(AccessMask::NONE, false)));
        }
        let leaf = level == 1 || (level < 4 && entry & LARGE != 0);
        if misconfigured(entry, level, leaf, eptp.physical_bits) {
            return Some(Err(Stop::Misconfiguration));
        }
        rights &= entry;
        if let Some(place) = path.get_mut(depth) {
            *place = (at, entry);
        }
        if !leaf {
            table = Gpa::new(entry & bits(12, 51));
            continue;
        }
        let allowed = mask(rights);
        let wanted = match access.kind {
            AccessKind::Read => READ,
            AccessKind::Write => WRITE,
            AccessKind::Fetch => EXEC,
        };
        if rights & wanted == 0 {
            return Some(Err(Stop::Violation(allowed, true)));
        }
        let dirty = !eptp.flags || access.is_write() || entry & DIRTY != 0;
        if eptp.flags && !settle(memory, &path[..=depth], access.is_write()) {
            return None;
        }
        let offset = address.get() & ((1 << shift) - 1);
        let gpa = Gpa::new((entry & bits(shift, 51)) | offset);
        let access = allowed;
        return Some(Ok(Found {
            gpa,
            level,
            access,
            dirty,
        }));
    }
    // Level 1 always ends the walk.
    None
}

/// 29.3.3.1.
fn misconfigured(entry: u64, level: u8, leaf: bool, physical_bits: u32) -> bool {
    let shape = match (leaf, level) {
        (true, 1) => 0,
        (true, level) => bits(12, 12 + 9 * (u32::from(level) - 1) - 1),
        (false, 4) => bits(3, 7),
        (false, _) => bits(3, 6),
    };
    let reserved = shape | bits(physical_bits.clamp(32, 52), 51);
    let bad_type = leaf && matches!(entry >> 3 & 7, 2 | 3 | 7);
    entry & READ == 0 || entry & reserved != 0 || bad_type
}

/// Sets the flags; `false` if an entry isn't what the walk read. Tables in read-only memory stay as they are.
fn settle(memory: &impl GuestMemory, path: &[(Gpa, u64)], write: bool) -> bool {
    path.iter().enumerate().all(|(depth, &(at, old))| {
        let dirty = if write && depth + 1 == path.len() { DIRTY } else { 0 };
        let new = old | ACCESSED | dirty;
        new == old
            || !matches!(
                memory.compare_exchange_entry(at, EntrySize::B8, old, new),
                Ok(Exchange::Differs(_))
            )
    })
}

fn mask(rights: u64) -> AccessMask {
    let right = |bit: u64, right| if rights & bit != 0 { right } else { AccessMask::NONE };
    AccessMask::USER | right(WRITE, AccessMask::WRITE) | right(EXEC, AccessMask::EXEC)
}
