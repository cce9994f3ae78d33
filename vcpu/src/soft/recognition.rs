//! How the software CPU found out that accesses are MMIO, and what that took.
//!
//! An access to a device is a fault of the walker of the shadow tables, which the shadow MMU recognises by the vCPU's MMIO
//! cache, by an MMIO SPTE, or by walking the guest's tables and searching the memory slots. An instruction that waits for a
//! device is begun anew when the answer is there; that is not another access, so the page is remembered meanwhile.

use crate::emulate::Access;
use serde::Serialize;
use std::time::{Duration, Instant};
use umbra_memslots::{Gpa, Gva};
use umbra_mmu::direct::MmioSource;

/// Nanoseconds that recognising MMIO took, by how; 0 unless time was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct RecognitionTimes {
    /// By the vCPU's cache.
    pub cache_ns: u64,
    /// By an MMIO SPTE.
    pub spte_ns: u64,
    /// By walk and search.
    pub search_ns: u64,
}

impl RecognitionTimes {
    /// Adds another vCPU's.
    pub fn add(&mut self, other: &Self) {
        self.cache_ns += other.cache_ns;
        self.spte_ns += other.spte_ns;
        self.search_ns += other.search_ns;
    }

    fn of(&mut self, source: MmioSource) -> &mut u64 {
        match source {
            MmioSource::Cache => &mut self.cache_ns,
            MmioSource::Spte => &mut self.spte_ns,
            MmioSource::Search => &mut self.search_ns,
        }
    }
}

/// What a vCPU remembers about its accesses to devices.
#[derive(Default)]
pub(super) struct Recognition {
    /// The last access to a device: page, kind, where it went.
    last: Option<(Gva, Access, Gpa)>,
    /// It was recognised as MMIO, and is no write to read-only memory.
    pub is_mmio: bool,
    /// Recognised by search.
    pub searches: u64,
    pub times: RecognitionTimes,
    clock: Option<Clock>,
}

/// A clock that knows what it costs to be read.
struct Clock {
    cost: Duration,
}

impl Clock {
    fn new() -> Self {
        const TRIALS: usize = 1000;
        let trial = |_| Instant::now().elapsed();
        Self {
            cost: (0..TRIALS).map(trial).min().unwrap_or_default(),
        }
    }
}

impl Recognition {
    /// Takes time from now on: two readings of the clock for each fault.
    pub fn take_time(&mut self) {
        self.clock = Some(Clock::new());
    }

    /// A fault is about to be handled.
    pub fn begin(&self) -> Option<Instant> {
        self.clock.as_ref().map(|_| Instant::now())
    }

    /// It was MMIO.
    pub fn recognised(&mut self, source: MmioSource, began: Option<Instant>) {
        self.is_mmio = true;
        self.searches += u64::from(source == MmioSource::Search);
        if let (Some(began), Some(clock)) = (began, &self.clock) {
            let took = began.elapsed().saturating_sub(clock.cost);
            *self.times.of(source) += u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        }
    }

    /// The access to `at` goes to a device.
    pub fn note(&mut self, at: Gva, access: Access, gpa: Gpa) {
        self.last = Some((at.page_base(), access, gpa.gfn().base()));
    }

    /// Addresses may be translated otherwise from now on.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// Where the same access went that is made again now; the answer that is known for it came from `answered`.
    pub fn again(&self, at: Gva, access: Access, answered: Gpa) -> Option<Gpa> {
        let (page, known, gpa) = self.last?;
        let same = page == at.page_base() && known == access && gpa == answered.gfn().base();
        same.then(|| gpa.wrapping_add(at.page_offset()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::AccessKind;

    const READ: Access = Access {
        kind: AccessKind::Read,
        user: false,
        implicit: false,
        alignment_flag: false,
    };

    #[test]
    fn access_made_again_is_known_by_page_and_kind() {
        let mut seen = Recognition::default();
        let device = Gpa::new(0xfee0_0010);
        seen.note(Gva::new(0xffff_8010), READ, device);
        let again = |seen: &Recognition, at, access, answered| seen.again(Gva::new(at), access, Gpa::new(answered));
        assert_eq!(
            again(&seen, 0xffff_8020, READ, 0xfee0_0020),
            Some(Gpa::new(0xfee0_0020))
        );
        assert_eq!(again(&seen, 0xffff_9020, READ, 0xfee0_0020), None);
        assert_eq!(again(&seen, 0xffff_8020, READ, 0xfec0_0020), None, "another's answer");
        let write = Access {
            kind: AccessKind::Write,
            ..READ
        };
        assert_eq!(again(&seen, 0xffff_8020, write, 0xfee0_0020), None);
        seen.forget();
        assert_eq!(again(&seen, 0xffff_8020, READ, 0xfee0_0020), None);
    }

    #[test]
    fn time_is_taken_only_if_wanted_and_by_source() {
        let mut seen = Recognition::default();
        assert!(seen.begin().is_none());
        seen.recognised(MmioSource::Search, None);
        assert_eq!((seen.searches, seen.times), (1, RecognitionTimes::default()));
        seen.take_time();
        let began = seen
            .begin()
            .map(|began| began.checked_sub(Duration::from_millis(1)).unwrap());
        seen.recognised(MmioSource::Spte, began);
        assert!(seen.times.spte_ns > 900_000, "{:?}", seen.times);
        assert_eq!((seen.times.cache_ns, seen.times.search_ns), (0, 0));
    }
}
