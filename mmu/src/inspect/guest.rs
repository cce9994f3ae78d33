//! Listing a guest's page tables.

use super::listing::{Limits, Listing};
use super::row::{Row, Seen, Share};
use crate::x86::{GuestPte, PagingMode, PagingState};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use umbra_memslots::{EntrySize, Gpa, GuestMemory};

/// Lists the present entries of the tables that `state` is in force with. Reads, and sets no flags.
///
/// A table that is reached a second time at the same level is named and not listed again. Without paging there is
/// nothing to list.
#[must_use]
pub fn guest_tables(state: &PagingState, memory: &impl GuestMemory, limits: Limits) -> Listing {
    let mut walk = Walk {
        state,
        memory,
        stack: Vec::new(),
        listed: BTreeSet::new(),
        left: limits.entries,
        ran_out: false,
    };
    match state.mode {
        PagingMode::None => {}
        // The root's entries are registers.
        PagingMode::Pae => walk.stack.push(Table {
            at: None,
            level: 3,
            next: 0,
            base: 0,
        }),
        mode => walk.enter(state.root, mode.levels(), 0),
    }
    let mut listing = Listing::collect(&mut walk, limits);
    listing.cut_short |= walk.ran_out;
    listing
}

/// A table that is being listed.
struct Table {
    /// Where it is; `None` for the PDPTE registers.
    at: Option<Gpa>,
    level: u8,
    next: u16,
    /// The first address that it translates.
    base: u64,
}

struct Walk<'a, M> {
    state: &'a PagingState,
    memory: &'a M,
    stack: Vec<Table>,
    listed: BTreeSet<(Gpa, u8)>,
    left: u64,
    ran_out: bool,
}

impl<M: GuestMemory> Walk<'_, M> {
    fn enter(&mut self, at: Gpa, level: u8, base: u64) {
        self.listed.insert((at, level));
        self.stack.push(Table {
            at: Some(at),
            level,
            next: 0,
            base,
        });
    }

    fn size(&self) -> EntrySize {
        match self.state.mode {
            PagingMode::Bits32 => EntrySize::B4,
            _ => EntrySize::B8,
        }
    }

    /// log2 of what an entry of `level` covers.
    fn shift(&self, level: u8) -> u8 {
        let index_bits = match self.state.mode {
            PagingMode::Bits32 => 10,
            _ => 9,
        };
        12 + index_bits * (level - 1)
    }

    fn entries(&self, table: &Table) -> u16 {
        match (self.state.mode, table.at) {
            (_, None) => 4,
            (PagingMode::Bits32, _) => 1024,
            _ => 512,
        }
    }

    /// The address as the CPU wants it: sign-extended in long mode.
    fn canonical(&self, address: u64) -> u64 {
        let unused = match self.state.mode {
            PagingMode::Level4 => 16,
            PagingMode::Level5 => 7,
            _ => return address,
        };
        #[expect(clippy::cast_possible_wrap, clippy::cast_sign_loss, reason = "sign extension")]
        let extended = ((address << unused) as i64 >> unused) as u64;
        extended
    }

    fn maps_page(&self, level: u8, pte: GuestPte) -> bool {
        let large = match self.state.mode {
            PagingMode::Bits32 => level == 2 && self.state.pse,
            PagingMode::Pae => level == 2,
            _ => level == 2 || level == 3,
        };
        level == 1 || (large && pte.has(GuestPte::SIZE))
    }

    fn see(&mut self, level: u8, base: u64, pte: GuestPte) -> Seen {
        let maps_page = self.maps_page(level, pte);
        // PDPTE registers were checked when they were loaded.
        let is_register = self.state.mode == PagingMode::Pae && level == 3;
        if !is_register && self.state.reserved.violated_by(level, maps_page, pte) {
            let bits = pte.raw() & self.state.reserved.mask(level, maps_page);
            return Seen::Reserved { bits };
        }
        let access = if is_register {
            crate::AccessMask::ALL
        } else {
            pte.permits()
        };
        let is_4_bytes = self.size() == EntrySize::B4;
        if maps_page {
            let address = match (is_4_bytes, level) {
                (true, 2) => pte.address_4m().get(),
                (true, _) => pte.address32().get(),
                (false, _) => pte.address().get() >> self.shift(level) << self.shift(level),
            };
            let (accessed, dirty) = (pte.has(GuestPte::ACCESSED), pte.has(GuestPte::DIRTY));
            return Seen::Page {
                address,
                access,
                accessed: Share::of(accessed),
                dirty: Share::of(dirty),
                repeated: false,
            };
        }
        let table = if is_4_bytes { pte.address32() } else { pte.address() };
        let address = table.get();
        if self.memory.read_entry(table, self.size()).is_err() {
            return Seen::NoTable { address };
        }
        let again = self.listed.contains(&(table, level - 1));
        if !again {
            self.enter(table, level - 1, base);
        }
        Seen::Table {
            address,
            access,
            tables: 1,
            again,
        }
    }
}

impl<M: GuestMemory> Iterator for Walk<'_, M> {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        loop {
            let table = self.stack.last()?;
            let (at, level, index, base) = (table.at, table.level, table.next, table.base);
            if index == self.entries(table) {
                self.stack.pop();
                continue;
            }
            if self.left == 0 {
                self.ran_out = true;
                return None;
            }
            self.left -= 1;
            if let Some(table) = self.stack.last_mut() {
                table.next += 1;
            }
            let raw = match at {
                None => self.state.pdptes.get(usize::from(index)).copied().unwrap_or(0),
                Some(at) => {
                    let entry = at.wrapping_add(u64::from(index) * self.size().bytes());
                    self.memory.read_entry(entry, self.size()).unwrap_or(0)
                }
            };
            let pte = GuestPte::new(raw);
            if !pte.has(GuestPte::PRESENT) {
                continue;
            }
            let shift = self.shift(level);
            let start = self.canonical(base + (u64::from(index) << shift));
            let seen = self.see(level, start, pte);
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
