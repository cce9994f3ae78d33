//! Any bytes as guest code and state, in every mode.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| umbra_vcpu::emulate::fuzz::fuzz_body(bytes));
