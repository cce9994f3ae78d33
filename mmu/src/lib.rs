//! The MMU: MMIO SPTEs, direct and shadow tables, guest walks.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;
