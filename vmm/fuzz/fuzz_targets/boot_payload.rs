//! Any bytes as a bzImage's payload: the decompressors, and the ELF file that comes out of them.
#![no_main]

#[path = "../../tests/boot_support/mod.rs"]
mod boot_support;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| boot_support::fuzz_bodies::load_payload(bytes));
