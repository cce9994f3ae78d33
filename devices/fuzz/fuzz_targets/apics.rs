//! Histories of interrupts among local APICs, held against naive ones.
#![no_main]

use libfuzzer_sys::fuzz_target;
use umbra_devices::testing::fuzz;

fuzz_target!(|data: &[u8]| fuzz::apics(data));
