//! Why a [`HostMapping`] may back a slot. Apart, because the promise is `unsafe` to make.

use super::mapping::HostMapping;
use crate::addr::Hva;
use crate::backing::Backing;

// SAFETY: the mapping is made by mmap without MAP_FIXED, readable and writable, and unmapped by the drop of the
// `MmapRegion` that `HostMapping` owns and never gives out; its address and size are fixed; it hands out no reference
// into the memory. Files are checked to be long enough; memfds are sealed.
unsafe impl Backing for HostMapping {
    fn start(&self) -> Hva {
        HostMapping::start(self)
    }

    fn bytes(&self) -> u64 {
        HostMapping::bytes(self)
    }
}
