//! [`Memory`]: slots that can be changed while a guest runs, the same way on either machine.

use super::image::{Image, RAM};
use std::ops::Range;
use std::sync::Arc;
use umbra_memslots::ram::{GuestRam, HostMapping, HugePageSize, MappingError, Source};
use umbra_memslots::{
    AddressSpaceId, Gpa, GuestMemory, MemoryFault, NewSlot, SlotError, SlotFlags, SlotId, SlotLimits, SlotObserver,
};

/// Something that is done to a machine from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// A slot of fresh memory is added.
    Add {
        /// Its address.
        at: u64,
        /// Its size.
        bytes: u64,
        /// Writes go to the bus.
        read_only: bool,
    },
    /// The slot at this address goes.
    Remove(u64),
    /// Writes to the slot at this address are logged from now on, or no more.
    Log(u64, bool),
}

/// Where slots are of 2 MiB pages; elsewhere they are of small ones.
pub const HUGE: Range<u64> = 0x3000_0000..0x4100_0000;

/// The memory can't be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// No memory of the host.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// The slot table refuses.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// Nothing there.
    #[error(transparent)]
    Fault(#[from] MemoryFault),
    /// An action for a slot that isn't there.
    #[error("there is no slot at {0:#x}")]
    NoSlot(u64),
}

/// What the 2 MiB pages are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Large {
    /// Of the host's pool of them.
    Real,
    /// Not real: nobody looks.
    Pretended,
}

/// Memory with slots.
pub struct Memory {
    ram: GuestRam,
    large: Large,
}

impl Memory {
    /// RAM with `image` in it. `observer`, if there is one, follows the slots from the first one on.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn new(image: &Image, large: Large, observer: Option<Box<dyn SlotObserver>>) -> Result<Self, MemoryError> {
        let ram = GuestRam::new(SlotLimits::X86_64);
        let memory = Self { ram, large };
        if let Some(observer) = observer {
            memory.ram.add_observer(observer);
        }
        memory.act(Action::Add {
            at: 0,
            bytes: RAM,
            read_only: false,
        })?;
        let slots = memory.ram.snapshot();
        for (at, bytes) in image.pieces() {
            slots.write(Gpa::new(at), bytes)?;
        }
        Ok(memory)
    }

    /// Does it.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn act(&self, action: Action) -> Result<(), MemoryError> {
        match action {
            Action::Add { at, bytes, read_only } => self.add(Gpa::new(at), bytes, read_only),
            Action::Remove(at) => {
                let id = self.slot(at)?;
                self.ram.remove(AddressSpaceId::Normal, id)?;
                Ok(())
            }
            Action::Log(at, on) => {
                let flags = if on { SlotFlags::LOG_DIRTY } else { SlotFlags::empty() };
                let id = self.slot(at)?;
                self.ram.set_flags(AddressSpaceId::Normal, id, flags)?;
                Ok(())
            }
        }
    }

    /// The slots.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    fn slot(&self, at: u64) -> Result<SlotId, MemoryError> {
        let slots = self.ram.snapshot();
        let found = slots.find_gpa(Gpa::new(at)).map(|slot| slot.id());
        found.ok_or(MemoryError::NoSlot(at))
    }

    /// All pages are there from the start: KVM maps ahead only what is.
    fn add(&self, at: Gpa, bytes: u64, read_only: bool) -> Result<(), MemoryError> {
        let source = if self.large == Large::Real && HUGE.contains(&at.get()) {
            Source::AnonymousHuge(HugePageSize::Size2M)
        } else {
            Source::Anonymous
        };
        let mapping = Arc::new(HostMapping::new(source, bytes)?);
        let filler = GuestRam::new(SlotLimits::X86_64);
        filler.map(at, Arc::clone(&mapping) as _)?;
        let slots = filler.snapshot();
        for page in (0..bytes).step_by(4096) {
            slots.write(at.wrapping_add(page), &[0])?;
        }
        let mut new = NewSlot::whole(at, mapping);
        if read_only {
            new.flags = SlotFlags::READ_ONLY;
        }
        self.ram.add(new)?;
        Ok(())
    }
}
