//! Any tables, registers and accesses: the guest walker agrees with the model of the hardware. The same check runs as a
//! property test (`tests/guest_walk.rs`).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| umbra_mmu::testing::check_walk_bytes(bytes));
