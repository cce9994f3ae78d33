//! A table space as the memory that the hardware reaches.

use super::cpu::HwMemory;
use crate::tables::{EntryLocation, TableSpace};

/// The tables of a space at the addresses by which a walker knows them. Nothing else answers: it reads as all ones, and
/// what is set there is lost.
#[derive(Clone, Copy, Debug)]
pub struct Wired<'a, S>(pub &'a S);

impl<S: TableSpace> Wired<'_, S> {
    fn entry(&self, address: u64) -> Option<EntryLocation> {
        let table = self.0.table_at(address)?;
        let index = u16::try_from(address % 4096 / 8).ok()?;
        Some(EntryLocation { table, index })
    }
}

impl<S: TableSpace> HwMemory for Wired<'_, S> {
    fn load(&self, address: u64, _bytes: u64) -> u64 {
        self.entry(address).map_or(u64::MAX, |at| self.0.load(at))
    }

    fn set_bits(&self, address: u64, _bytes: u64, expected: u64, bits: u64) -> bool {
        self.entry(address)
            .is_none_or(|at| self.0.compare_exchange(at, expected, expected | bits).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{HeapTables, TableId};

    #[test]
    fn tables_answer_at_their_addresses_and_nothing_else_does() {
        let space = HeapTables::new(0x10_0000, 2).unwrap();
        let (at, address) = (
            EntryLocation {
                table: TableId::new(1),
                index: 5,
            },
            0x10_1028,
        );
        space.store(at, 0x7);
        let memory = Wired(&space);
        assert_eq!(memory.load(address, 8), 0x7);
        assert!(!memory.set_bits(address, 8, 0x3, 0x20), "the entry is another");
        assert!(memory.set_bits(address, 8, 0x7, 0x20));
        assert_eq!(space.load(at), 0x27);
        assert_eq!(memory.load(0x10_2000, 8), u64::MAX);
        assert!(memory.set_bits(0x10_2000, 8, 0, 0x20));
    }
}
