#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| umbra_vcpu::soft::fuzz::fuzz_body(bytes));
