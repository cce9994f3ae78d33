//! [`VecMemory`]: guest memory without slots or mappings.

use crate::addr::{Gpa, PAGE_SIZE};
use crate::guest_memory::{EntrySize, Exchange, GuestMemory, MemoryFault};
use crate::sync::Lock;
use alloc::vec;
use alloc::vec::Vec;

/// Guest memory in vectors: regions of bytes at guest-physical addresses, behind a lock.
///
/// Follows the contract of [`GuestMemory`] as [`crate::Memslots`] does, but with no slots, mappings or dirty logs.
pub struct VecMemory {
    regions: Lock<Vec<Region>>,
}

struct Region {
    start: Gpa,
    bytes: Vec<u8>,
    read_only: bool,
}

impl Region {
    fn end(&self) -> Gpa {
        self.start.wrapping_add(self.bytes.len() as u64)
    }

    fn offset_of(&self, gpa: Gpa) -> Option<usize> {
        let offset = usize::try_from(gpa.checked_offset_from(self.start)?).ok()?;
        (offset < self.bytes.len()).then_some(offset)
    }
}

impl VecMemory {
    /// Zeroed writable memory at address 0, rounded up to whole pages.
    pub fn new(bytes: usize) -> Self {
        Self {
            regions: Lock::new(Vec::new()),
        }
        .with_region(Gpa::new(0), bytes, false)
    }

    /// Adds zeroed memory at `start` (rounded down to a page; `bytes` rounded up to whole pages).
    ///
    /// # Panics
    /// If it would overlap a region that is there, or wrap.
    #[must_use]
    pub fn with_region(self, start: Gpa, bytes: usize, read_only: bool) -> Self {
        let page = usize::try_from(PAGE_SIZE).unwrap_or(4096);
        let region = Region {
            start: start.page_base(),
            bytes: vec![0; bytes.next_multiple_of(page)],
            read_only,
        };
        assert!(
            region.start.checked_add(region.bytes.len() as u64).is_some(),
            "the region wraps"
        );
        self.regions.with(|regions| {
            let free = regions
                .iter()
                .all(|other| region.end() <= other.start || other.end() <= region.start);
            assert!(free, "the region overlaps another");
            regions.push(region);
        });
        self
    }

    /// Writes a little-endian 64-bit value, even to read-only memory: for setting a test up.
    ///
    /// # Panics
    /// If there is no memory.
    pub fn poke_u64(&self, gpa: Gpa, value: u64) {
        self.poke(gpa, &value.to_le_bytes());
    }

    /// Writes bytes, even to read-only memory: for setting a test up.
    ///
    /// # Panics
    /// If there is no memory.
    pub fn poke(&self, gpa: Gpa, data: &[u8]) {
        let done = self.regions.with(|regions| {
            check(regions, gpa, data.len(), false)?;
            copy(regions, gpa, data.len(), |place, at| *place = data[at]);
            Ok::<(), MemoryFault>(())
        });
        assert_eq!(done, Ok(()), "poke");
    }

    /// Reads a little-endian 64-bit value.
    ///
    /// # Panics
    /// If there is no memory.
    pub fn peek_u64(&self, gpa: Gpa) -> u64 {
        let mut bytes = [0; 8];
        assert_eq!(self.read(gpa, &mut bytes), Ok(()), "peek");
        u64::from_le_bytes(bytes)
    }
}

/// Whether all of an access can happen.
fn check(regions: &[Region], gpa: Gpa, bytes: usize, write: bool) -> Result<(), MemoryFault> {
    let mut done = 0;
    while done < bytes {
        let here = gpa.wrapping_add(done as u64);
        let region = regions.iter().find(|region| region.offset_of(here).is_some());
        let region = region.ok_or(match done {
            0 => MemoryFault::NoSlot { gpa },
            _ => MemoryFault::CrossesSlotEnd {
                gpa,
                bytes: bytes as u64,
                end: here,
            },
        })?;
        if write && region.read_only {
            return Err(MemoryFault::ReadOnly { gpa: here });
        }
        done += region.bytes.len() - region.offset_of(here).unwrap_or(0);
    }
    Ok(())
}

/// Visits each byte of an access that [`check`] found possible.
fn copy(regions: &mut [Region], gpa: Gpa, bytes: usize, mut visit: impl FnMut(&mut u8, usize)) {
    for at in 0..bytes {
        let here = gpa.wrapping_add(at as u64);
        if let Some((region, offset)) = regions
            .iter_mut()
            .find_map(|r| r.offset_of(here).map(|offset| (r, offset)))
        {
            visit(&mut region.bytes[offset], at);
        }
    }
}

fn aligned(gpa: Gpa, size: EntrySize) -> Result<usize, MemoryFault> {
    if gpa.get().is_multiple_of(size.bytes()) {
        Ok(if size == EntrySize::B4 { 4 } else { 8 })
    } else {
        Err(MemoryFault::Unaligned { gpa, size })
    }
}

impl GuestMemory for VecMemory {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), MemoryFault> {
        self.regions.with(|regions| {
            check(regions, gpa, buffer.len(), false)?;
            copy(regions, gpa, buffer.len(), |place, at| buffer[at] = *place);
            Ok(())
        })
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryFault> {
        self.regions.with(|regions| {
            check(regions, gpa, data.len(), true)?;
            copy(regions, gpa, data.len(), |place, at| *place = data[at]);
            Ok(())
        })
    }

    fn read_entry(&self, gpa: Gpa, size: EntrySize) -> Result<u64, MemoryFault> {
        let length = aligned(gpa, size)?;
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes[..length])?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn compare_exchange_entry(
        &self,
        gpa: Gpa,
        size: EntrySize,
        current: u64,
        new: u64,
    ) -> Result<Exchange, MemoryFault> {
        let length = aligned(gpa, size)?;
        self.regions.with(|regions| {
            check(regions, gpa, length, true)?;
            let mut found = [0; 8];
            copy(regions, gpa, length, |place, at| found[at] = *place);
            if found[..length] != current.to_le_bytes()[..length] {
                return Ok(Exchange::Differs(u64::from_le_bytes(found)));
            }
            let new = new.to_le_bytes();
            copy(regions, gpa, length, |place, at| *place = new[at]);
            Ok(Exchange::Done)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_over_adjacent_regions_works_and_past_the_end_does_nothing() {
        let memory = VecMemory::new(0x1000).with_region(Gpa::new(0x1000), 0x1000, false);
        assert_eq!(memory.write(Gpa::new(0xffe), &[1, 2, 3, 4]), Ok(()));
        let end = Gpa::new(0x2000);
        assert_eq!(
            memory.write(Gpa::new(0x1ffe), &[9; 4]),
            Err(MemoryFault::CrossesSlotEnd {
                gpa: Gpa::new(0x1ffe),
                bytes: 4,
                end
            })
        );
        assert_eq!(memory.peek_u64(Gpa::new(0x1ff8)), 0);
        assert_eq!(memory.peek_u64(Gpa::new(0xff8)), 0x0201 << 48);
    }

    #[test]
    fn exchange_compares_only_the_entry_size() {
        let memory = VecMemory::new(0x1000);
        memory.poke_u64(Gpa::new(0), 0x1111_1111_2222_2222);
        let exchange = |current, new| memory.compare_exchange_entry(Gpa::new(0), EntrySize::B4, current, new);
        assert_eq!(exchange(0xdead_0000_2222_2222, 3), Ok(Exchange::Done));
        assert_eq!(exchange(0x2222_2222, 4), Ok(Exchange::Differs(3)));
        assert_eq!(memory.peek_u64(Gpa::new(0)), 0x1111_1111_0000_0003);
    }

    #[test]
    fn read_only_region_can_be_read_and_poked_but_not_written() {
        let memory = VecMemory::new(0).with_region(Gpa::new(0x5000), 0x1000, true);
        memory.poke_u64(Gpa::new(0x5008), 7);
        assert_eq!(memory.read_entry(Gpa::new(0x5008), EntrySize::B8), Ok(7));
        let gpa = Gpa::new(0x5000);
        assert_eq!(memory.write(gpa, &[1]), Err(MemoryFault::ReadOnly { gpa }));
        assert_eq!(
            memory.read_entry(Gpa::new(4), EntrySize::B8),
            Err(MemoryFault::Unaligned {
                gpa: Gpa::new(4),
                size: EntrySize::B8
            })
        );
    }
}
