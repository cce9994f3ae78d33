//! [`Tools`]: what is kept from one stretch in software to the next.

use super::FallbackCounts;
use super::code::{CodeCache, CodeSet};
use super::replay::Replay;
use super::translations::Translations;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// What is kept from one stretch to the next, and what a stretch has to look at.
pub(super) struct Tools {
    pub replay: Replay,
    pub counts: FallbackCounts,
    /// A kick was made; the backend has seen it, too.
    pub kicked: Arc<AtomicBool>,
    /// Where linear pages lie, in the present stretch.
    pub translations: Translations,
    /// Decoded instructions.
    pub code: CodeCache,
    /// What the backend has failed at.
    pub failing: CodeSet,
    /// Runs since the vCPU was made.
    pub clock: Instant,
}

impl Tools {
    pub fn new() -> Self {
        Self {
            replay: Replay::default(),
            counts: FallbackCounts::default(),
            kicked: Arc::default(),
            translations: Translations::default(),
            code: CodeCache::default(),
            failing: CodeSet::default(),
            clock: Instant::now(),
        }
    }

    /// For the policy.
    pub fn now(&self) -> Duration {
        self.clock.elapsed()
    }
}
