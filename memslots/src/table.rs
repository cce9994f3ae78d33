//! [`SlotTable`]: the single writer of a virtual machine's slots.
//!
//! # What happens in which order
//! Let *n* be the number of address spaces and *g* the present generation. "IP" is the in-progress mark.
//!
//! CREATE and FLAGS_ONLY, one replacement:
//! 1. The rules are checked. A refusal ends here; nothing was visible to anybody.
//! 2. Readers get the *new* slots with `g|IP`.
//! 3. Each observer's [`after_commit`](SlotObserver::after_commit); here the KVM mirror makes its ioctl.
//! 4. Each observer's [`generation_changes`](SlotObserver::generation_changes); readers get the new slots with `g+n`.
//!
//! DELETE and MOVE, two replacements:
//! 1. The rules are checked.
//! 2. Readers get the old slots, the affected one marked [invalid](crate::MemSlot::is_invalid), with `g|IP` and then `g+n`.
//! 3. Each observer's [`before_remove`](SlotObserver::before_remove): shadows of the old range go.
//! 4. Readers get the same slots with `g+n|IP`.
//! 5. Each observer's `after_commit`; here the KVM mirror makes its ioctl.
//! 6. `generation_changes`; readers get the final slots with `g+2n`.
//!
//! If an observer refuses, those before it are told to [`roll_back`](SlotObserver::roll_back), last first, and the last
//! step publishes the slots as they were instead. The generation has moved on just the same (the kernel's does, too,
//! when it swaps back), so whatever was derived in the meantime is stale.
//!
//! Why like this: while a mirror works, readers see a state from which nothing wrong can follow. On creation they see
//! the memory a moment *before* KVM has it, so there is no instant at which the guest could use memory and name it to a
//! device that does not find it. On removal they see it as invalid ("try again", not "MMIO") until KVM has really lost
//! it, and if KVM refuses, no reader ever saw it missing. The numbers of the generations, and which of them carry the
//! mark, are KVM's (`kvm_set_memslot`, `kvm_swap_active_memslots`). One difference: a MOVE to frames above the host's
//! highest is refused here before any reader notices; the kernel finds out after its first swap and swaps back, which
//! costs it two generations.
//!
//! Memory of a removed slot stays mapped until the last snapshot that contains it is gone; see [`crate::Backing`].

mod dirty_log;
mod update;

use crate::addr::{Gpa, Hva};
use crate::backing::Backing;
use crate::error::SlotError;
use crate::id_pool::IdPool;
use crate::limits::SlotLimits;
use crate::observer::SlotObserver;
use crate::publish::Published;
use crate::reader::SlotReader;
use crate::request::{Applied, SlotChange, SlotRequest};
use crate::rules;
use crate::slot::{AddressSpaceId, SlotFlags, SlotId};
use crate::snapshot::Memslots;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use update::{Update, edit, replacements};

/// The slots of a virtual machine, and who is told about their changes. See the [module](self) for the order of events.
pub struct SlotTable {
    limits: SlotLimits,
    spaces: Vec<Space>,
    observers: Vec<Box<dyn SlotObserver>>,
}

struct Space {
    /// The state that readers should see when nothing is going on; never has the in-progress mark.
    current: Memslots,
    published: Arc<Published<Memslots>>,
    ids: IdPool,
}

/// A slot to be created at an id that the table chooses. See [`SlotTable::add`].
#[derive(Clone, Debug)]
pub struct NewSlot {
    /// The address space.
    pub space: AddressSpaceId,
    /// Where in the guest; page aligned.
    pub at: Gpa,
    /// The host memory.
    pub backing: Arc<dyn Backing>,
    /// Where in that memory the slot starts, in bytes; page aligned.
    pub offset: u64,
    /// Size of the slot in bytes; page aligned, not 0.
    pub bytes: u64,
    /// READ_ONLY and LOG_DIRTY as wanted.
    pub flags: SlotFlags,
}

impl NewSlot {
    /// A writable slot in the normal address space that is the whole of `backing`.
    pub fn whole(at: Gpa, backing: Arc<dyn Backing>) -> Self {
        let bytes = backing.bytes();
        Self {
            space: AddressSpaceId::Normal,
            at,
            backing,
            offset: 0,
            bytes,
            flags: SlotFlags::empty(),
        }
    }

    /// The same with these flags.
    #[must_use]
    pub fn with_flags(mut self, flags: SlotFlags) -> Self {
        self.flags = flags;
        self
    }
}

impl SlotTable {
    /// A table without slots or observers.
    pub fn new(limits: SlotLimits) -> Self {
        let spaces = AddressSpaceId::ALL
            .into_iter()
            .take(usize::from(limits.spaces()))
            .map(|space| {
                let current = Memslots::new(space);
                let published = Arc::new(Published::new(current.clone()));
                Space {
                    current,
                    published,
                    ids: IdPool::new(limits.slots()),
                }
            })
            .collect();
        Self {
            limits,
            spaces,
            observers: Vec::new(),
        }
    }

    /// A table on which these requests were applied, in order: the same slots and generations as [`SlotTable::apply`]
    /// gives one by one, but built in place, which for thousands of slots is far faster. Slots created with a backing
    /// share it.
    ///
    /// # Errors
    /// The first refusal; see [`SlotError`].
    pub fn with_slots(
        limits: SlotLimits,
        requests: impl IntoIterator<Item = (SlotRequest, Option<Arc<dyn Backing>>)>,
    ) -> Result<Self, SlotError> {
        let mut table = Self::new(limits);
        for (request, backing) in requests {
            let (space, planned) = table.plan(&request, backing)?;
            if let Some(change) = planned {
                let space = &mut table.spaces[space];
                edit(&mut space.current, &change);
                for _ in 0..replacements(&change) {
                    let generation = space.current.generation().finish_update(limits.spaces());
                    space.current.set_generation(generation);
                }
                space.account_ids(&change);
            }
        }
        for space in &table.spaces {
            space.published.store(Arc::new(space.current.clone()));
        }
        Ok(table)
    }

    /// The host's limits.
    pub fn limits(&self) -> &SlotLimits {
        &self.limits
    }

    /// Adds an observer behind those that are there. It is not told about slots that exist already.
    pub fn add_observer(&mut self, observer: Box<dyn SlotObserver>) {
        self.observers.push(observer);
    }

    /// The present slots of an address space; an empty set if the host does not have that space.
    pub fn slots(&self, space: AddressSpaceId) -> Memslots {
        match self.spaces.get(usize::from(space.index())) {
            Some(space) => space.current.clone(),
            None => Memslots::new(space),
        }
    }

    /// Where an address space's snapshots are published; `None` if the host does not have that space.
    pub fn published(&self, space: AddressSpaceId) -> Option<&Arc<Published<Memslots>>> {
        self.spaces
            .get(usize::from(space.index()))
            .map(|space| &space.published)
    }

    /// A reader of an address space, for one thread; `None` if the host does not have that space.
    pub fn reader(&self, space: AddressSpaceId) -> Option<SlotReader> {
        self.published(space)
            .map(|published| SlotReader::new(Arc::clone(published)))
    }

    /// Makes the change that `KVM_SET_USER_MEMORY_REGION(2)` would make for the same argument.
    ///
    /// A slot created this way has no [`Backing`]: its host address is passed on, but not followed in this process.
    /// Existing slots keep theirs.
    ///
    /// # Errors
    /// A rule, an observer's refusal, or a failed rollback; see [`SlotError`].
    pub fn apply(&mut self, request: SlotRequest) -> Result<Applied, SlotError> {
        self.apply_with(request, None)
    }

    /// As [`SlotTable::apply`]; a slot that is created shares `backing`, in which its host range must lie.
    ///
    /// # Errors
    /// As [`SlotTable::apply`].
    pub fn apply_backed(&mut self, request: SlotRequest, backing: Arc<dyn Backing>) -> Result<Applied, SlotError> {
        self.apply_with(request, Some(backing))
    }

    /// Creates a slot at the lowest free id.
    ///
    /// # Errors
    /// [`SlotError::NoFreeSlot`], and as [`SlotTable::apply`].
    pub fn add(&mut self, new: NewSlot) -> Result<SlotId, SlotError> {
        let id = self.free_id(new.space)?;
        let request = SlotRequest::set(
            id.in_space(new.space),
            new.flags,
            new.at,
            new.bytes,
            Hva::new(new.backing.start().get().saturating_add(new.offset)),
        );
        if new.bytes == 0 {
            // Would be read as a deletion.
            return Err(SlotError::SizeUnaligned {
                slot: request.slot,
                size: 0,
            });
        }
        self.apply_backed(request, new.backing)?;
        Ok(id)
    }

    /// Deletes a slot.
    ///
    /// # Errors
    /// [`SlotError::NothingToDelete`] if there is none, and as [`SlotTable::apply`].
    pub fn remove(&mut self, space: AddressSpaceId, id: SlotId) -> Result<Applied, SlotError> {
        self.apply(SlotRequest::delete(id.in_space(space)))
    }

    /// Moves a slot to start at `to`.
    ///
    /// # Errors
    /// [`SlotError::NothingToDelete`] if there is no such slot, and as [`SlotTable::apply`].
    pub fn relocate(&mut self, space: AddressSpaceId, id: SlotId, to: Gpa) -> Result<Applied, SlotError> {
        let request = self.describe(space, id)?;
        self.apply(SlotRequest {
            guest_phys_addr: to,
            ..request
        })
    }

    /// Gives a slot other flags. Only LOG_DIRTY can differ from the present ones.
    ///
    /// # Errors
    /// [`SlotError::NothingToDelete`] if there is no such slot, and as [`SlotTable::apply`].
    pub fn set_flags(&mut self, space: AddressSpaceId, id: SlotId, flags: SlotFlags) -> Result<Applied, SlotError> {
        let request = self.describe(space, id)?;
        self.apply(SlotRequest {
            flags: flags.bits(),
            ..request
        })
    }

    /// The lowest free slot id of an address space.
    ///
    /// # Errors
    /// [`SlotError::NoFreeSlot`]; [`SlotError::NoSuchSpace`].
    pub fn free_id(&self, space: AddressSpaceId) -> Result<SlotId, SlotError> {
        let ids = self
            .spaces
            .get(usize::from(space.index()))
            .map(|space| &space.ids)
            .ok_or_else(|| self.no_space(space))?;
        ids.lowest_free().ok_or(SlotError::NoFreeSlot {
            space,
            max_slots: self.limits.slots(),
        })
    }

    fn describe(&self, space: AddressSpaceId, id: SlotId) -> Result<SlotRequest, SlotError> {
        let state = self
            .spaces
            .get(usize::from(space.index()))
            .ok_or_else(|| self.no_space(space))?;
        let slot = state.current.by_id(id).ok_or(SlotError::NothingToDelete {
            slot: id.in_space(space),
        })?;
        Ok(SlotRequest::describing(slot))
    }

    fn no_space(&self, space: AddressSpaceId) -> SlotError {
        let (index, spaces) = (u16::from(space.index()), self.limits.spaces());
        SlotError::NoSuchSpace {
            slot: SlotId::new(0).in_space(space),
            index,
            spaces,
        }
    }

    fn apply_with(&mut self, request: SlotRequest, backing: Option<Arc<dyn Backing>>) -> Result<Applied, SlotError> {
        let (space, planned) = self.plan(&request, backing)?;
        let space = &mut self.spaces[space];
        if let Some(change) = &planned {
            let mut update = Update {
                space,
                observers: &mut self.observers,
                spaces: self.limits.spaces(),
            };
            update.run(change)?;
        }
        Ok(Applied {
            change: planned,
            generation: space.current.generation(),
        })
    }

    /// The index of the address space that a request is about, and what the request amounts to.
    fn plan(
        &self,
        request: &SlotRequest,
        backing: Option<Arc<dyn Backing>>,
    ) -> Result<(usize, Option<SlotChange>), SlotError> {
        let id = rules::space_of(&self.limits, request)?;
        let index = usize::from(id.index());
        let current = &self.spaces.get(index).ok_or_else(|| self.no_space(id))?.current;
        let total_pages = self.spaces.iter().map(|space| space.current.total_pages()).sum();
        Ok((
            index,
            rules::plan(&self.limits, current, total_pages, request, backing)?,
        ))
    }
}

impl Space {
    fn account_ids(&mut self, change: &SlotChange) {
        match change {
            SlotChange::Create { new } => self.ids.take(new.id()),
            SlotChange::Delete { old } => self.ids.release(old.id()),
            SlotChange::Move { .. } | SlotChange::SetFlags { .. } => {}
        }
    }
}

impl fmt::Debug for SlotTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotTable")
            .field("limits", &self.limits)
            .field(
                "spaces",
                &self.spaces.iter().map(|space| &space.current).collect::<Vec<_>>(),
            )
            .field("observers", &self.observers.len())
            .finish()
    }
}
