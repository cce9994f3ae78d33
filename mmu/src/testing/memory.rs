//! [`WalkMemory`]: a few pages of entries.

use crate::hw_model::HwMemory;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use umbra_memslots::{EntrySize, Exchange, Gpa, GuestMemory, MemoryFault};

/// A few pages from address 0 on. Outside, the guest walker finds no slot and the hardware reads zeros (which is how KVM
/// makes a missing table look).
pub struct WalkMemory {
    words: Vec<AtomicU64>,
}

impl WalkMemory {
    /// That many pages of zeros.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        Self {
            words: (0..pages * 512).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Sets the eight bytes around `address`.
    ///
    /// # Panics
    /// Outside the memory; as all methods by address.
    pub fn set(&self, address: u64, value: u64) {
        self.words[index(address)].store(value, Ordering::SeqCst);
    }

    /// Sets four bytes.
    pub fn set32(&self, address: u64, value: u32) {
        let (shift, word) = (address % 8 * 8, self.get(address & !7));
        self.set(address & !7, word & !(0xffff_ffff << shift) | u64::from(value) << shift);
    }

    /// The eight bytes around `address`.
    #[must_use]
    pub fn get(&self, address: u64) -> u64 {
        self.words[index(address)].load(Ordering::SeqCst)
    }

    /// The first eight words of each quarter of each page: all that small indices lead to, in 32-bit tables, too.
    #[must_use]
    pub fn contents(&self) -> Vec<u64> {
        self.used().map(|word| word.load(Ordering::SeqCst)).collect()
    }

    /// Puts back what [`WalkMemory::contents`] gave.
    pub fn restore(&self, contents: &[u64]) {
        for (word, value) in self.used().zip(contents) {
            word.store(*value, Ordering::SeqCst);
        }
    }

    fn used(&self) -> impl Iterator<Item = &AtomicU64> {
        self.words.chunks(128).flat_map(|quarter| &quarter[..8])
    }

    fn word(&self, address: u64) -> Option<&AtomicU64> {
        self.words.get(index(address))
    }

    fn exchange(&self, address: u64, bytes: u64, current: u64, new: u64) -> Option<Exchange> {
        let word = self.word(address)?;
        let shift = address % 8 * 8;
        let mask = if bytes == 4 { 0xffff_ffff << shift } else { u64::MAX };
        let old = word.load(Ordering::SeqCst);
        if old & mask != current << shift & mask {
            return Some(Exchange::Differs((old & mask) >> shift));
        }
        word.store(old & !mask | (new << shift & mask), Ordering::SeqCst);
        Some(Exchange::Done)
    }

    fn entry(&self, address: u64, bytes: u64) -> Option<u64> {
        let word = self.word(address)?.load(Ordering::SeqCst);
        Some(if bytes == 4 {
            word >> (address % 8 * 8) & 0xffff_ffff
        } else {
            word
        })
    }
}

impl GuestMemory for WalkMemory {
    fn read(&self, gpa: Gpa, _buffer: &mut [u8]) -> Result<(), MemoryFault> {
        panic!("a walker reads entries, not bytes ({gpa})")
    }

    fn write(&self, gpa: Gpa, _data: &[u8]) -> Result<(), MemoryFault> {
        panic!("a walker writes entries, not bytes ({gpa})")
    }

    fn read_entry(&self, gpa: Gpa, size: EntrySize) -> Result<u64, MemoryFault> {
        self.entry(gpa.get(), size.bytes()).ok_or(MemoryFault::NoSlot { gpa })
    }

    fn compare_exchange_entry(&self, gpa: Gpa, size: EntrySize, old: u64, new: u64) -> Result<Exchange, MemoryFault> {
        self.exchange(gpa.get(), size.bytes(), old, new)
            .ok_or(MemoryFault::NoSlot { gpa })
    }
}

impl HwMemory for WalkMemory {
    fn load(&self, address: u64, bytes: u64) -> u64 {
        self.entry(address, bytes).unwrap_or(0)
    }

    fn set_bits(&self, address: u64, bytes: u64, expected: u64, bits: u64) -> bool {
        self.exchange(address, bytes, expected, expected | bits) != Some(Exchange::Differs(expected))
            && self.entry(address, bytes).is_none_or(|now| now & bits == bits)
    }
}

fn index(address: u64) -> usize {
    usize::try_from(address / 8).unwrap_or(usize::MAX)
}
