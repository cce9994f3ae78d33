//! What was executed in software: by mnemonic what the backend failed at, and how long the guest stayed afterwards.

use iced_x86::Mnemonic;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How often which instruction was executed in software, and why. Shared by whoever reports it; stays current.
#[derive(Clone, Default, Debug)]
pub struct FallbackCounts(Arc<Mutex<Counts>>);

#[derive(Default, Debug)]
struct Counts {
    by_mnemonic: BTreeMap<Mnemonic, u64>,
    stretches: Stretches,
}

/// How a guest that its backend couldn't run on stayed in software.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Stretches {
    /// Times it went on in software.
    pub count: u64,
    /// Instructions executed there, the ones that the backend failed at included.
    pub instructions: u64,
    /// Instructions of the longest.
    pub longest: u64,
    /// Times that page tables were written to, after which the backend had to forget what it knew of all.
    pub table_resets: u64,
}

impl Stretches {
    /// Adds another vCPU's.
    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.instructions += other.instructions;
        self.longest = self.longest.max(other.longest);
        self.table_resets += other.table_resets;
    }
}

impl FallbackCounts {
    /// What the backend failed at, by mnemonic (lower case), in alphabetical order.
    pub fn by_mnemonic(&self) -> BTreeMap<String, u64> {
        let counts = self.lock();
        let each = counts.by_mnemonic.iter();
        each.map(|(mnemonic, count)| (format!("{mnemonic:?}").to_lowercase(), *count))
            .collect()
    }

    /// How the guest stayed in software.
    pub fn stretches(&self) -> Stretches {
        self.lock().stretches
    }

    pub(super) fn failed_at(&self, mnemonic: Mnemonic) {
        *self.lock().by_mnemonic.entry(mnemonic).or_default() += 1;
    }

    /// A stretch of so many instructions is over.
    pub(super) fn stretch(&self, instructions: u64, tables_reset: bool) {
        self.lock().stretches.add(&Stretches {
            count: 1,
            instructions,
            longest: instructions,
            table_resets: u64::from(tables_reset),
        });
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_add_up_and_the_longest_stays() {
        let counts = FallbackCounts::default();
        for instructions in [1, 500, 20] {
            counts.failed_at(Mnemonic::Clac);
            counts.stretch(instructions, instructions == 500);
        }
        let expected = Stretches {
            count: 3,
            instructions: 521,
            longest: 500,
            table_resets: 1,
        };
        assert_eq!(counts.stretches(), expected);
        assert_eq!(counts.by_mnemonic(), BTreeMap::from([("clac".to_owned(), 3)]));
    }
}
