//! [`SoftCounts`]: what a software CPU executed, and what of it was left to the instruction core.
//!
//! One thread counts, with plain loads and stores; any may look. Only what is slow anyway counts anything: each decoded
//! instruction that the core executes (not one that it fetches itself, where there is no block). How many there were in all is published when the vCPU comes out.

use iced_x86::Mnemonic;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A handle on the counts of one vCPU; stays current.
#[derive(Clone, Debug)]
pub struct SoftCounts(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    instructions: AtomicU64,
    /// By the number of the mnemonic.
    by_core: Box<[AtomicU64]>,
    undefined: Box<[AtomicU64]>,
}

/// The counts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct SoftRun {
    /// Instructions executed, and exceptions delivered.
    pub instructions: u64,
    /// Instructions that the instruction core executed because no fast operation could, by mnemonic.
    pub by_core: BTreeMap<String, u64>,
    /// Instructions that the core doesn't know, which raised #UD, by mnemonic.
    pub undefined: BTreeMap<String, u64>,
}

impl SoftRun {
    /// Instructions that the instruction core executed.
    pub fn core_instructions(&self) -> u64 {
        self.by_core.values().sum()
    }

    /// Adds another vCPU's.
    pub fn add(&mut self, other: &Self) {
        self.instructions += other.instructions;
        for (mine, others) in [
            (&mut self.by_core, &other.by_core),
            (&mut self.undefined, &other.undefined),
        ] {
            for (mnemonic, count) in others {
                *mine.entry(mnemonic.clone()).or_default() += count;
            }
        }
    }
}

impl Default for SoftCounts {
    fn default() -> Self {
        let zeros = || Mnemonic::values().map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Shared {
            instructions: AtomicU64::new(0),
            by_core: zeros(),
            undefined: zeros(),
        }))
    }
}

impl SoftCounts {
    /// The counts so far.
    pub fn get(&self) -> SoftRun {
        let Shared {
            instructions,
            by_core,
            undefined,
        } = &*self.0;
        let list = |counts: &[AtomicU64]| {
            let counts = counts.iter().map(|count| count.load(Ordering::Relaxed));
            Mnemonic::values()
                .zip(counts)
                .filter(|(_, count)| *count > 0)
                .map(|(mnemonic, count)| (format!("{mnemonic:?}").to_lowercase(), count))
                .collect()
        };
        SoftRun {
            instructions: instructions.load(Ordering::Relaxed),
            by_core: list(by_core),
            undefined: list(undefined),
        }
    }

    /// The core executes an instruction.
    #[inline]
    pub(super) fn core(&self, mnemonic: Mnemonic) {
        count(&self.0.by_core, mnemonic);
    }

    /// The core doesn't know an instruction.
    pub(super) fn undefined(&self, mnemonic: Mnemonic) {
        count(&self.0.undefined, mnemonic);
    }

    /// So many instructions were executed in all.
    pub(super) fn publish(&self, instructions: u64) {
        self.0.instructions.store(instructions, Ordering::Relaxed);
    }
}

/// Adds one. Only the vCPU's thread does, so no two additions meet.
#[inline]
fn count(counts: &[AtomicU64], mnemonic: Mnemonic) {
    if let Some(count) = counts.get(mnemonic as usize) {
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_counted_by_mnemonic_and_added_up() {
        let counts = SoftCounts::default();
        counts.core(Mnemonic::Fxsave);
        counts.core(Mnemonic::Fxsave);
        counts.core(Mnemonic::Addps);
        counts.undefined(Mnemonic::Vaddps);
        counts.publish(100);
        let mut run = counts.get();
        assert_eq!(
            run.by_core,
            BTreeMap::from([("addps".to_owned(), 1), ("fxsave".to_owned(), 2)])
        );
        assert_eq!(run.undefined, BTreeMap::from([("vaddps".to_owned(), 1)]));
        run.add(&counts.get());
        assert_eq!((run.instructions, run.core_instructions()), (200, 6));
    }
}
