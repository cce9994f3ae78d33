//! RAM in direct tables: mapping, splitting, and the logging of writes. KVM's `kvm_tdp_mmu_map` and what
//! `kvm_mmu_slot_remove_write_access` and `kvm_tdp_mmu_clear_dirty_slot` do.
//!
//! A CPU may be walking the tables, and sets flags in them: entries that hold flags are only ever exchanged. Whatever says
//! that it took rights away wants the walkers' TLBs flushed before anybody relies on it.

use super::leaf::{LeafBits, RamLeaf, is_leaf};
use super::table::{OutOfTables, TableWriter, Zapped};
use crate::shadow::{DirtyLog, link};
use crate::tables::{ENTRIES, EntryLocation, TableId, TableSpace};
use umbra_memslots::{AddressSpaceId, Gfn, GfnRange};

/// The highest level of a leaf: 1 GiB.
const MAX_LEVEL: u8 = 3;

/// What mapping did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// Where the leaf is.
    pub at: EntryLocation,
    /// Its level, which may be less than was asked for.
    pub level: u8,
    /// The entry.
    pub entry: u64,
    /// Nothing had to be changed: the fault was a leftover (`RET_PF_SPURIOUS`).
    pub spurious: bool,
    /// A mapping was replaced, so that TLBs must be flushed.
    pub flush: bool,
}

impl<S: TableSpace> TableWriter<'_, S> {
    /// Maps the memory of which `gfn` is a part: all that a leaf of the wanted level holds. Large leaves that are in the way
    /// of a smaller one are split, smaller ones that are in the way of a large one go.
    ///
    /// The tree must hold the gfn ([`Levels::holds`](super::Levels::holds)); for another, nothing is mapped, and the level
    /// reported is 0.
    ///
    /// # Errors
    /// [`OutOfTables`]; everything that was mapped still is.
    pub fn map(&mut self, address_space: AddressSpaceId, gfn: Gfn, leaf: RamLeaf) -> Result<Mapped, OutOfTables> {
        let levels = self.table.levels();
        let wanted = match leaf.log {
            DirtyLog::Off => leaf.level.clamp(1, MAX_LEVEL),
            _ => 1,
        };
        let bits = LeafBits::of(self.table.layout());
        let entry = bits.encode(leaf, wanted);
        let mut level = levels.get();
        let mut at = EntryLocation {
            table: self.table.root(address_space),
            index: levels.index(gfn, level),
        };
        if !levels.holds(gfn) {
            let spurious = true;
            return Ok(Mapped {
                at,
                level: 0,
                entry: self.load(at),
                spurious,
                flush: false,
            });
        }
        let mut flush = false;
        while level > wanted {
            let found = self.load(at);
            let table = match self.table.next(found) {
                Some(table) => table,
                None => {
                    flush |= self.table.layout().is_mmu_present(found);
                    self.split(at, level)?
                }
            };
            level -= 1;
            at = EntryLocation {
                table,
                index: levels.index(gfn, level),
            };
        }
        // Until the walker sets no flag meanwhile.
        let (old, entry) = loop {
            let old = self.load(at);
            let entry = bits.replacing(entry, old);
            if self.table.space().compare_exchange(at, old, entry).is_ok() {
                break (old, entry);
            }
        };
        if old == entry {
            let spurious = true;
            return Ok(Mapped {
                at,
                level,
                entry,
                spurious,
                flush,
            });
        }
        flush |= self.table.layout().is_mmu_present(old);
        let below = if level > 1 { self.table.next(old) } else { None };
        if let Some(below) = below {
            self.discard(below, level - 1, &mut Zapped::default());
        }
        Ok(Mapped {
            at,
            level,
            entry,
            spurious: false,
            flush,
        })
    }

    /// Makes a table below an entry that has none. What the entry mapped, the table maps.
    pub(super) fn split(&mut self, at: EntryLocation, level: u8) -> Result<TableId, OutOfTables> {
        let child = self.allocate()?;
        let layout = *self.table.layout();
        let link = link::encode(&layout, self.table.space().address(child));
        loop {
            let large = self.load(at);
            if is_leaf(&layout, large, level) {
                for index in (0u16..).take(ENTRIES) {
                    self.store(
                        EntryLocation { table: child, index },
                        LeafBits::part(large, level, index),
                    );
                }
            }
            // A walker may have set a flag in it meanwhile.
            if self.table.space().compare_exchange(at, large, link).is_ok() {
                return Ok(child);
            }
        }
    }

    /// From now on, writes to the range fault (large leaves that reach into it lose the right as a whole). Says whether any
    /// right was taken away.
    pub fn write_protect(&mut self, address_space: AddressSpaceId, range: GfnRange) -> bool {
        let bits = LeafBits::of(self.table.layout());
        let mut changed = false;
        self.for_each_leaf(address_space, range, |writer, at, _, _| {
            changed |= writer.exchange(at, |entry| bits.write_protected(entry)).is_some();
        });
        changed
    }

    /// Calls `dirty` with what was written to in the range since the leaves were made or this was last done, by what the
    /// walker noted in the leaves ([`DirtyLog::DirtyFlags`]); the notes are erased. Large leaves are reported as a whole, as
    /// far as they are in the range. Says whether there were any: then TLBs must be flushed, or later writes go unnoticed.
    pub fn collect_dirty(
        &mut self,
        address_space: AddressSpaceId,
        range: GfnRange,
        mut dirty: impl FnMut(GfnRange),
    ) -> bool {
        let bits = LeafBits::of(self.table.layout());
        let mut any = false;
        self.for_each_leaf(address_space, range, |writer, at, covered, _| {
            if writer.exchange(at, |entry| bits.cleaned(entry)).is_some() {
                any = true;
                dirty(covered);
            }
        });
        any
    }

    /// Calls `f` with each leaf of memory in the range: where it is, which frames of the range it maps, and its level.
    fn for_each_leaf(
        &mut self,
        address_space: AddressSpaceId,
        range: GfnRange,
        mut f: impl FnMut(&mut Self, EntryLocation, GfnRange, u8),
    ) {
        let levels = self.table.levels();
        if let Some(range) = range.intersection(levels.gfns()) {
            self.visit(self.table.root(address_space), levels.get(), range, &mut f);
        }
    }

    /// `range` lies within what `table` covers. At most five deep.
    fn visit(
        &mut self,
        table: TableId,
        level: u8,
        range: GfnRange,
        f: &mut impl FnMut(&mut Self, EntryLocation, GfnRange, u8),
    ) {
        let levels = self.table.levels();
        for index in levels.index(range.start(), level)..=levels.index(range.last(), level) {
            let at = EntryLocation { table, index };
            let entry = self.load(at);
            let Some(part) = levels.covered(range.start(), level, index).intersection(range) else {
                continue;
            };
            if is_leaf(self.table.layout(), entry, level) {
                f(self, at, part, level);
            } else if level > 1
                && let Some(child) = self.table.next(entry)
            {
                self.visit(child, level - 1, part, f);
            }
        }
    }

    /// Exchanges an entry against a walker that sets flags in it; gives what it was, if it was to be changed.
    fn exchange(&self, at: EntryLocation, change: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let mut found = self.load(at);
        loop {
            match self.table.space().compare_exchange(at, found, change(found)?) {
                Ok(()) => return Some(found),
                Err(now) => found = now,
            }
        }
    }

    fn load(&self, at: EntryLocation) -> u64 {
        self.table.space().load(at)
    }

    fn store(&self, at: EntryLocation, entry: u64) {
        self.table.space().store(at, entry);
    }
}
