//! Guest memory slots, with the rules of Linux KVM.
//!
//! Read in this order: [`addr`] and [`range`] (the vocabulary every other Umbra crate speaks).
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod addr;
pub mod range;

pub use addr::{Gfn, Gpa, Gva, Hva, PAGE_SHIFT, PAGE_SIZE};
pub use range::GfnRange;
