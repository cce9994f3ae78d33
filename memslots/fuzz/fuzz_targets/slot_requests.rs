//! Any sequence of requests: the slot table agrees with the naive one. The same check runs as a property test
//! (`tests/table_model.rs`).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| umbra_memslots::testing::check_request_bytes(bytes));
