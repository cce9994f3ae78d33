//! Guest memory slots, with the rules of Linux KVM.
//!
//! Read in this order: [`addr`] and [`range`] (the vocabulary every other Umbra crate speaks), [`slot`], [`generation`]
//! and [`snapshot`] (what a reader sees), [`publish`] and [`page_map`] (how it gets there and how it is fast; also used
//! by other crates), [`limits`], [`request`] and [`error`] (what may change), [`table`] and [`observer`] (how a change
//! is made and who hears of it), [`dirty`], [`backing`] and [`guest_memory`] (the contents),
//! `ram` (real memory, with feature `std`).
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod addr;
#[expect(
    unsafe_code,
    reason = "declares the promise that a slot's host memory can be accessed"
)]
pub mod backing;
pub mod dirty;
pub mod error;
pub mod generation;
pub mod guest_memory;
#[expect(unsafe_code, reason = "follows host addresses that a backing vouches for")]
mod host_access;
mod hva_tree;
mod id_pool;
pub mod limits;
pub mod observer;
pub mod page_map;
pub mod publish;
#[cfg(feature = "std")]
pub mod ram;
pub mod range;
pub mod reader;
pub mod request;
mod rules;
pub mod slot;
mod slot_leaf;
mod slot_memory;
mod slot_store;
pub mod snapshot;
mod sync;
pub mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use addr::{Gfn, Gpa, Gva, Hva, PAGE_SHIFT, PAGE_SIZE};
pub use backing::Backing;
pub use dirty::DirtyBitmap;
pub use error::{DirtyLogError, Errno, SlotError};
pub use generation::Generation;
pub use guest_memory::{EntrySize, Exchange, GuestMemory, MemoryFault};
pub use limits::{DirtyLogMode, SlotLimits};
pub use observer::{ObserverError, SlotObserver};
pub use page_map::PageMap;
pub use publish::{Published, Reader};
#[cfg(feature = "std")]
pub use ram::{DeviceMemory, DeviceRam, GuestRam, HostMapping, MappingError};
pub use range::GfnRange;
pub use reader::SlotReader;
pub use request::{Applied, SlotChange, SlotRequest};
pub use slot::{AddressSpaceId, GuestMemfd, MemSlot, SlotFlags, SlotId};
pub use snapshot::Memslots;
pub use table::{NewSlot, SlotTable};

#[cfg(all(doctest, feature = "std"))]
#[doc = include_str!("../README.md")]
struct Readme;
