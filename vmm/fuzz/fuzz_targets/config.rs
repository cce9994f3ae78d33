//! Any bytes as a configuration file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| umbra_vmm::config::fuzz_body(bytes));
