//! The bus against a naive one, over random histories.
#![cfg(not(loom))]

use proptest::prelude::*;
use umbra_devices::testing::bus_model::{BusPair, BusStep};
use umbra_devices::testing::fuzz;
use umbra_devices::{BusAddress, IoOp, IoSize, Port};
use umbra_memslots::Gpa;

/// Numbers near the places where regions begin and end, so that ranges often touch, cross and miss by one.
fn edge() -> impl Strategy<Value = u64> {
    let place = prop_oneof![
        Just(0u64),
        (0u64..8).prop_map(|page| page << 12),
        (0u64..40).prop_map(|page| page << 12),
        (12u32..64).prop_map(|bit| 1 << bit),
        (0u64..0x400).prop_map(|port| port),
        Just(u64::MAX),
    ];
    (place, -9i64..9).prop_map(|(place, by)| place.wrapping_add_signed(by))
}

fn size() -> impl Strategy<Value = IoSize> {
    prop::sample::select(IoSize::ALL.as_slice())
}

fn step() -> impl Strategy<Value = BusStep> {
    prop_oneof![
        3 => (edge(), edge()).prop_map(|(start, len)| BusStep::Claim { start, len }),
        3 => (edge(), 1u64..0x30).prop_map(|(start, len)| BusStep::Claim { start, len }),
        1 => any::<usize>().prop_map(|region| BusStep::Release { region }),
        2 => (any::<usize>(), edge()).prop_map(|(region, to)| BusStep::Move { region, to }),
        8 => (edge(), size()).prop_map(|(addr, size)| BusStep::Access { addr, size, op: IoOp::Read }),
        2 => (edge(), size(), any::<u64>())
            .prop_map(|(addr, size, value)| BusStep::Access { addr, size, op: IoOp::Write(value) }),
    ]
}

fn run<A: BusAddress>(steps: Vec<BusStep>) {
    let mut pair = BusPair::<A>::default();
    for step in steps {
        pair.step(step);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn mmio_bus_equals_the_naive_one(steps in prop::collection::vec(step(), 1..80)) {
        run::<Gpa>(steps);
    }

    #[test]
    fn pio_bus_equals_the_naive_one(steps in prop::collection::vec(step(), 1..80)) {
        run::<Port>(steps);
    }

    #[test]
    fn bus_fuzz_body_holds(data in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz::bus::<Gpa>(&data);
        fuzz::bus::<Port>(&data);
    }
}

/// Many small regions in few pages, wide strides, and everything accessed at its edges.
#[test]
fn dense_and_scattered_layouts_equal_the_naive_bus() {
    for (stride, len, regions) in [
        (1, 1, 300),
        (8, 5, 300),
        (0x200, 0x200, 100),
        (0x1000, 0x1000, 60),
        (3 << 20, 0x801, 60),
    ] {
        let mut pair = BusPair::<Gpa>::default();
        for region in 0..regions {
            pair.step(BusStep::Claim {
                start: 0xc000_0000 + region * stride,
                len,
            });
        }
        for region in 0..regions {
            for offset in [0, 1, len / 2, len - 1, len, stride - 1] {
                for size in IoSize::ALL {
                    let addr = 0xc000_0000 + region * stride + offset;
                    pair.step(BusStep::Access {
                        addr,
                        size,
                        op: IoOp::Read,
                    });
                }
            }
        }
    }
}
