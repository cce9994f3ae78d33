//! [`BusMirror`]: who else must know of the bus's ioeventfds and coalesced zones: the kernel, with the `kvm` backend.

use super::address::BusAddress;
use super::ioevent::IoEvent;
use super::range::BusRange;
use std::io;

/// Keeps a copy of the registrations elsewhere. Called before the bus itself changes; a refusal leaves the bus as it
/// was. Called under the bus's writer lock: an implementation must not change the same bus.
pub trait BusMirror<A: BusAddress>: Send + Sync {
    /// Takes an ioeventfd that collides with no other (`KVM_IOEVENTFD`).
    ///
    /// # Errors
    /// The host refused it.
    fn assign_event(&self, event: &IoEvent<A>) -> io::Result<()>;

    /// Gives up an ioeventfd that was taken (`KVM_IOEVENTFD` with the deassign flag).
    ///
    /// # Errors
    /// The host refused it.
    fn deassign_event(&self, event: &IoEvent<A>) -> io::Result<()>;

    /// Starts coalescing writes to a zone (`KVM_REGISTER_COALESCED_MMIO`).
    ///
    /// # Errors
    /// The host refused it.
    fn coalesce(&self, zone: BusRange<A>) -> io::Result<()>;

    /// Stops coalescing in each zone that contains `zone` (`KVM_UNREGISTER_COALESCED_MMIO`). Writes taken before must
    /// have been passed on to the bus.
    ///
    /// # Errors
    /// The host refused it.
    fn uncoalesce(&self, zone: BusRange<A>) -> io::Result<()>;
}

/// A change of the bus that a device asks for, as part of an [`Effect`](crate::Effect).
/// [`Bus::apply`](super::Bus::apply) carries it out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BusChange<A: BusAddress> {
    /// Move the region that starts at `from` (a BAR) in one step: no moment at which neither or both places answer.
    Move {
        /// Present start of the region.
        from: A,
        /// New start.
        to: A,
    },
    /// Signal an eventfd on certain writes instead of calling the device.
    AssignEvent(IoEvent<A>),
    /// Take back an equal [`BusChange::AssignEvent`].
    DeassignEvent(IoEvent<A>),
    /// Writes to this zone may be delivered late, in order, before the next other access of the same vCPU. A hint: only
    /// KVM makes use of it.
    Coalesce(BusRange<A>),
    /// Take back each [`BusChange::Coalesce`] whose zone contains this one.
    Uncoalesce(BusRange<A>),
}
