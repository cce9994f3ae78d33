//! Histories of claims, moves, releases and accesses, against a naive bus.
#![no_main]

use libfuzzer_sys::fuzz_target;
use umbra_devices::Port;
use umbra_devices::testing::fuzz;
use umbra_memslots::Gpa;

fuzz_target!(|data: &[u8]| {
    fuzz::bus::<Gpa>(data);
    fuzz::bus::<Port>(data);
});
