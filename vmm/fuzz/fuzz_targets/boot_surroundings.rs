//! A kernel, an initrd and a command line out of the same bytes.
#![no_main]

#[path = "../../tests/boot_support/mod.rs"]
mod boot_support;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| boot_support::fuzz_bodies::load_with_surroundings(bytes));
