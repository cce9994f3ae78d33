//! Random guests on shadow tables walked by the model of the hardware, compared after every access with walks of the
//! guest's own tables. A fault must be what the tables say now. An access that succeeds must go where the tables lead now,
//! or where they led at some time since this CPU last flushed the address (each entry for itself: that is what x86 allows
//! a TLB to know). The slots are those of now, whatever a TLB knows. Accessed and dirty flags are as the hardware sets
//! them.
//!
//! `UMBRA_ORACLE_STEPS` says how many steps are made; `UMBRA_ORACLE_SEED` repeats a run.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/machine.rs"]
mod machine;
#[path = "common/oracle.rs"]
mod oracle;
#[path = "common/stale.rs"]
mod stale;

use machine::{Machine, Seen, vcpu};
use oracle::{PAGES, Setting, Step, VCPUS, address, fill, registers, run, words};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use umbra_mmu::shadow::{DirtyLog, HostParams};
use umbra_mmu::x86::{Access, AccessKind, PagingMode, Privilege};

/// Guest entries: mostly to pages of the memory (tables among them) and to MMIO above it, mostly well-formed.
fn any_entry() -> impl Strategy<Value = u64> {
    let page = prop_oneof![14 => 0..PAGES, 3 => PAGES..PAGES + 4, 1 => Just(0x3_0000u64), 1 => Just(1u64 << 18), 1 => Just((1 << 18) + 512), 1 => Just((1 << 36) - 1)];
    let flags = prop_oneof![10 => Just(0x07u64), 4 => Just(0x67), 2 => Just(0x27), 3 => 0u64..0x200, 1 => Just(0x87), 2 => Just(0x05)];
    let key = prop_oneof![3 => Just(0u64), 1 => 0u64..16];
    let odd = prop_oneof![20 => Just(0u64), 1 => Just(1 << 63), 1 => (0u32..64).prop_map(|bit| 1 << bit)];
    (page, flags, key, odd).prop_map(|(page, flags, key, odd)| (page << 12 | flags | key << 59) ^ odd)
}

/// For 32-bit tables: two entries.
fn any_pair() -> impl Strategy<Value = u64> {
    (any_entry(), any_entry()).prop_map(|(low, high)| low & 0xffff_ffff | high << 32)
}

fn any_value(mode: u8) -> BoxedStrategy<u64> {
    if mode == 2 {
        any_pair().boxed()
    } else {
        any_entry().boxed()
    }
}

/// Words of a page that addresses lead to: some of the first in each quarter (only the first matters for 64-bit tables).
fn any_word(mode: u8) -> BoxedStrategy<u64> {
    if mode == 2 {
        (0u64..4, 0u64..2)
            .prop_map(|(quarter, word)| quarter * 128 + word)
            .boxed()
    } else {
        (0u64..3).boxed()
    }
}

fn any_step(mode: u8) -> impl Strategy<Value = Step> {
    let parts = || proptest::array::uniform6(0u64..3);
    let modes = prop_oneof![5 => Just(mode), 1 => 0u8..6];
    prop_oneof![
        60 => (0..VCPUS, parts(), 0usize..9, any_value(mode)).prop_map(|(vcpu, parts, access, value)| Step::Access { vcpu, parts, access, value }),
        8 => (0..PAGES, any_word(mode), any_value(mode)).prop_map(|(page, index, value)| Step::Device { page, index, value }),
        6 => (0..VCPUS, parts()).prop_map(|(vcpu, parts)| Step::Invlpg { vcpu, parts }),
        6 => (0..VCPUS, modes, 0..PAGES, any::<u64>(), any::<u32>())
            .prop_map(|(vcpu, mode, root, bits, pkru)| Step::Registers { vcpu, mode, root, bits, pkru }),
        4 => (0..VCPUS, 0u16..3, any::<bool>()).prop_map(|(vcpu, pcid, keep)| Step::LoadCr3 { vcpu, pcid, keep }),
        2 => (0..VCPUS, 0u8..3, 0u16..3, parts())
            .prop_map(|(vcpu, kind, pcid, parts)| Step::Invpcid { vcpu, kind, pcid, parts }),
        2 => (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(a, b, c)| Step::Slots {
            present: (a | b | c) & ((1 << PAGES) - 1),
            read_only: a & b & c & ((1 << PAGES) - 1),
        }),
        1 => prop_oneof![Just(DirtyLog::Off), Just(DirtyLog::WriteProtection), Just(DirtyLog::DirtyFlags)]
            .prop_map(Step::Log),
        3 => Just(Step::ReadLog),
        1 => Just(Step::Age),
        1 => Just(Step::ZapAll),
    ]
}

fn any_case() -> impl Strategy<Value = (u8, Vec<Step>, Vec<u64>)> {
    prop_oneof![1 => Just(0u8), 3 => Just(2), 3 => Just(3), 5 => Just(4), 2 => Just(5)].prop_flat_map(|mode| {
        let words = usize::try_from(PAGES).unwrap() * words(mode).len();
        let steps = proptest::collection::vec(any_step(mode), 1..150);
        (Just(mode), steps, proptest::collection::vec(any_value(mode), words))
    })
}

/// Steps of an ordinary test run, and of a case on average.
const STEPS: u64 = 25_000;
const STEPS_OF_A_CASE: u64 = 75;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn access_never_sees_what_no_tlb_could_know() {
    let steps = variable("UMBRA_ORACLE_STEPS").unwrap_or(STEPS);
    let seed = variable("UMBRA_ORACLE_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |now| u64::from(now.subsec_nanos()) ^ now.as_secs() << 20)
    });
    println!("UMBRA_ORACLE_STEPS={steps} UMBRA_ORACLE_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: u32::try_from(steps / STEPS_OF_A_CASE).unwrap(),
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let tables = prop_oneof![Just(16u32), Just(24), Just(200), Just(200)];
    let result = runner.run(
        &(
            any_case(),
            tables,
            any::<bool>(),
            prop_oneof![1 => Just(false), 2 => Just(true)],
            any::<bool>(),
            any::<bool>(),
            any::<bool>(),
        ),
        |((mode, steps, entries), tables, tiny, orderly, large, ahead, nested)| {
            let setting = Setting {
                tables,
                tiny,
                orderly,
                large,
                ahead,
                nested,
            };
            run(mode, steps, &entries, setting).map_err(TestCaseError::fail)
        },
    );
    if let Err(failure) = result {
        unreachable!("{failure}");
    }
}

#[test]
fn accesses_reach_every_outcome() {
    use proptest::strategy::ValueTree;
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut seen = [0u32; 6];
    for round in 0..60 {
        let mode = 2 + round % 4;
        let words = usize::try_from(PAGES).unwrap() * 8;
        let entries = proptest::collection::vec(any_value(mode), words)
            .new_tree(&mut runner)
            .unwrap()
            .current();
        let mut machine = Machine::new(HostParams::x86(46), PAGES, 64);
        fill(&machine, mode, &entries);
        machine.set_slots((1 << PAGES) - 1, 1 << 3);
        let regs = registers(&machine.ram, mode, 1, 0, 0);
        let mut own = vcpu(&regs);
        for index in 0..27u64 {
            let gva = address(PagingMode::of(&regs), [index % 3, index / 3 % 3, index / 9, 0, 0, 0]);
            for kind in [AccessKind::Read, AccessKind::Write] {
                let outcome = match machine.access(&mut own, &regs, gva, Access::new(kind, Privilege::User)) {
                    Seen::Ram(_) => 0,
                    Seen::Tracked(_) => 1,
                    Seen::ReadOnly(_) => 2,
                    Seen::Mmio(_) => 3,
                    Seen::Fault(code) => 4 + usize::from(code & 1 == 0),
                    Seen::NonCanonical => unreachable!("small indices"),
                };
                seen[outcome] += 1;
            }
        }
    }
    assert!(seen.iter().all(|&count| count > 15), "{seen:?}");
}
