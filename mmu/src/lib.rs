//! The MMU: MMIO SPTEs and direct tables.
//!
//! Read in this order: [`access_mask`] (permissions), [`shadow`] (the bits of an entry), [`mmio`] (how an entry says
//! "MMIO"), [`tables`] (where entries are kept), [`direct`] (the tables that answer by gfn, and the answer),
//! [`observer`] (who is told).
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod access_mask;
pub mod direct;
pub mod mmio;
pub mod observer;
pub mod shadow;
mod sync;
pub mod tables;

pub use access_mask::AccessMask;
pub use observer::{MmuObserver, NoObserver};

// The README's example is compiled and run like any other test.
#[cfg(all(doctest, feature = "std"))]
#[doc = include_str!("../README.md")]
struct Readme;
