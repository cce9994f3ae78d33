//! Every combination of the bits that matter, counted through as kvm-unit-tests' `access.c` does, against the model of the
//! hardware.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{AC, NXE, PG, PKE, PSE, SMAP, SMEP, WP, regs};
use std::collections::BTreeMap;
use umbra_mmu::hw_model::HwOutcome;
use umbra_mmu::testing::{WalkMemory, walk_both};
use umbra_mmu::x86::{Access, GuestCpu, PagingRegs};

/// Tables at pages 1 (root) to 5, one entry used in each; the address leads through entry 1 of each.
struct Chain {
    memory: WalkMemory,
    levels: u8,
    gva: u64,
}

/// P, A, D: with the flags set, walks leave no trace and combinations can follow each other.
const SETTLED: u64 = 0x61;

impl Chain {
    fn new(levels: u8) -> Self {
        let gva = match levels {
            2 => 1 << 22 | 1 << 12,
            _ => (0..levels).map(|level| 1 << (12 + 9 * level)).sum(),
        };
        Self {
            memory: WalkMemory::new(8),
            levels,
            gva: gva | 0x123,
        }
    }

    fn regs(&self) -> PagingRegs {
        let mut regs = regs(self.levels, 0x1000);
        if self.levels == 3 {
            // The root is a register: the tables are pages 2 and 3.
            regs.pdptes[1] = 0x2001;
        }
        regs
    }

    /// The levels whose entries lie in memory, root first.
    fn in_memory(&self) -> impl DoubleEndedIterator<Item = u8> + use<> {
        (1..=if self.levels == 3 { 2 } else { self.levels }).rev()
    }

    /// The address that an ordinary entry of `level` holds: the next table's, or the page's.
    fn next(&self, level: u8) -> u64 {
        u64::from(self.levels + 2 - level) << 12
    }

    fn put(&self, level: u8, entry: u64) {
        let table = self.next(level + 1);
        if self.levels == 2 {
            self.memory.set32(table + 4, u32::try_from(entry).unwrap());
        } else {
            self.memory.set(table + 8, entry);
        }
    }
}

fn flags(count: u64, bits: &[u64]) -> u64 {
    bits.iter()
        .enumerate()
        .filter(|&(index, _)| count >> index & 1 == 1)
        .map(|(_, bit)| bit)
        .sum()
}

/// Counts outcomes, so that a test knows it has met them all.
#[derive(Default)]
struct Seen(BTreeMap<String, u64>);

impl Seen {
    fn note(&mut self, outcome: HwOutcome) {
        let name = match outcome {
            HwOutcome::Access(page) => format!("{} KiB", page.size >> 10),
            HwOutcome::PageFault { code } => format!("#PF {code:#x}"),
            HwOutcome::GeneralProtection => "#GP".into(),
        };
        *self.0.entry(name).or_default() += 1;
    }

    fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

/// All permissions of two levels (of all levels where `all_levels`), all accesses, all control bits, both rights of a key.
fn check_permissions(levels: u8, all_levels: bool, seen: &mut Seen) {
    let chain = Chain::new(levels);
    let nx = if levels == 2 { 0 } else { 1 << 63 };
    let in_memory: Vec<u8> = chain.in_memory().collect();
    let varied = if all_levels { in_memory.len() } else { 2 };
    // Which levels vary: the lowest ones, so that the page's own entry is among them, or the highest and the lowest.
    for rotate in 0..if all_levels { 1 } else { in_memory.len() - 1 } {
        for permissions in 0..1u64 << (3 * varied) {
            for (index, &level) in in_memory.iter().rev().enumerate() {
                let turn = if index == 0 {
                    Some(0)
                } else {
                    (index > rotate && index - rotate < varied).then(|| index - rotate)
                };
                let bits = turn.map_or(0b011, |turn| permissions >> (3 * turn) & 7);
                let entry = SETTLED | flags(bits, &[2, 4, nx]) | if levels > 3 { 5 << 59 } else { 0 };
                chain.put(level, chain.next(level) | entry);
            }
            for control in 0..if all_levels { 8u64 } else { 32 } {
                let mut regs = chain.regs();
                regs.cr0 |= flags(control, &[WP]);
                regs.cr4 |= flags(control >> 1, &[SMEP, SMAP]);
                // An NX bit that isn't enabled is reserved: another test's subject, but met here as well.
                regs.efer |= if all_levels { NXE } else { flags(control >> 3, &[NXE]) };
                regs.rflags |= if all_levels { 0 } else { flags(control >> 4, &[AC]) };
                for key in 0..if levels > 3 && !all_levels { 5 } else { 1u32 } {
                    if key > 0 {
                        regs.cr4 |= PKE;
                        regs.pkru = (key - 1) << 10 | !(3 << 10);
                    }
                    for access in Access::ALL {
                        seen.note(walk_both(&regs, &chain.memory, chain.gva, access).unwrap());
                    }
                }
            }
        }
    }
}

#[test]
fn permissions_of_32_bit_paging() {
    let mut seen = Seen::default();
    check_permissions(2, false, &mut seen);
    assert!(
        seen.0.contains_key("#PF 0x5") && seen.0.contains_key("#PF 0x15"),
        "{:?}",
        seen.0
    );
}

#[test]
fn permissions_of_pae_paging() {
    let mut seen = Seen::default();
    check_permissions(3, false, &mut seen);
    assert!(
        seen.0.contains_key("#PF 0x15") && seen.0.contains_key("#PF 0x9"),
        "{:?}",
        seen.0
    );
}

#[test]
fn permissions_of_4_level_paging() {
    let mut seen = Seen::default();
    check_permissions(4, false, &mut seen);
    check_permissions(4, true, &mut seen);
    // Reads, writes, fetches; user and supervisor; with and without keys and reserved bits.
    for code in [
        "0x1", "0x3", "0x5", "0x7", "0x9", "0xb", "0xd", "0xf", "0x11", "0x15", "0x21", "0x23", "0x25", "0x27",
    ] {
        assert!(
            seen.0.contains_key(&format!("#PF {code}")),
            "{code} is missing from {:?}",
            seen.0
        );
    }
    assert!(seen.total() > 500_000, "{}", seen.total());
}

#[test]
fn permissions_of_5_level_paging() {
    let mut seen = Seen::default();
    check_permissions(5, false, &mut seen);
    assert!(seen.0.len() > 10);
}

/// Every single bit of an entry of every level, on every width, with every feature that decides about it.
#[test]
fn every_bit_of_every_entry_on_every_width() {
    let mut seen = Seen::default();
    for levels in 2..=5 {
        let chain = Chain::new(levels);
        for level in chain.in_memory() {
            for large in [false, true] {
                for bit in 0..if levels == 2 { 32 } else { 64 } {
                    for other in chain.in_memory() {
                        chain.put(other, chain.next(other) | SETTLED | 0b110);
                    }
                    // A large page may lie at 0 or, so that its address bits are used, at the next table.
                    let entry = if large {
                        SETTLED | 0b110 | 0x80
                    } else {
                        chain.next(level) | SETTLED | 0b110
                    };
                    chain.put(level, entry ^ 1 << bit);
                    for width in 32..=52 {
                        for features in 0..32u64 {
                            let mut regs = chain.regs();
                            regs.cpu = GuestCpu {
                                physical_bits: width,
                                gigabyte_pages: features & 1 != 0,
                                pse36: features & 2 != 0,
                                upper_global_reserved: features & 4 != 0,
                            };
                            regs.cr4 |= flags(features >> 3, &[PSE]);
                            regs.efer |= flags(features >> 4, &[NXE]);
                            let access = Access::ALL[bit % 9];
                            seen.note(walk_both(&regs, &chain.memory, chain.gva, access).unwrap());
                        }
                    }
                }
            }
        }
    }
    for page in ["4 KiB", "2048 KiB", "4096 KiB", "1048576 KiB"] {
        assert!(seen.0.contains_key(page), "{page} is missing from {:?}", seen.0);
    }
    assert!(seen.total() > 1_000_000, "{}", seen.total());
}

/// Without paging everything is allowed, whatever the other registers say.
#[test]
fn without_paging_addresses_are_physical() {
    let memory = WalkMemory::new(1);
    for access in Access::ALL {
        let mut regs = regs(0, 0xdead_b000);
        regs.cr0 = WP & !PG;
        regs.cr4 = SMEP | SMAP | PKE | PSE;
        let outcome = walk_both(&regs, &memory, 0x1234_5678, access).unwrap();
        assert!(matches!(outcome, HwOutcome::Access(page) if page.address == 0x1234_5678));
    }
}
