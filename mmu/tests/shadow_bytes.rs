//! The body of the fuzz target `shadow_steps`, on bytes that nobody chose.
#![cfg(not(loom))]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test that draws numbers and cuts them to size"
)]

mod common;
#[path = "common/fuzz_bytes.rs"]
mod fuzz_bytes;
#[path = "common/machine.rs"]
mod machine;
#[path = "common/oracle.rs"]
mod oracle;
#[path = "common/stale.rs"]
mod stale;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_guest_that_sees_only_what_it_may(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
        fuzz_bytes::check_steps(&bytes);
    }
}

#[test]
fn no_bytes_are_a_guest_that_does_nothing() {
    fuzz_bytes::check_steps(&[]);
}
