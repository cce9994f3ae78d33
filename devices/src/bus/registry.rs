//! [`Bus`]: the writer's side. Changes are made to a copy, checked, and published whole.
//!
//! Lock order: the writer's lock is innermost; nothing is called under it but a [`BusMirror`]. Dispatch takes no lock, so
//! a device may change the bus from inside its own handler. A device that drops out of the bus is dropped after the lock
//! is released, so its `drop` may do so too.

use super::address::BusAddress;
use super::cursor::BusCursor;
use super::error::BusError;
use super::ioevent::{IoEvent, IoEventTable};
use super::mirror::{BusChange, BusMirror};
use super::range::BusRange;
use super::region::{Region, RegionId};
use super::routes::{BusGeneration, Routes};
use crate::device::Device;
use crate::sync::Lock;
use std::fmt;
use std::sync::Arc;
use umbra_memslots::publish::{Published, Reader};

/// A bus: which device answers at which addresses. `A` is [`Gpa`](umbra_memslots::Gpa) for MMIO and
/// [`Port`](super::Port) for port I/O.
///
/// This is what devices are registered with; accesses go through a [`BusCursor`], one for each vCPU.
pub struct Bus<A: BusAddress> {
    published: Arc<Published<Routes<A>>>,
    writer: Lock<Writer<A>>,
}

/// What only changes of the bus need.
struct Writer<A> {
    next_id: u32,
    coalesced: Vec<BusRange<A>>,
    mirror: Option<Arc<dyn BusMirror<A>>>,
}

impl<A: BusAddress> Default for Bus<A> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: BusAddress> Bus<A> {
    /// A bus that nothing has claimed.
    pub fn new() -> Self {
        let empty = Routes::build(BusGeneration(0), Box::new([]), IoEventTable::new());
        Self {
            published: Arc::new(Published::new(empty)),
            writer: Lock::new(Writer {
                next_id: 0,
                coalesced: Vec::new(),
                mirror: None,
            }),
        }
    }

    /// Lets `device` answer `len` bytes (or ports) from `start` on. `name` is for messages and statistics.
    ///
    /// # Errors
    /// [`BusError::BadRange`], [`BusError::Overlap`], [`BusError::TooManyClaims`].
    pub fn claim(&self, name: &str, start: A, len: u64, device: Arc<dyn Device>) -> Result<RegionId, BusError<A>> {
        self.edit(|draft| draft.claim(name, start, len, device))
    }

    /// Gives a region up. Accesses that began before can still be in its device, or reach it, until they are over.
    ///
    /// # Errors
    /// [`BusError::NoSuchRegion`].
    pub fn release(&self, id: RegionId) -> Result<(), BusError<A>> {
        self.edit(|draft| draft.release(id))
    }

    /// Moves a region, in one step: each access finds it at the old place or at the new one, never at both or neither.
    /// ioeventfds and coalesced zones are not moved along: they have addresses of their own.
    ///
    /// # Errors
    /// [`BusError::NoSuchRegion`], [`BusError::BadRange`], [`BusError::Overlap`].
    pub fn move_region(&self, id: RegionId, to: A) -> Result<(), BusError<A>> {
        self.edit(|draft| draft.move_region(id, to))
    }

    /// Makes several changes that become visible as one, or not at all if `change` fails.
    ///
    /// `change` runs under the writer's lock, so it must use the draft, not this bus.
    ///
    /// # Errors
    /// Whatever `change` answers.
    pub fn edit<R, E>(&self, change: impl FnOnce(&mut BusDraft<A>) -> Result<R, E>) -> Result<R, E> {
        // Declared before the guard, hence dropped after it: devices must not be dropped under the lock.
        let old;
        let mut draft;
        let mut writer = self.writer.lock();
        old = self.published.load();
        draft = BusDraft {
            regions: old.regions.clone().into_vec(),
            next_id: writer.next_id,
            discarded: Vec::new(),
        };
        let answer = change(&mut draft)?;
        writer.next_id = draft.next_id;
        let regions = std::mem::take(&mut draft.regions).into_boxed_slice();
        self.publish(&old, regions, old.events.clone());
        Ok(answer)
    }

    /// Carries out a change that a device asked for.
    ///
    /// # Errors
    /// Those of the method that does it.
    pub fn apply(&self, change: BusChange<A>) -> Result<(), BusError<A>> {
        match change {
            BusChange::Move { from, to } => self.edit(|draft| {
                let id = draft
                    .starting_at(from)
                    .ok_or(BusError::NothingStartsAt { start: from })?;
                draft.move_region(id, to)
            }),
            BusChange::AssignEvent(event) => self.assign_event(event),
            BusChange::DeassignEvent(event) => self.deassign_event(&event),
            BusChange::Coalesce(zone) => self.coalesce(zone),
            BusChange::Uncoalesce(zone) => self.uncoalesce(zone),
        }
    }

    /// Signals an eventfd on certain writes from now on, in claimed regions and elsewhere.
    ///
    /// # Errors
    /// [`BusError::EventPastEnd`], [`BusError::EventExists`], [`BusError::Mirror`].
    pub fn assign_event(&self, event: IoEvent<A>) -> Result<(), BusError<A>> {
        if event.passes_end() {
            return Err(BusError::EventPastEnd { event });
        }
        let old;
        let writer = self.writer.lock();
        old = self.published.load();
        let mut events = old.events.clone();
        if let Err(taken) = events.insert(event.clone()) {
            return Err(BusError::EventExists { event, taken });
        }
        if let Some(mirror) = &writer.mirror {
            mirror
                .assign_event(&event)
                .map_err(|source| refused("assign an ioeventfd for", &event, source))?;
        }
        self.publish(&old, old.regions.clone(), events);
        Ok(())
    }

    /// Takes back an ioeventfd that is equal in address, matching and eventfd.
    ///
    /// # Errors
    /// [`BusError::NoSuchEvent`], [`BusError::Mirror`].
    pub fn deassign_event(&self, event: &IoEvent<A>) -> Result<(), BusError<A>> {
        let old;
        let writer = self.writer.lock();
        old = self.published.load();
        let mut events = old.events.clone();
        if !events.remove(event) {
            return Err(BusError::NoSuchEvent { event: event.clone() });
        }
        if let Some(mirror) = &writer.mirror {
            mirror
                .deassign_event(event)
                .map_err(|source| refused("deassign the ioeventfd for", event, source))?;
        }
        self.publish(&old, old.regions.clone(), events);
        Ok(())
    }

    /// Allows writes to `zone` to be delivered late. Zones may overlap, as in the kernel.
    ///
    /// # Errors
    /// [`BusError::Mirror`].
    pub fn coalesce(&self, zone: BusRange<A>) -> Result<(), BusError<A>> {
        let mut writer = self.writer.lock();
        if let Some(mirror) = &writer.mirror {
            mirror
                .coalesce(zone)
                .map_err(|source| refused("coalesce writes to", &zone, source))?;
        }
        writer.coalesced.push(zone);
        Ok(())
    }

    /// Takes back each coalesced zone that contains `zone`; that there is none is not an error (as in the kernel).
    ///
    /// # Errors
    /// [`BusError::Mirror`].
    pub fn uncoalesce(&self, zone: BusRange<A>) -> Result<(), BusError<A>> {
        let mut writer = self.writer.lock();
        if let Some(mirror) = &writer.mirror {
            mirror
                .uncoalesce(zone)
                .map_err(|source| refused("stop coalescing writes to", &zone, source))?;
        }
        writer.coalesced.retain(|registered| !registered.contains_range(&zone));
        Ok(())
    }

    /// Keeps `mirror` informed from now on, beginning with what is registered already.
    ///
    /// # Errors
    /// [`BusError::Mirror`]: it refused something of that; it is not kept.
    pub fn set_mirror(&self, mirror: Arc<dyn BusMirror<A>>) -> Result<(), BusError<A>> {
        let mut writer = self.writer.lock();
        for event in self.published.load().events.iter() {
            mirror
                .assign_event(event)
                .map_err(|source| refused("assign an ioeventfd for", event, source))?;
        }
        for &zone in &writer.coalesced {
            mirror
                .coalesce(zone)
                .map_err(|source| refused("coalesce writes to", &zone, source))?;
        }
        writer.mirror = Some(mirror);
        Ok(())
    }

    /// A cursor through which one vCPU accesses this bus.
    pub fn cursor(&self) -> BusCursor<A> {
        BusCursor::new(Reader::new(Arc::clone(&self.published)))
    }

    /// The generation of the present state.
    pub fn generation(&self) -> BusGeneration {
        self.published.load().generation
    }

    /// The claimed regions, ascending by address.
    pub fn regions(&self) -> Vec<Region<A>> {
        self.published.load().regions.to_vec()
    }

    /// The registered ioeventfds, ascending by address.
    pub fn events(&self) -> Vec<IoEvent<A>> {
        self.published.load().events.iter().cloned().collect()
    }

    /// The coalesced zones, in the order of registration.
    pub fn coalesced(&self) -> Vec<BusRange<A>> {
        self.writer.lock().coalesced.clone()
    }

    /// Each device once, however many regions it claimed: for a reset of the machine.
    pub fn devices(&self) -> Vec<Arc<dyn Device>> {
        let mut devices: Vec<Arc<dyn Device>> = Vec::new();
        for region in &self.published.load().regions {
            if !devices.iter().any(|device| Arc::ptr_eq(device, &region.device)) {
                devices.push(Arc::clone(&region.device));
            }
        }
        devices
    }

    fn publish(&self, old: &Routes<A>, regions: Box<[Region<A>]>, events: IoEventTable<A>) {
        let generation = BusGeneration(old.generation.0 + 1);
        self.published
            .store(Arc::new(Routes::build(generation, regions, events)));
    }
}

impl<A: BusAddress> fmt::Debug for Bus<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes = self.published.load();
        write!(f, "Bus({} {:?} ", A::BUS_NAME, routes.generation)?;
        f.debug_list().entries(&routes.regions).finish()?;
        f.write_str(")")
    }
}

fn refused<A: BusAddress>(what: &str, subject: &dyn fmt::Display, source: std::io::Error) -> BusError<A> {
    BusError::Mirror {
        operation: format!("{what} {subject}"),
        source,
    }
}

/// The next state of a bus, in the making. See [`Bus::edit`].
pub struct BusDraft<A> {
    /// Ascending by address, disjoint.
    regions: Vec<Region<A>>,
    next_id: u32,
    /// Devices to be dropped once the lock is released.
    discarded: Vec<Arc<dyn Device>>,
}

impl<A: BusAddress> BusDraft<A> {
    /// As [`Bus::claim`].
    ///
    /// # Errors
    /// [`BusError::BadRange`], [`BusError::Overlap`], [`BusError::TooManyClaims`].
    pub fn claim(&mut self, name: &str, start: A, len: u64, device: Arc<dyn Device>) -> Result<RegionId, BusError<A>> {
        self.discarded.push(Arc::clone(&device));
        let range = checked_range(name, start, len)?;
        let id = RegionId(self.next_id);
        let next_id = self.next_id.checked_add(1).ok_or(BusError::TooManyClaims)?;
        let target = Arc::clone(&device);
        self.insert(Region {
            id,
            name: name.into(),
            range,
            device,
            target,
        })?;
        self.next_id = next_id;
        Ok(id)
    }

    /// As [`Bus::release`].
    ///
    /// # Errors
    /// [`BusError::NoSuchRegion`].
    pub fn release(&mut self, id: RegionId) -> Result<(), BusError<A>> {
        self.take(id).map(|region| self.discarded.push(region.device))
    }

    /// As [`Bus::move_region`].
    ///
    /// # Errors
    /// [`BusError::NoSuchRegion`], [`BusError::BadRange`], [`BusError::Overlap`].
    pub fn move_region(&mut self, id: RegionId, to: A) -> Result<(), BusError<A>> {
        let region = self.take(id)?;
        let moved = checked_range(region.name(), to, region.range.len()).and_then(|range| {
            self.insert(Region {
                range,
                ..region.clone()
            })
        });
        if moved.is_err() {
            let at = self.position(region.range.start().raw());
            self.regions.insert(at, region);
        }
        moved
    }

    /// The region that starts exactly at `start`.
    pub fn starting_at(&self, start: A) -> Option<RegionId> {
        self.regions
            .get(self.position(start.raw()))
            .filter(|region| region.range.start() == start)
            .map(Region::id)
    }

    /// The number of the first region that starts at `raw` or above.
    fn position(&self, raw: u64) -> usize {
        self.regions.partition_point(|region| region.range.start().raw() < raw)
    }

    fn insert(&mut self, region: Region<A>) -> Result<(), BusError<A>> {
        let at = self.position(region.range.start().raw());
        let neighbours = self.regions[at.saturating_sub(1)..].iter().take(2);
        if let Some(taken) = neighbours.into_iter().find(|taken| taken.range.overlaps(&region.range)) {
            return Err(BusError::Overlap {
                name: region.name().to_owned(),
                range: region.range,
                owner: taken.name().to_owned(),
                taken: taken.range,
            });
        }
        self.regions.insert(at, region);
        Ok(())
    }

    fn take(&mut self, id: RegionId) -> Result<Region<A>, BusError<A>> {
        let at = self
            .regions
            .iter()
            .position(|region| region.id == id)
            .ok_or(BusError::NoSuchRegion { id })?;
        Ok(self.regions.remove(at))
    }
}

fn checked_range<A: BusAddress>(name: &str, start: A, len: u64) -> Result<BusRange<A>, BusError<A>> {
    BusRange::new(start, len).ok_or_else(|| BusError::BadRange {
        name: name.to_owned(),
        start,
        len,
    })
}
