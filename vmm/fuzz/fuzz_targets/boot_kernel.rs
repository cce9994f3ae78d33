//! Any bytes as a kernel image: bzImage, ELF, PVH, multiboot1.
#![no_main]

#[path = "../../tests/boot_support/mod.rs"]
mod boot_support;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| boot_support::fuzz_bodies::load_kernel(bytes));
