//! Carrying out the changes of the machine that devices ask for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use umbra_devices::bus::{BusError, EventHandle};
use umbra_devices::models::ioapic::IoApic;
use umbra_devices::{Bus, BusAddress, Effect, Port};
use umbra_memslots::ram::{GuestRam, HostMapping, MappingError};
use umbra_memslots::{AddressSpaceId, GfnRange, Gpa, NewSlot, PAGE_SIZE, SlotError, SlotFlags, SlotId};
use umbra_vcpu::platform::Platform;

/// The parts of a machine that a device's effect can change.
pub struct Layout {
    ram: GuestRam,
    mmio: Arc<Bus<Gpa>>,
    ports: Arc<Bus<Port>>,
    /// RAM that effects put there, by where; with how many pages may still be put.
    added: Mutex<Added>,
    /// Signalled when a vCPU has ended.
    vcpu_ended: EventHandle,
    /// Who sends interrupts to KVM's local APICs, if it is ours.
    ioapic: Option<Arc<IoApic>>,
}

struct Added {
    slots: HashMap<GfnRange, SlotId>,
    pages_left: u64,
}

/// Why an effect could not be carried out. The guest asked for it, so this is for the log.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Slot(#[from] SlotError),
    #[error("{0}")]
    Mapping(#[from] MappingError),
    #[error("no RAM was put at exactly {0}")]
    NotAdded(GfnRange),
    #[error("{wanted} pages wanted, {left} may still be added")]
    TooMuch { wanted: u64, left: u64 },
    #[error("{0}")]
    Mmio(#[from] BusError<Gpa>),
    #[error("{0}")]
    Ports(#[from] BusError<Port>),
}

impl Layout {
    /// Effects on this machine. They may add as many pages as it has at the start, so that a guest can't use up the
    /// host.
    pub fn new(ram: GuestRam, mmio: Arc<Bus<Gpa>>, ports: Arc<Bus<Port>>, vcpu_ended: EventHandle) -> Self {
        let pages_left = ram.snapshot().total_pages();
        let added = Mutex::new(Added {
            slots: HashMap::new(),
            pages_left,
        });
        Self {
            ram,
            mmio,
            ports,
            added,
            vcpu_ended,
            ioapic: None,
        }
    }

    /// Whom to tell of ends of interrupt, if KVM's local APICs are not alone.
    #[must_use]
    pub fn with_ioapic(self, ioapic: Option<Arc<IoApic>>) -> Self {
        Self { ioapic, ..self }
    }

    fn carry_out(&self, effect: Effect) -> Result<(), Refused> {
        match effect {
            Effect::MapRam { range, read_only } => self.map(range, read_only),
            Effect::UnmapRam { range } => self.unmap(range),
            Effect::Mmio(change) => Ok(change_bus(&self.mmio, change)?),
            Effect::Pio(change) => Ok(change_bus(&self.ports, change)?),
            // The run loop takes care of these itself.
            Effect::PowerOff | Effect::Reset | Effect::Exit { .. } | Effect::All(_) => Ok(()),
        }
    }

    fn map(&self, range: GfnRange, read_only: bool) -> Result<(), Refused> {
        let mut added = self.added.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = range.pages();
        if wanted > added.pages_left {
            return Err(Refused::TooMuch {
                wanted,
                left: added.pages_left,
            });
        }
        let backing = HostMapping::anonymous(wanted * PAGE_SIZE)?;
        let flags = if read_only {
            SlotFlags::READ_ONLY
        } else {
            SlotFlags::empty()
        };
        let id = self
            .ram
            .add(NewSlot::whole(range.start().base(), Arc::new(backing)).with_flags(flags))?;
        added.slots.insert(range, id);
        added.pages_left -= wanted;
        Ok(())
    }

    fn unmap(&self, range: GfnRange) -> Result<(), Refused> {
        let mut added = self.added.lock().unwrap_or_else(PoisonError::into_inner);
        let id = *added.slots.get(&range).ok_or(Refused::NotAdded(range))?;
        self.ram.remove(AddressSpaceId::Normal, id)?;
        added.slots.remove(&range);
        added.pages_left += range.pages();
        Ok(())
    }
}

fn change_bus<A: BusAddress>(bus: &Bus<A>, change: umbra_devices::BusChange<A>) -> Result<(), BusError<A>> {
    bus.apply(change)
}

impl Platform for Layout {
    fn apply(&self, vcpu: u32, effect: Effect) {
        if let Err(reason) = self.carry_out(effect) {
            tracing::debug!(vcpu, %reason, "a device's effect was refused");
        }
    }

    fn end_of_interrupt(&self, vector: u8) {
        if let Some(ioapic) = &self.ioapic {
            ioapic.end_of_interrupt(vector);
        }
    }

    fn ended(&self, _vcpu: u32) {
        self.vcpu_ended.signal();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_memslots::{Gfn, GuestMemory, SlotLimits};

    fn layout() -> Layout {
        let ram = GuestRam::new(SlotLimits::X86_64);
        ram.map(Gpa::new(0), Arc::new(HostMapping::anonymous(16 * PAGE_SIZE).unwrap()))
            .unwrap();
        Layout::new(ram, Arc::default(), Arc::default(), EventHandle::new().unwrap())
    }

    fn range(first: u64, pages: u64) -> GfnRange {
        GfnRange::new(Gfn::new(first).unwrap(), pages).unwrap()
    }

    #[test]
    fn ram_comes_goes_and_comes_back_empty() {
        let layout = layout();
        let gpa = Gpa::new(0x100_000);
        let range = range(0x100, 2);
        for _ in 0..2 {
            layout.apply(
                0,
                Effect::MapRam {
                    range,
                    read_only: false,
                },
            );
            let mut bytes = [1; 4];
            layout.ram.read(gpa, &mut bytes).unwrap();
            assert_eq!(bytes, [0; 4]);
            layout.ram.write(gpa, b"full").unwrap();
            layout.apply(0, Effect::UnmapRam { range });
            assert!(layout.ram.read(gpa, &mut bytes).is_err());
        }
    }

    #[test]
    fn what_cannot_be_done_leaves_everything_as_it_was() {
        let layout = layout();
        let before = layout.ram.snapshot().len();
        for effect in [
            Effect::MapRam {
                range: range(0, 1),
                read_only: false,
            },
            Effect::MapRam {
                range: range(0x100, 17),
                read_only: false,
            },
            Effect::UnmapRam { range: range(0, 16) },
        ] {
            layout.apply(0, effect);
            assert_eq!(layout.ram.snapshot().len(), before);
        }
    }

    #[test]
    fn budget_is_given_back() {
        let layout = layout();
        for _ in 0..3 {
            layout.apply(
                0,
                Effect::MapRam {
                    range: range(0x100, 16),
                    read_only: false,
                },
            );
            assert_eq!(layout.ram.snapshot().len(), 2);
            layout.apply(
                0,
                Effect::UnmapRam {
                    range: range(0x100, 16),
                },
            );
        }
    }
}
