//! The built-in guest's world: where everything is, how much it does, and what its answers must be. The guest's machine
//! code is made from these numbers and the vmm checks its answers against them.

use umbra_memslots::{Gpa, PAGE_SIZE};

/// Guest RAM in bytes: the program, its tables and the sieve.
pub const MEMORY: u64 = 4 << 20;

/// Where the program is loaded: a multiboot1 image, header first.
pub const LOAD: u32 = 0x10_0000;
/// Where it is entered: 32-bit protected mode, flat segments, paging off.
pub const ENTRY: u32 = LOAD + 32;
/// Where its 64-bit part begins.
pub const LONG_MODE: u32 = LOAD + 0x400;
/// Its stack grows down from here.
pub const STACK_TOP: u32 = 0x1f_0000;
/// Where it builds its page tables: one PML4, one PDPT and four page directories, in this order.
pub const TABLES: u32 = 0x20_0000;
/// Number of page-table pages.
pub const TABLE_PAGES: u32 = 6;
/// Where it leaves its answers, see [`Answers`].
pub const ANSWERS: u32 = 0x1f_8000;
/// The task state of its user mode.
pub const TASK: u32 = 0x1f_9000;
/// The sieve: one byte for each odd number below [`SIEVE_LIMIT`].
pub const SIEVE: u32 = 0x30_0000;

/// Primes below this are counted.
pub const SIEVE_LIMIT: u32 = 50_000;
/// Accesses in the first round, all to one page: half writes, half reads.
pub const SAME_PAGE_ACCESSES: u32 = 16_384;
/// Accesses in the second round, each to another page than the one before.
pub const PAGES_IN_TURN_ACCESSES: u32 = 8_192;
/// How often RAM comes and goes where the MMIO page was.
pub const SLOT_ROUNDS: u32 = 16;

/// The test device's pages, above everything that RAM or the platform uses.
pub const SCRATCH: Gpa = Gpa::new(0xd000_0000);
/// Number of its pages.
pub const SCRATCH_PAGES: u32 = 4;
/// The device that puts RAM under a page and removes it.
pub const SLOT_CONTROL: Gpa = Gpa::new(0xd010_0000);
/// The page on which RAM comes and goes: the test device's first.
pub const CONTESTED: Gpa = SCRATCH;

/// Port of the serial console.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Port of the debug-exit device.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;
/// What the guest writes to debug-exit when everything was as it should be; other values count what was not.
pub const ALL_WELL: u32 = 0;

/// What the guest found out. It stores these as consecutive little-endian 64-bit words at [`ANSWERS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answers {
    /// How many primes there are below [`SIEVE_LIMIT`].
    pub primes: u64,
    /// Their sum.
    pub sum: u64,
    /// Reads of the test device that did not give what was written.
    pub wrong_reads: u64,
    /// Rounds in which the contested page was RAM, then MMIO again with the device's old value.
    pub slot_rounds: u64,
}

impl Answers {
    /// Bytes they take in guest memory.
    pub const BYTES: usize = 32;

    /// What the guest must find, worked out by trial division: another way than the guest's.
    pub fn expected() -> Self {
        let is_prime = |n: u32| (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
        let (primes, sum) = (2..SIEVE_LIMIT)
            .filter(|&n| is_prime(n))
            .fold((0, 0), |(count, sum), n| (count + 1, sum + u64::from(n)));
        Self {
            primes,
            sum,
            wrong_reads: 0,
            slot_rounds: u64::from(SLOT_ROUNDS),
        }
    }

    /// Reads them from the bytes at [`ANSWERS`].
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let mut words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or_default();
        Self {
            primes: next(),
            sum: next(),
            wrong_reads: next(),
            slot_rounds: next(),
        }
    }
}

const _: () = {
    assert!(MEMORY <= 0x8000_0000 && SIEVE as u64 + SIEVE_LIMIT as u64 / 2 <= MEMORY);
    assert!(STACK_TOP <= ANSWERS && ANSWERS as usize + Answers::BYTES <= TASK as usize);
    assert!(TASK + 0x1000 <= TABLES);
    assert!(TABLES as u64 + TABLE_PAGES as u64 * PAGE_SIZE <= SIEVE as u64);
    assert!(SAME_PAGE_ACCESSES.is_multiple_of(2) && PAGES_IN_TURN_ACCESSES.is_multiple_of(SCRATCH_PAGES));
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_answers_are_the_known_ones() {
        let expected = Answers::expected();
        assert_eq!((expected.primes, expected.sum), (5133, 121_013_308));
    }

    #[test]
    fn answers_are_read_in_order() {
        let mut bytes = [0; Answers::BYTES];
        for (word, value) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(1u64..) {
            *word = value.to_le_bytes();
        }
        let answers = Answers::from_bytes(bytes);
        assert_eq!(
            answers,
            Answers {
                primes: 1,
                sum: 2,
                wrong_reads: 3,
                slot_rounds: 4
            }
        );
    }
}
