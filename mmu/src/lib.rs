//! The MMU: MMIO SPTEs, direct tables, shadow tables, and walks over a guest's page tables.
//!
//! Read in this order: [`access_mask`] (permissions), [`shadow`] (the bits of an entry), [`mmio`] (how an entry says
//! "MMIO"), [`tables`] (where entries are kept), [`direct`] (the tables that answer by gfn, and the answer),
//! [`nested`] (guests that are hypervisors), [`observer`] (who is told). Apart from these: [`x86`] (facts about paging) and [`guest_walk`] (a guest's own tables);
//! `gva_memory` is that as a `vm_memory` guest memory, and
//! [`inspect`] lists tables for people.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod access_mask;
pub mod direct;
pub mod guest_walk;
#[cfg(feature = "std")]
pub mod gva_memory;
pub mod hw_model;
pub mod inspect;
pub mod mmio;
pub mod nested;
pub mod observer;
mod pool;
pub mod shadow;
mod sync;
pub mod tables;
#[cfg(feature = "testing")]
#[expect(clippy::panic, reason = "a check that fails must panic")]
pub mod testing;
pub mod x86;

pub use access_mask::AccessMask;
pub use observer::{MmuObserver, NoObserver};

// The README's example is compiled and run like any other test.
#[cfg(all(doctest, feature = "std"))]
#[doc = include_str!("../README.md")]
struct Readme;
