//! Who lies where in guest memory, and that nobody lies on anybody else.

use super::error::PlaceProblem;
use crate::layout::{BOOT_AREA_START, BootArea, EBDA_START, HIGH_MEMORY_START, MemoryLayout};
use std::fmt;
use umbra_memslots::{Gpa, PAGE_SIZE};

/// Something that was put into guest memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed {
    /// What it is, in words.
    pub what: String,
    /// First address.
    pub start: Gpa,
    /// Size in bytes.
    pub bytes: u64,
}

impl Placed {
    fn end(&self) -> u64 {
        self.start.get() + self.bytes
    }
}

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}..{:#010x} {}", self.start, self.end(), self.what)
    }
}

/// The claims on RAM below 4 GiB, where all that a boot CPU starts with has to lie.
#[derive(Debug)]
pub(super) struct Places<'a> {
    layout: &'a MemoryLayout,
    taken: Vec<Placed>,
}

impl<'a> Places<'a> {
    /// Nothing placed but the loader's own tables and the firmware's reserved area.
    pub fn new(layout: &'a MemoryLayout) -> Self {
        let fixed = |what: &str, start: Gpa, end: Gpa| Placed {
            what: what.to_owned(),
            start,
            bytes: end.get().saturating_sub(start.get()),
        };
        let taken = vec![
            fixed("the boot tables", BOOT_AREA_START, BootArea::END),
            fixed("the firmware area", EBDA_START, HIGH_MEMORY_START),
        ];
        Self { layout, taken }
    }

    /// Claims `bytes` bytes from `start` on. A claim of no bytes is granted and forgotten.
    pub fn claim(&mut self, what: impl Into<String>, start: Gpa, bytes: u64) -> Result<(), PlaceProblem> {
        let what = what.into();
        if bytes == 0 {
            return Ok(());
        }
        let ram_end = self.layout.low_end();
        let end = match start.checked_add(bytes) {
            Some(end) if end <= ram_end => end,
            _ => {
                return Err(PlaceProblem::OutsideRam {
                    what,
                    start,
                    bytes,
                    ram_end,
                });
            }
        };
        if let Some(other) = self
            .taken
            .iter()
            .find(|other| start.get() < other.end() && other.start < end)
        {
            return Err(PlaceProblem::Overlap {
                what,
                start,
                bytes,
                other: other.what.clone(),
                other_start: other.start,
                other_bytes: other.bytes,
            });
        }
        self.taken.push(Placed { what, start, bytes });
        Ok(())
    }

    /// Claims `bytes` bytes (not 0) on page boundaries as high as possible below `limit`; otherwise the size of the
    /// largest range that is free there.
    pub fn claim_highest(&mut self, what: &str, bytes: u64, limit: Gpa) -> Result<Gpa, u64> {
        let mut end = limit.min(self.layout.low_end()).page_base().get();
        let mut largest = 0;
        let mut by_start: Vec<(u64, u64)> = self
            .taken
            .iter()
            .map(|taken| (taken.start.get(), taken.end()))
            .collect();
        by_start.sort_unstable();
        for (taken_start, taken_end) in by_start.into_iter().rev().chain([(0, PAGE_SIZE)]) {
            let floor = taken_end.next_multiple_of(PAGE_SIZE);
            if let Some(free) = end.checked_sub(floor) {
                if free >= bytes {
                    let start = Gpa::new(end - bytes).page_base();
                    self.taken.push(Placed {
                        what: what.to_owned(),
                        start,
                        bytes,
                    });
                    return Ok(start);
                }
                largest = largest.max(free);
            }
            end = end.min(taken_start & !(PAGE_SIZE - 1));
        }
        Err(largest)
    }

    /// Claims `bytes` bytes (not 0) on page boundaries as low as possible at or above `from`; otherwise the size of the
    /// largest range that is free there.
    pub fn claim_lowest(&mut self, what: &str, bytes: u64, from: Gpa) -> Result<Gpa, u64> {
        let end = self.layout.low_end().get();
        let mut start = from.get().next_multiple_of(PAGE_SIZE);
        let mut largest = 0;
        let mut by_start: Vec<(u64, u64)> = self
            .taken
            .iter()
            .map(|taken| (taken.start.get(), taken.end()))
            .collect();
        by_start.sort_unstable();
        for (taken_start, taken_end) in by_start.into_iter().chain([(end, end)]) {
            if let Some(free) = taken_start.checked_sub(start) {
                if free >= bytes {
                    let start = Gpa::new(start);
                    self.taken.push(Placed {
                        what: what.to_owned(),
                        start,
                        bytes,
                    });
                    return Ok(start);
                }
                largest = largest.max(free);
            }
            start = start.max(taken_end.next_multiple_of(PAGE_SIZE));
        }
        Err(largest)
    }

    /// Size of the RAM that can be claimed in bytes.
    pub fn ram_bytes(&self) -> u64 {
        self.layout.low_end().get()
    }

    /// All that was placed, by address.
    pub fn into_placed(self) -> Vec<Placed> {
        let mut placed = self.taken;
        placed.sort_by_key(|placed| placed.start);
        placed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::HOLE_START;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn claim_over_another_is_refused_with_both() {
        let layout = MemoryLayout::plan(16 * MIB, 40).unwrap();
        let mut places = Places::new(&layout);
        places.claim("first", Gpa::new(MIB), 4096).unwrap();
        places.claim("neighbour", Gpa::new(MIB + 4096), 1).unwrap();
        let error = places.claim("second", Gpa::new(MIB + 4095), 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "second at 0x100fff..0x101000 overlaps first at 0x100000..0x101000"
        );
        assert!(matches!(
            places.claim("low", BootArea::GDT, 1).unwrap_err(),
            PlaceProblem::Overlap { other, .. } if other == "the boot tables"
        ));
    }

    #[test]
    fn claim_outside_ram_is_refused() {
        let layout = MemoryLayout::plan(16 * MIB, 40).unwrap();
        let mut places = Places::new(&layout);
        for (start, bytes) in [
            (16 * MIB, 1),
            (16 * MIB - 1, 2),
            (u64::MAX, 1),
            (u64::MAX, u64::MAX),
            (2 * MIB, u64::MAX),
        ] {
            assert!(matches!(
                places.claim("it", Gpa::new(start), bytes),
                Err(PlaceProblem::OutsideRam { .. })
            ));
        }
        places.claim("nothing", Gpa::new(u64::MAX), 0).unwrap();
    }

    #[test]
    fn highest_free_range_is_below_limit_and_above_the_kernel() {
        let layout = MemoryLayout::plan(64 * MIB, 40).unwrap();
        let mut places = Places::new(&layout);
        places.claim("kernel", Gpa::new(16 * MIB), 8 * MIB).unwrap();
        assert_eq!(
            places.claim_highest("initrd", 5000, Gpa::new(u64::MAX)),
            Ok(Gpa::new(64 * MIB - 8192))
        );
        assert_eq!(
            places.claim_highest("low", 4096, Gpa::new(20 * MIB)),
            Ok(Gpa::new(16 * MIB - 4096))
        );
        assert_eq!(
            places.claim_highest("large", 100 * MIB, HOLE_START),
            Err(40 * MIB - 8192)
        );
    }

    proptest! {
        #[test]
        fn claims_never_overlap_and_stay_in_ram(
            wishes in proptest::collection::vec((0u64..40 * MIB, 0u64..8 * MIB, any::<bool>()), 0..24),
        ) {
            let layout = MemoryLayout::plan(32 * MIB, 40).unwrap();
            let mut places = Places::new(&layout);
            for (start, bytes, fixed) in wishes {
                if fixed {
                    let _ = places.claim("fixed", Gpa::new(start), bytes);
                } else if let Ok(at) = places.claim_highest("floating", bytes.max(1), Gpa::new(start)) {
                    prop_assert!(at.is_page_aligned() && at.get() + bytes.max(1) <= start);
                }
            }
            let placed = places.into_placed();
            for pair in placed.windows(2) {
                prop_assert!(pair[0].end() <= pair[1].start.get(), "{} {}", pair[0], pair[1]);
            }
            prop_assert!(placed.iter().all(|placed| placed.end() <= 32 * MIB));
        }
    }
}
