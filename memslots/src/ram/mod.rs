//! Real guest memory (feature `std`): host mappings, slots over them, and the traits of vm-memory.
//!
//! * [`HostMapping`] is host memory of some kind: anonymous, memfd, huge pages, a file.
//! * [`GuestRam`] is a [`SlotTable`](crate::SlotTable) that any thread may change, with slots over such mappings.
//! * A [`Memslots`](crate::Memslots) snapshot *is* a `vm_memory` guest memory ([`view`]), so `&*ram.snapshot()` goes to
//!   linux-loader and virtio-queue as it is; [`DeviceMemory`] is the same with read-only slots refused to writers.

mod device_memory;
mod guest_ram;
mod mapping;
#[expect(unsafe_code, reason = "promises that a host mapping can be accessed")]
mod mapping_backing;
pub mod view;

pub use device_memory::{DeviceMemory, DeviceMemoryGuard, DeviceRam};
pub use guest_ram::GuestRam;
pub use mapping::{HostMapping, HugePageSize, MappingError, Sharing, Source};
