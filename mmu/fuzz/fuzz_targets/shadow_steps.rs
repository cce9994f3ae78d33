//! Any guest and any steps of it on shadow tables: no access sees what x86's TLB rules forbid, and nothing leaks. The same
//! check runs as a property test (`tests/shadow_bytes.rs`).
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/common/fuzz_bytes.rs"]
mod fuzz_bytes;
#[path = "../../tests/common/machine.rs"]
mod machine;
#[path = "../../tests/common/oracle.rs"]
mod oracle;
#[path = "../../tests/common/stale.rs"]
mod stale;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_bytes::check_steps(bytes));
