//! [`Place`]: a compare-and-exchange of an operand that is smaller than the words in which the host can make one.

use umbra_memslots::{EntrySize, Exchange, Gpa, GuestMemory, MemoryFault, Memslots};

/// The aligned word in which an operand of 1 to 8 bytes lies.
pub(super) struct Place {
    word: Gpa,
    size: EntrySize,
    /// Bits below the operand.
    shift: u32,
    mask: u64,
}

impl Place {
    /// Of so many bytes at `gpa`; `None` if they lie in no such word.
    pub fn of(gpa: Gpa, length: usize) -> Option<Self> {
        let fits = |bytes: u64| gpa.get() % bytes + length as u64 <= bytes;
        let size = if fits(4) {
            EntrySize::B4
        } else if fits(8) {
            EntrySize::B8
        } else {
            return None;
        };
        let offset = gpa.get() % size.bytes();
        Some(Self {
            word: Gpa::new(gpa.get() - offset),
            size,
            shift: 8 * offset as u32,
            mask: u64::MAX >> (64 - 8 * length) << (8 * offset),
        })
    }

    /// Puts `new` there if `old` is there, in one piece. Says whether it was.
    ///
    /// # Errors
    /// It isn't memory that may be written.
    pub fn exchange(&self, slots: &Memslots, old: &[u8], new: &[u8]) -> Result<bool, MemoryFault> {
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, byte| (n << 8) | u64::from(*byte));
        let (old, new) = (number(old) << self.shift, number(new) << self.shift);
        let mut word = slots.read_entry(self.word, self.size)?;
        // Neighbours in the word may change at the same time; only the operand itself decides.
        loop {
            if word & self.mask != old {
                return Ok(false);
            }
            match slots.compare_exchange_entry(self.word, self.size, word, word & !self.mask | new)? {
                Exchange::Done => return Ok(true),
                Exchange::Differs(other) => word = other,
            }
        }
    }
}
