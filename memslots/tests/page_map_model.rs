//! The page map against a list of assignments that is searched from the back.
#![expect(clippy::unwrap_used, reason = "test helpers fail by panicking")]

use proptest::prelude::*;
use umbra_memslots::{Gfn, GfnRange, PageMap};

/// One `insert` (with a value) or `remove` (without).
#[derive(Clone, Copy, Debug)]
struct Step {
    range: GfnRange,
    value: Option<u8>,
}

fn gfn(raw: u64) -> Gfn {
    Gfn::from_masked(raw)
}

/// What a frame has after `steps`: the last one that touches it decides.
fn naive_get(steps: &[Step], gfn: Gfn) -> Option<u8> {
    steps
        .iter()
        .rev()
        .find(|step| step.range.contains(gfn))
        .and_then(|step| step.value)
}

/// Frames at which the value can change, in order, each once.
fn edges(steps: &[Step]) -> Vec<u64> {
    let mut edges: Vec<u64> = steps
        .iter()
        .flat_map(|step| [step.range.start().get(), step.range.end_raw()])
        .collect();
    edges.sort_unstable();
    edges.dedup();
    edges
}

/// The runs of equal values, from the edges only: between two neighbouring edges nothing changes.
fn naive_runs(steps: &[Step]) -> Vec<(GfnRange, u8)> {
    let edges = edges(steps);
    let mut runs: Vec<(u64, u64, u8)> = Vec::new();
    for window in edges.windows(2) {
        let (start, end) = (window[0], window[1]);
        let Some(value) = naive_get(steps, gfn(start)) else {
            continue;
        };
        match runs.last_mut() {
            Some((_, last_end, last)) if *last_end == start && *last == value => *last_end = end,
            _ => runs.push((start, end, value)),
        }
    }
    runs.into_iter()
        .map(|(start, end, value)| (GfnRange::new(gfn(start), end - start).unwrap(), value))
        .collect()
}

/// Starts near the places where a radix tree can go wrong: the borders of its nodes on every level.
fn start() -> impl Strategy<Value = u64> {
    let border = prop_oneof![
        Just(0u64),
        Just(1 << 11),
        Just(1 << 12),
        Just(1 << 20),
        Just(3 << 20),
        Just(1 << 29),
        Just(1 << 51)
    ];
    (border, 0u64..40).prop_map(|(border, distance)| (border + distance).saturating_sub(20))
}

fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1u64..40, 2 => 2000u64..5000, 1 => (1u64 << 20) - 20..(1 << 20) + 20, 1 => Just(1u64 << 40)]
}

fn step() -> impl Strategy<Value = Step> {
    (start(), pages(), prop::option::weighted(0.7, 0u8..4)).prop_map(|(start, pages, value)| {
        let pages = pages.min(Gfn::MAX.get() + 1 - start);
        Step {
            range: GfnRange::new(gfn(start), pages).unwrap(),
            value,
        }
    })
}

fn apply(map: &mut PageMap<u8>, step: Step) {
    match step.value {
        Some(value) => map.insert(step.range, value),
        None => map.remove(step.range),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn map_after_any_steps_equals_the_list(steps in prop::collection::vec(step(), 1..24), kept in 0usize..24) {
        let mut map = PageMap::new();
        let mut old = None;
        for (number, &step) in steps.iter().enumerate() {
            apply(&mut map, step);
            if number == kept {
                old = Some(map.clone());
            }
        }
        prop_assert_eq!(map.runs().collect::<Vec<_>>(), naive_runs(&steps));
        for edge in edges(&steps) {
            for raw in edge.saturating_sub(1)..=(edge + 1).min(Gfn::MAX.get()) {
                let frame = gfn(raw);
                prop_assert_eq!(map.get(frame), naive_get(&steps, frame), "{}", frame);
                let next = naive_runs(&steps).into_iter().find(|(range, _)| range.end_raw() > raw);
                prop_assert_eq!(map.next_at_or_after(frame), next.map(|(range, value)| (range.start().max(frame), value)));
            }
        }
        if let Some(old) = old {
            prop_assert_eq!(old.runs().collect::<Vec<_>>(), naive_runs(&steps[..=kept]));
        }
    }

    #[test]
    fn removing_all_that_was_inserted_frees_all(steps in prop::collection::vec(step(), 1..16)) {
        let mut map = PageMap::new();
        for &step in &steps {
            apply(&mut map, step);
        }
        for &step in &steps {
            apply(&mut map, Step { value: None, ..step });
        }
        prop_assert!(map.is_empty());
        prop_assert_eq!(map.heap_bytes(), 0);
    }
}
