//! [`first`]: where two accounts part.
//!
//! One thing is allowed for: D of a writable leaf, where nothing follows from D. KVM's `make_spte` leaves it out if bit 1
//! of the entry was set before, as it is in a leaf that was writable already and in many MMIO SPTEs. So KVM writes a leaf
//! once more, without D, where ours stays as it is.

use super::program::Differs;
use crate::trace::Event;
use std::fmt;

/// Events that are shown before and after.
const AROUND: usize = 12;

/// Two accounts, and where they part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    at: usize,
    kernel: Vec<Event>,
    ours: Vec<Event>,
}

/// The first difference, if there is any.
#[must_use]
pub fn first(kernel: &[Event], ours: &[Event]) -> Option<Difference> {
    let kernel = align(kernel, ours);
    let same = kernel
        .iter()
        .zip(ours)
        .take_while(|(theirs, ours)| theirs == ours)
        .count();
    (same < kernel.len() || same < ours.len()).then(|| Difference {
        at: same,
        kernel,
        ours: ours.to_vec(),
    })
}

/// KVM's account, with leaves that are written once more as ours has them.
fn align(kernel: &[Event], ours: &[Event]) -> Vec<Event> {
    let mut aligned = Vec::with_capacity(kernel.len());
    for event in kernel {
        match with_dirty(event) {
            Some((whole, _)) if ours.get(aligned.len()) == Some(&whole) => aligned.push(whole),
            Some((_, true)) => {}
            _ => aligned.push(event.clone()),
        }
    }
    aligned
}

/// A writable leaf that lacks D, with D; and whether it may have been the same before, which one that is made ahead (and so
/// lacks A) wasn't.
fn with_dirty(event: &Event) -> Option<(Event, bool)> {
    match *event {
        Event::SetSpte { gfn, level, flags } if flags & (WRITABLE | DIRTY) == WRITABLE => {
            let whole = Event::SetSpte {
                gfn,
                level,
                flags: flags | DIRTY,
            };
            Some((whole, flags & ACCESSED != 0))
        }
        _ => None,
    }
}

const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

impl Difference {
    /// Whether it is the one that was expected.
    #[must_use]
    pub fn is(&self, expected: &Differs) -> bool {
        let has = |events: &[Event], what| {
            events
                .get(self.at)
                .is_some_and(|event| format!("{event:x?}").contains(what))
        };
        has(&self.kernel, expected.kernel) && has(&self.ours, expected.ours)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = self.at.saturating_sub(AROUND);
        writeln!(f, "both, from event {from} on:")?;
        for event in &self.kernel[from..self.at] {
            writeln!(f, "      {event:x?}")?;
        }
        for (who, events) in [("KVM", &self.kernel), ("Umbra", &self.ours)] {
            writeln!(f, "{who}, event {} of {}:", self.at, events.len())?;
            for event in events.iter().skip(self.at).take(AROUND) {
                writeln!(f, "  {} {event:x?}", if who == "KVM" { "---" } else { "+++" })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_memslots::Gfn;

    fn code(code: u32) -> Event {
        Event::WalkerError { code }
    }

    #[test]
    fn equal_accounts_have_no_difference() {
        assert_eq!(first(&[code(1), code(2)], &[code(1), code(2)]), None);
    }

    #[test]
    fn account_that_ends_early_differs_there() {
        for (kernel, ours) in [(&[code(1), code(2)][..], &[code(1)][..]), (&[], &[code(1)])] {
            let difference = first(kernel, ours).expect("they differ");
            assert_eq!(difference.at, kernel.len().min(ours.len()));
        }
    }

    #[test]
    fn leaf_written_once_more_is_ours_or_nothing() {
        let leaf = |flags| Event::SetSpte {
            gfn: Gfn::from_masked(1),
            level: 1,
            flags,
        };
        assert_eq!(first(&[leaf(0xe27), code(1)], &[code(1)]), None);
        assert_eq!(first(&[leaf(0xe27), code(1)], &[leaf(0xe67), code(1)]), None);
        assert_eq!(first(&[leaf(0xe07)], &[leaf(0xe47)]), None);
        // Read-only; made ahead, with D and without; with D.
        for flags in [0xe25, 0xe47, 0xe07, 0xe67] {
            assert!(first(&[leaf(flags)], &[]).is_some());
        }
    }

    #[test]
    fn difference_that_was_expected_is_told_from_others() {
        let difference = first(&[code(1), code(2)], &[code(1), code(3)]).expect("they differ");
        let differs = |kernel, ours| Differs { kernel, ours };
        assert!(difference.is(&differs("code: 2", "code: 3")));
        assert!(!difference.is(&differs("code: 1", "code: 3")));
        assert!(!difference.is(&differs("code: 2", "code: 4")));
    }

    #[test]
    fn difference_shows_both_sides() {
        let text = first(&[code(1), code(2)], &[code(1), code(3)])
            .expect("they differ")
            .to_string();
        assert!(
            text.contains("--- WalkerError { code: 2 }") && text.contains("+++ WalkerError { code: 3 }"),
            "{text}"
        );
    }
}
