//! Listing our own tables: shadow tables by gva, direct tables by gpa.

use super::listing::{Limits, Listing};
use super::row::{Row, Seen, Share};
use crate::access_mask::AccessMask;
use crate::direct::DirectMmu;
use crate::mmio::MmioSpte;
use crate::shadow::layout::MMU_PRESENT;
use crate::shadow::{EntryFormat, ShadowMmu, ShadowRoot, SpteLayout, link};
use crate::tables::{ENTRIES, EntryLocation, INDEX_BITS, TableId, TableSpace};
use crate::x86::GuestPte;
use alloc::vec::Vec;
use umbra_memslots::Generation;

/// Whoever has tables to be looked at. What a backend hands out so that its tables can be shown.
pub trait TableSource: Send + Sync {
    /// The format of the entries.
    fn layout(&self) -> &SpteLayout;

    /// The table that the walker knows by this address, if it is one of these.
    fn table_at(&self, address: u64) -> Option<TableId>;

    /// Reads an entry of such a table.
    fn load(&self, at: EntryLocation) -> u64;
}

impl<S: TableSpace + Send + Sync> TableSource for DirectMmu<S> {
    fn layout(&self) -> &SpteLayout {
        self.layout()
    }

    fn table_at(&self, address: u64) -> Option<TableId> {
        self.table().space().table_at(address)
    }

    fn load(&self, at: EntryLocation) -> u64 {
        self.table().space().load(at)
    }
}

impl<S: TableSpace + Send + Sync> TableSource for ShadowMmu<S> {
    fn layout(&self) -> &SpteLayout {
        self.layout()
    }

    fn table_at(&self, address: u64) -> Option<TableId> {
        self.space().table_at(address)
    }

    fn load(&self, at: EntryLocation) -> u64 {
        self.space().load(at)
    }
}

/// Lists what the tables below `root` hold. `now` is the memslots' generation, by which MMIO SPTEs are judged.
///
/// Nothing is locked: if others change the tables meanwhile, the listing is of no one moment.
#[must_use]
pub fn our_tables(source: &(impl TableSource + ?Sized), root: ShadowRoot, now: Generation, limits: Limits) -> Listing {
    let mut walk = Walk {
        source,
        now,
        stack: Vec::new(),
        sign_bit: None,
        left: limits.entries,
        ran_out: false,
    };
    match root {
        ShadowRoot::Long { address, levels } => {
            walk.enter(address, levels, 0);
            if source.layout().host().format == EntryFormat::X86 {
                walk.sign_bit = Some(12 + INDEX_BITS * u32::from(levels) - 1);
            }
        }
        ShadowRoot::Pae { pdptes } => {
            for (gib, pdpte) in [0u64, 1, 2, 3].into_iter().zip(pdptes).rev() {
                let pdpte = GuestPte::new(pdpte);
                if pdpte.has(GuestPte::PRESENT) {
                    walk.enter(pdpte.address().get(), 2, gib << 30);
                }
            }
        }
    }
    let mut listing = Listing::collect(&mut walk, limits);
    listing.cut_short |= walk.ran_out;
    listing
}

struct Walk<'a, T: ?Sized> {
    source: &'a T,
    now: Generation,
    /// Table, level, next index, base.
    stack: Vec<(TableId, u8, u16, u64)>,
    /// The bit that all higher ones of an address equal.
    sign_bit: Option<u32>,
    left: u64,
    ran_out: bool,
}

impl<T: TableSource + ?Sized> Walk<'_, T> {
    fn enter(&mut self, address: u64, level: u8, base: u64) -> bool {
        let table = self.source.table_at(address);
        if let Some(table) = table {
            self.stack.push((table, level, 0, base));
        }
        table.is_some()
    }

    fn see(&mut self, level: u8, base: u64, raw: u64) -> Option<Seen> {
        let layout = self.source.layout();
        // Before anything else is made of the bits.
        if let Some(spte) = MmioSpte::recognise(layout, raw) {
            return Some(Seen::Mmio {
                facts: spte.facts(layout),
                freshness: spte.check(layout, self.now),
            });
        }
        if raw & MMU_PRESENT == 0 {
            return None;
        }
        let (access, accessed, dirty) = permissions(layout.host().format, raw);
        if level > 1
            && let Some(address) = link::target(layout, raw)
        {
            return Some(if self.enter(address, level - 1, base) {
                Seen::Table {
                    address,
                    access,
                    tables: 1,
                    again: false,
                }
            } else {
                Seen::NoTable { address }
            });
        }
        Some(Seen::Page {
            address: GuestPte::new(raw).address().get() >> shift(level) << shift(level),
            access,
            accessed: Share::of(accessed),
            dirty: Share::of(dirty),
            repeated: false,
        })
    }
}

impl<T: TableSource + ?Sized> Iterator for Walk<'_, T> {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        loop {
            let (table, level, next, base) = self.stack.last_mut()?;
            let (table, level, index, base) = (*table, *level, *next, *base);
            if usize::from(index) == ENTRIES {
                self.stack.pop();
                continue;
            }
            if self.left == 0 {
                self.ran_out = true;
                return None;
            }
            self.left -= 1;
            *next += 1;
            let raw = self.source.load(EntryLocation { table, index });
            let mut start = base + (u64::from(index) << shift(level));
            if let Some(bit) = self.sign_bit
                && start >> bit & 1 == 1
            {
                start |= u64::MAX << bit;
            }
            let Some(seen) = self.see(level, start, raw) else {
                continue;
            };
            let shift = shift(level);
            return Some(Row {
                start,
                level,
                shift,
                index,
                count: 1,
                raw,
                seen,
            });
        }
    }
}

/// log2 of what an entry of `level` covers.
#[expect(clippy::cast_possible_truncation, reason = "nine")]
const fn shift(level: u8) -> u8 {
    12 + INDEX_BITS as u8 * (level - 1)
}

/// What an entry allows, and its flags.
fn permissions(format: EntryFormat, raw: u64) -> (AccessMask, bool, bool) {
    match format {
        EntryFormat::X86 => {
            let pte = GuestPte::new(raw);
            (pte.permits(), pte.has(GuestPte::ACCESSED), pte.has(GuestPte::DIRTY))
        }
        // SDM vol. 3C, 29.3.2: W, X, and A and D in bits 8 and 9.
        EntryFormat::Ept { .. } => {
            let right = |bit: u64, right| if raw & bit != 0 { right } else { AccessMask::NONE };
            let access = right(0b010, AccessMask::WRITE) | right(0b100, AccessMask::EXEC) | AccessMask::USER;
            (access, raw & 1 << 8 != 0, raw & 1 << 9 != 0)
        }
    }
}
