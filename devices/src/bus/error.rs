//! Why a change of the bus was refused. Each message names both ranges, so that a "device or resource busy" of some
//! hot-plug script can be understood from the log alone.

use super::address::BusAddress;
use super::ioevent::IoEvent;
use super::range::BusRange;
use super::region::RegionId;

/// A refused change of the bus. The bus is as it was.
#[derive(Debug, thiserror::Error)]
pub enum BusError<A: BusAddress> {
    /// The range is empty or passes the end of the address space.
    #[error("{} range of {len:#x} from {start} for {name:?} is empty or passes the end of the address space ({last})", A::BUS_NAME, last = A::LAST)]
    BadRange {
        /// Who asked.
        name: String,
        /// First address asked for.
        start: A,
        /// Length asked for.
        len: u64,
    },
    /// The range overlaps one that is already claimed.
    #[error("{} range {range} for {name:?} overlaps {taken}, claimed by {owner:?}", A::BUS_NAME)]
    Overlap {
        /// Who asked.
        name: String,
        /// What was asked for.
        range: BusRange<A>,
        /// Who has it.
        owner: String,
        /// What they have.
        taken: BusRange<A>,
    },
    /// All 2^32 region ids were given out in the life of this bus.
    #[error("no {} region id is left: 4294967295 claims were made", A::BUS_NAME)]
    TooManyClaims,
    /// No region has this id (any more).
    #[error("{} region {id} does not exist (released already?)", A::BUS_NAME)]
    NoSuchRegion {
        /// The id.
        id: RegionId,
    },
    /// No region starts exactly here.
    #[error("no {} region starts at {start}", A::BUS_NAME)]
    NothingStartsAt {
        /// The address.
        start: A,
    },
    /// An ioeventfd whose last byte lies past the end of the address space.
    #[error("{} ioeventfd for {event} passes the end of the address space ({last})", A::BUS_NAME, last = A::LAST)]
    EventPastEnd {
        /// What was asked for.
        event: IoEvent<A>,
    },
    /// An ioeventfd for writes that another one takes.
    #[error("{} ioeventfd for {event} would take what another one takes: {taken}", A::BUS_NAME)]
    EventExists {
        /// What was asked for.
        event: IoEvent<A>,
        /// The one in the way.
        taken: IoEvent<A>,
    },
    /// No ioeventfd is equal to this one in address, matching and eventfd.
    #[error("no {} ioeventfd for {event} with this eventfd", A::BUS_NAME)]
    NoSuchEvent {
        /// What was asked for.
        event: IoEvent<A>,
    },
    /// The mirror (the kernel) refused.
    #[error("the host refused to {operation}: {source}")]
    Mirror {
        /// What was being done, with the range.
        operation: String,
        /// The host's reason.
        source: std::io::Error,
    },
}

impl<A: BusAddress> BusError<A> {
    /// What the kernel's own bus would answer: `EINVAL`, `EEXIST`, `ENOENT` or `ENOSPC`; for [`BusError::Mirror`] what it did.
    pub fn errno(&self) -> i32 {
        match self {
            Self::TooManyClaims => libc::ENOSPC,
            Self::BadRange { .. } | Self::EventPastEnd { .. } => libc::EINVAL,
            Self::Overlap { .. } | Self::EventExists { .. } => libc::EEXIST,
            Self::NoSuchRegion { .. } | Self::NothingStartsAt { .. } | Self::NoSuchEvent { .. } => libc::ENOENT,
            Self::Mirror { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}
