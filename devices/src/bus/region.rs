//! What is known of one claimed region: who, where, and which device answers.

use super::address::BusAddress;
use super::range::BusRange;
use crate::device::Device;
use std::fmt;
use std::sync::Arc;

/// Identity of a claimed region on one bus. Kept by a move; never used again after a release.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegionId(pub(super) u32);

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// One claimed region, as a snapshot of the bus has it.
#[derive(Clone)]
pub struct Region<A> {
    pub(super) id: RegionId,
    pub(super) name: Arc<str>,
    pub(super) range: BusRange<A>,
    pub(super) device: Arc<dyn Device>,
    /// What the bus calls: the device, behind its ioeventfds if there are any.
    pub(super) target: Arc<dyn Device>,
}

impl<A: BusAddress> Region<A> {
    /// The region's identity.
    pub const fn id(&self) -> RegionId {
        self.id
    }

    /// The name it was claimed under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The addresses it answers.
    pub const fn range(&self) -> BusRange<A> {
        self.range
    }

    /// The device that answers.
    pub const fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }
}

impl<A: BusAddress> fmt::Debug for Region<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} {:?} {})", self.id, self.name, self.range)
    }
}
