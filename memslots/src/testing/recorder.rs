//! [`Recorder`]: an observer that writes down what it is told, and can be told to refuse.

use crate::generation::Generation;
use crate::observer::{ObserverError, SlotObserver};
use crate::request::SlotChange;
use crate::slot::{AddressSpaceId, MemSlot};
use crate::sync::Lock;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// One call of a [`SlotObserver`] method.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// [`SlotObserver::before_remove`].
    BeforeRemove(MemSlot),
    /// [`SlotObserver::after_commit`], and whether it was accepted.
    AfterCommit(SlotChange, bool),
    /// [`SlotObserver::roll_back`].
    RollBack(SlotChange),
    /// [`SlotObserver::generation_changes`].
    GenerationChanges(AddressSpaceId, Generation),
}

/// Records every call; clones share the record, so one goes into the table and one stays with the test.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Lock<Shared>>,
}

struct Shared {
    events: Vec<Event>,
    refusals: Vec<i32>,
    undoable: bool,
}

impl Recorder {
    /// A recorder that accepts everything.
    pub fn new() -> Self {
        let shared = Shared {
            events: Vec::new(),
            refusals: Vec::new(),
            undoable: true,
        };
        Self {
            shared: Arc::new(Lock::new(shared)),
        }
    }

    /// Makes the next change be refused with this error number. Several calls: the next changes, last call first.
    pub fn refuse_next(&self, errno: i32) {
        self.shared.with(|shared| shared.refusals.push(errno));
    }

    /// Makes every rollback fail.
    pub fn fail_roll_backs(&self) {
        self.shared.with(|shared| shared.undoable = false);
    }

    /// What was recorded since the last call.
    pub fn take(&self) -> Vec<Event> {
        self.shared.with(|shared| core::mem::take(&mut shared.events))
    }

    fn error(errno: i32) -> ObserverError {
        ObserverError {
            observer: "recorder",
            errno: Some(errno),
            source: Box::from("the test asked for it"),
        }
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl SlotObserver for Recorder {
    fn before_remove(&mut self, slot: &MemSlot) {
        self.shared
            .with(|shared| shared.events.push(Event::BeforeRemove(slot.clone())));
    }

    fn after_commit(&mut self, change: &SlotChange) -> Result<(), ObserverError> {
        self.shared.with(|shared| {
            let refusal = shared.refusals.pop();
            shared
                .events
                .push(Event::AfterCommit(change.clone(), refusal.is_none()));
            refusal.map_or(Ok(()), |errno| Err(Self::error(errno)))
        })
    }

    fn roll_back(&mut self, change: &SlotChange) -> Result<(), ObserverError> {
        self.shared.with(|shared| {
            shared.events.push(Event::RollBack(change.clone()));
            if shared.undoable { Ok(()) } else { Err(Self::error(5)) }
        })
    }

    fn generation_changes(&mut self, space: AddressSpaceId, next: Generation) {
        self.shared
            .with(|shared| shared.events.push(Event::GenerationChanges(space, next)));
    }
}
