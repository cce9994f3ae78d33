//! ioeventfd: a guest write that signals an eventfd instead of calling a device.
//!
//! With KVM the write never leaves the kernel (`KVM_IOEVENTFD`, registered through a [`BusMirror`]); without KVM the bus
//! itself signals. Both follow the kernel's rules (`virt/kvm/eventfd.c`): an event is matched by its exact address and
//! by length and value, reads are never matched, and two events that one write could match can't coexist.
//!
//! [`BusMirror`]: super::BusMirror

use super::address::BusAddress;
use super::region::Region;
use crate::access::{IoOp, IoSize};
use crate::device::{Device, IoOutcome};
use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A shared eventfd. Two handles are equal if one is a clone of the other.
#[derive(Clone)]
pub struct EventHandle(Arc<EventFd>);

impl EventHandle {
    /// A new, non-blocking, close-on-exec eventfd with count 0.
    ///
    /// # Errors
    /// The host's, when it has no descriptor to give.
    pub fn new() -> std::io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self::from)
    }

    /// Adds 1 to the count. A count at its maximum stays there: whoever reads it is signalled all the same.
    pub fn signal(&self) {
        if let Err(error) = self.0.write(1)
            && error.kind() != std::io::ErrorKind::WouldBlock
        {
            tracing::warn!(fd = self.0.as_raw_fd(), %error, "cannot signal an eventfd");
        }
    }

    /// The eventfd, for reading its count.
    pub fn eventfd(&self) -> &EventFd {
        &self.0
    }
}

impl From<EventFd> for EventHandle {
    fn from(fd: EventFd) -> Self {
        Self(Arc::new(fd))
    }
}

impl AsRawFd for EventHandle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl PartialEq for EventHandle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for EventHandle {}

impl fmt::Debug for EventHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventHandle(fd {})", self.as_raw_fd())
    }
}

/// Which writes at its address an ioeventfd takes.
///
/// KVM's `len = 0` together with a datamatch, which the kernel refuses with `EINVAL`, cannot be expressed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EventMatch {
    /// A write of any size and value (KVM: `len = 0`). The cheapest kind: the kernel needs not decode the instruction.
    Anything,
    /// A write of this size and any value.
    Size(IoSize),
    /// A write of this size and value (`KVM_IOEVENTFD_FLAG_DATAMATCH`). A value wider than the size never matches.
    Value(IoSize, u64),
}

impl EventMatch {
    /// Whether a write of `value` and `size` is taken.
    pub fn matches(self, size: IoSize, value: u64) -> bool {
        match self {
            Self::Anything => true,
            Self::Size(exact) => size == exact,
            Self::Value(exact, wanted) => size == exact && value == wanted,
        }
    }

    /// The length in bytes as KVM has it: 0 for any.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Anything => 0,
            Self::Size(size) | Self::Value(size, _) => size.bytes(),
        }
    }

    /// Whether some write is taken by both, so that they can't be registered at the same address.
    pub fn collides(self, other: Self) -> bool {
        match (self, other) {
            (Self::Anything, _) | (_, Self::Anything) => true,
            (Self::Value(a, v), Self::Value(b, w)) => a == b && v == w,
            (Self::Size(a) | Self::Value(a, _), Self::Size(b) | Self::Value(b, _)) => a == b,
        }
    }
}

/// One ioeventfd registration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoEvent<A> {
    /// The address whose writes are taken.
    pub addr: A,
    /// Which of them.
    pub matching: EventMatch,
    /// What is signalled.
    pub event: EventHandle,
}

impl<A: BusAddress> IoEvent<A> {
    /// Whether the address space ends before the last byte that would be matched (the kernel says `EINVAL`).
    pub(super) fn passes_end(&self) -> bool {
        let last = self.addr.raw().checked_add(self.matching.bytes().max(1) - 1);
        last.and_then(A::from_raw).is_none()
    }

    pub(super) fn collides(&self, other: &Self) -> bool {
        self.addr == other.addr && self.matching.collides(other.matching)
    }
}

impl<A: BusAddress> fmt::Display for IoEvent<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.matching {
            EventMatch::Anything => write!(f, "any write at {}", self.addr),
            EventMatch::Size(size) => write!(f, "{}-byte writes at {}", size.bytes(), self.addr),
            EventMatch::Value(size, value) => {
                write!(f, "{}-byte writes of {value:#x} at {}", size.bytes(), self.addr)
            }
        }
    }
}

/// The ioeventfds of one bus state, ascending by address.
#[derive(Clone)]
pub(super) struct IoEventTable<A>(Vec<IoEvent<A>>);

impl<A: BusAddress> IoEventTable<A> {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &IoEvent<A>> {
        self.0.iter()
    }

    /// Adds an event, or answers with the one in its way.
    pub(super) fn insert(&mut self, event: IoEvent<A>) -> Result<(), IoEvent<A>> {
        if let Some(taken) = self.0.iter().find(|taken| taken.collides(&event)) {
            return Err(taken.clone());
        }
        let at = self.0.partition_point(|other| other.addr <= event.addr);
        self.0.insert(at, event);
        Ok(())
    }

    /// Removes an event that is equal in every field; says whether there was one.
    pub(super) fn remove(&mut self, event: &IoEvent<A>) -> bool {
        let before = self.0.len();
        self.0.retain(|other| other != event);
        self.0.len() != before
    }

    /// The event that takes this write.
    pub(super) fn find(&self, addr: A, size: IoSize, value: u64) -> Option<&IoEvent<A>> {
        let from = self.0.partition_point(|event| event.addr < addr);
        self.0[from..]
            .iter()
            .take_while(|event| event.addr == addr)
            .find(|event| event.matching.matches(size, value))
    }

    /// What answers in `region`: its device, behind the events that lie in it if there are any. So regions without
    /// events pay nothing for those with.
    pub(super) fn wrap(&self, region: &Region<A>) -> Arc<dyn Device> {
        let events: Box<[_]> = self
            .0
            .iter()
            .filter_map(|event| Some((region.range.offset_of(event.addr, IoSize::B1)?, event)))
            .map(|(offset, event)| (offset, event.matching, event.event.clone()))
            .collect();
        if events.is_empty() {
            return Arc::clone(&region.device);
        }
        Arc::new(Notifying {
            device: Arc::clone(&region.device),
            events,
        })
    }
}

/// A device behind ioeventfds.
struct Notifying {
    device: Arc<dyn Device>,
    /// Ascending by offset in the region.
    events: Box<[(u64, EventMatch, EventHandle)]>,
}

impl Device for Notifying {
    fn access(&self, offset: u64, size: IoSize, op: IoOp) -> IoOutcome {
        if let IoOp::Write(value) = op {
            let from = self.events.partition_point(|event| event.0 < offset);
            let at_offset = self.events[from..].iter().take_while(|event| event.0 == offset);
            for (_, matching, event) in at_offset {
                if matching.matches(size, value) {
                    event.signal();
                    return IoOutcome::Done;
                }
            }
        }
        self.device.access(offset, size, op)
    }

    fn reset(&self) {
        self.device.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collisions_are_the_kernels() {
        use EventMatch::{Anything, Size, Value};
        use IoSize::{B1, B2, B4};
        for (a, b, collide) in [
            (Anything, Anything, true),
            (Anything, Size(B2), true),
            (Value(B2, 7), Anything, true),
            (Size(B2), Size(B2), true),
            (Size(B2), Size(B4), false),
            (Size(B2), Value(B2, 1), true),
            (Size(B1), Value(B2, 1), false),
            (Value(B2, 1), Value(B2, 1), true),
            (Value(B2, 1), Value(B2, 2), false),
            (Value(B2, 1), Value(B4, 1), false),
        ] {
            assert_eq!(a.collides(b), collide, "{a:?} {b:?}");
            assert_eq!(b.collides(a), collide, "{b:?} {a:?}");
        }
    }
}
