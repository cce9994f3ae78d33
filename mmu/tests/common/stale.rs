//! What a TLB may still know: the values that guest entries had since a CPU's last flush, and the walks that come of them.

use crate::machine::{Machine, Seen};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use umbra_mmu::hw_model::{HwMemory, HwOutcome, hw_walk};
use umbra_mmu::testing::{WalkMemory, hw_access, hw_cpu};
use umbra_mmu::x86::{Access, PagingRegs};

/// So many walks are tried; what more could come of entries that changed that often is taken for granted.
const MAX_WALKS: usize = 2000;

/// Words that changed, with the times from which on they had their values.
pub struct History {
    now: u64,
    last: Vec<u64>,
    words: BTreeMap<u64, Vec<(u64, u64)>>,
}

impl History {
    pub fn new(memory: &WalkMemory) -> Self {
        let last = memory.contents();
        let words = last
            .iter()
            .enumerate()
            .map(|(index, &value)| (address_of(index), vec![(0, value)]));
        Self {
            now: 0,
            words: words.collect(),
            last,
        }
    }

    pub fn now(&self) -> u64 {
        self.now
    }

    /// One step was made.
    pub fn tick(&mut self, memory: &WalkMemory) {
        self.now += 1;
        let contents = memory.contents();
        for (index, (&old, &new)) in self.last.iter().zip(&contents).enumerate() {
            if old != new {
                self.words.entry(address_of(index)).or_default().push((self.now, new));
            }
        }
        self.last = contents;
    }

    /// The values of the word since a time, the latest first.
    fn values(&self, address: u64, since: u64) -> Vec<u64> {
        let mut values = Vec::new();
        for &(time, value) in self.words.get(&(address & !7)).into_iter().flatten().rev() {
            values.push(value);
            if time <= since {
                break;
            }
        }
        values
    }
}

/// Where the `index`th word of [`WalkMemory::contents`] is.
fn address_of(index: usize) -> u64 {
    let (quarter, word) = (index / 8, index % 8);
    (quarter * 1024 + word * 8) as u64
}

/// Memory that answers each read with one of the values that it had.
struct Choosing<'a> {
    history: &'a History,
    since: u64,
    choices: &'a RefCell<Vec<(usize, usize)>>,
    reads: Cell<usize>,
    ram: &'a dyn Fn(u64) -> bool,
}

impl HwMemory for Choosing<'_> {
    fn load(&self, address: u64, bytes: u64) -> u64 {
        if !(self.ram)(address) {
            return 0;
        }
        let mut values = self.history.values(address, self.since);
        if bytes == 4 {
            for value in &mut values {
                *value = *value >> (address % 8 * 8) & 0xffff_ffff;
            }
        }
        values.dedup();
        if values.is_empty() {
            // Not a word that addresses lead to: never written.
            return 0;
        }
        let mut choices = self.choices.borrow_mut();
        let read = self.reads.replace(self.reads.get() + 1);
        if read == choices.len() {
            choices.push((0, values.len()));
        }
        values[choices[read].0]
    }

    fn set_bits(&self, _address: u64, _bytes: u64, _expected: u64, _bits: u64) -> bool {
        true
    }
}

/// What may be known of an address.
pub struct Known {
    /// Where accesses may go, besides where a walk of the tables as they are now would lead.
    pub pages: Vec<Seen>,
    /// An entry on the way changed since the flush.
    pub changed: bool,
    /// Not all ways were tried.
    pub incomplete: bool,
}

/// What may be known of `gva` by a CPU that flushed it at `since`.
pub fn known(machine: &Machine, history: &History, since: u64, regs: &PagingRegs, gva: u64, access: Access) -> Known {
    let choices = RefCell::new(Vec::new());
    let has = |address: u64| machine.ram.has(address >> 12);
    let mut known = Known {
        pages: Vec::new(),
        changed: false,
        incomplete: true,
    };
    for _ in 0..MAX_WALKS {
        let memory = Choosing {
            history,
            since,
            choices: &choices,
            reads: Cell::new(0),
            ram: &has,
        };
        if let HwOutcome::Access(page) = hw_walk(&hw_cpu(regs), &memory, gva, hw_access(access)) {
            known.pages.push(machine.behind(page.address, access));
        }
        let mut choices = choices.borrow_mut();
        choices.truncate(memory.reads.get());
        known.changed |= choices.iter().any(|&(_, count)| count > 1);
        // The next combination: the last choice that isn't exhausted moves on, those behind it are made anew.
        while choices.last().is_some_and(|&(chosen, count)| chosen + 1 == count) {
            choices.pop();
        }
        match choices.last_mut() {
            Some((chosen, _)) => *chosen += 1,
            None => {
                known.incomplete = false;
                break;
            }
        }
    }
    known
}
