//! One change on its way to the readers and observers, in the order that the [table](super) documents.

use super::Space;
use crate::error::SlotError;
use crate::observer::{ObserverError, SlotObserver};
use crate::request::SlotChange;
use crate::slot::SlotFlags;
use crate::snapshot::Memslots;
use alloc::boxed::Box;
use alloc::sync::Arc;

/// A checked change on its way to the readers and observers.
pub(super) struct Update<'a> {
    pub(super) space: &'a mut Space,
    pub(super) observers: &'a mut [Box<dyn SlotObserver>],
    pub(super) spaces: u8,
}

impl Update<'_> {
    pub(super) fn run(&mut self, change: &SlotChange) -> Result<(), SlotError> {
        let before = self.space.current.clone();
        let mut after = before.clone();
        edit(&mut after, change);
        if let SlotChange::Delete { old } | SlotChange::Move { old, .. } = change {
            let mut invalid = before.clone();
            invalid.replace(old.clone().with_flags(old.flags() | SlotFlags::INVALID));
            self.begin(&invalid);
            self.finish(invalid.clone());
            for observer in self.observers.iter_mut() {
                observer.before_remove(old);
            }
            self.begin(&invalid);
        } else {
            self.begin(&after);
        }
        match self.tell(change) {
            Ok(()) => {
                self.finish(after);
                self.space.account_ids(change);
                Ok(())
            }
            Err(error) => {
                self.finish(before);
                Err(error)
            }
        }
    }

    /// Shows `slots` under the old number with the in-progress mark.
    fn begin(&self, slots: &Memslots) {
        let generation = self.space.current.generation().begin_update();
        self.space.published.store(Arc::new(slots.with_generation(generation)));
    }

    /// Shows `slots` under the next number and makes them the present state.
    fn finish(&mut self, slots: Memslots) {
        let generation = self.space.current.generation().finish_update(self.spaces);
        for observer in self.observers.iter_mut() {
            observer.generation_changes(slots.space(), generation);
        }
        self.space.current = slots.with_generation(generation);
        self.space.published.store(Arc::new(self.space.current.clone()));
    }

    /// Asks every observer; if one refuses, those before it roll back.
    fn tell(&mut self, change: &SlotChange) -> Result<(), SlotError> {
        let (space, id) = (change.space(), change.id());
        for asked in 0..self.observers.len() {
            let Err(refusal) = self.observers[asked].after_commit(change) else {
                continue;
            };
            return Err(match self.roll_back(asked, change) {
                Ok(()) => SlotError::Refused {
                    space,
                    id,
                    source: Box::new(refusal),
                },
                Err(failure) => SlotError::RollbackFailed {
                    space,
                    id,
                    source: Box::new(failure),
                },
            });
        }
        Ok(())
    }

    /// Lets the first `count` observers undo the change, last first; returns the first failure.
    fn roll_back(&mut self, count: usize, change: &SlotChange) -> Result<(), ObserverError> {
        let mut result = Ok(());
        for observer in self.observers[..count].iter_mut().rev() {
            result = result.and(observer.roll_back(change));
        }
        result
    }
}

/// Makes `change` in `slots`, whose generation stays.
pub(super) fn edit(slots: &mut Memslots, change: &SlotChange) {
    match change {
        SlotChange::Create { new } => slots.insert(new.clone()),
        SlotChange::Delete { old } => slots.remove(old.id()),
        SlotChange::Move { old, new } => {
            slots.remove(old.id());
            slots.insert(new.clone());
        }
        SlotChange::SetFlags { new, .. } => slots.replace(new.clone()),
    }
}

/// How many replacements a change takes, each of which moves the generation.
pub(super) fn replacements(change: &SlotChange) -> u8 {
    match change {
        SlotChange::Create { .. } | SlotChange::SetFlags { .. } => 1,
        SlotChange::Delete { .. } | SlotChange::Move { .. } => 2,
    }
}
