//! [`ShadowCounts`]: what the shadow MMU did for a vCPU, for whoever reports it.

use crate::soft::RecognitionTimes;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use umbra_mmu::shadow::ShadowStats;

/// A handle on the counts of one vCPU; stays current.
#[derive(Clone, Debug, Default)]
pub struct ShadowCounts(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    run: Mutex<ShadowRun>,
    /// The MMIO exit to come was recognised as such by the shadow tables.
    recognised: AtomicBool,
}

/// The counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShadowRun {
    /// What the MMU counted.
    pub mmu: ShadowStats,
    /// Faults that turned out to be MMIO after a walk of the guest's tables and a search of the memory slots.
    pub searches: u64,
    /// How often user code was entered.
    pub entries: u64,
    /// What recognising MMIO took, if time was taken.
    pub times: RecognitionTimes,
}

impl ShadowCounts {
    /// The counts so far.
    pub fn get(&self) -> ShadowRun {
        *self.lock()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut ShadowRun)) {
        change(&mut self.lock());
    }

    pub(crate) fn set_recognised(&self, recognised: bool) {
        self.0.recognised.store(recognised, Ordering::Relaxed);
    }

    /// Whether the MMIO exit in hand needs no further lookup. Asked once for each exit.
    pub(crate) fn take_recognised(&self) -> bool {
        let recognised = self.0.recognised.load(Ordering::Relaxed);
        if recognised {
            // Only this thread sets it, so that an exchange, which costs more, is not needed.
            self.0.recognised.store(false, Ordering::Relaxed);
        }
        recognised
    }

    fn lock(&self) -> MutexGuard<'_, ShadowRun> {
        self.0.run.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
