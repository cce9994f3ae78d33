//! The MMIO SPTE on every kind of host: bits equal to the kernel's, nothing lost, every walk over it faults, and
//! nothing else is ever taken for one.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use umbra_memslots::{Generation, Gfn};
use umbra_mmu::AccessMask;
use umbra_mmu::mmio::{Freshness, MmioFacts, MmioGen, MmioSpte};
use umbra_mmu::shadow::layout::{FROZEN, MMU_PRESENT};
use umbra_mmu::shadow::{BitSpan, CpuidResult, EntryFormat, GenerationSpans, HostParams, SpteLayout, link};

fn layout(host: HostParams) -> SpteLayout {
    SpteLayout::new(host).unwrap()
}

fn spte(layout: &SpteLayout, gfn: u64, access: u8, generation: u64) -> Option<MmioSpte> {
    let generation = MmioGen::cut(Generation::from_raw(generation), layout.generation_spans());
    MmioSpte::encode(
        layout,
        Gfn::new(gfn).unwrap(),
        AccessMask::from_masked(access),
        generation,
    )
}

/// Every host that makes a difference: all widths, both formats, L1TF for all widths, encryption.
fn every_layout() -> Vec<SpteLayout> {
    let mut hosts = Vec::new();
    for bits in 32..=52 {
        hosts.push(HostParams::x86(bits));
        hosts.push(HostParams::ept(bits));
        hosts.push(HostParams {
            format: EntryFormat::Ept { suppress_ve: true },
            ..HostParams::ept(bits)
        });
        hosts.push(HostParams::x86(bits).with_l1tf(bits));
        hosts.push(HostParams::ept(bits).with_l1tf(bits));
        if bits < 44 {
            hosts.push(HostParams::x86(bits).with_l1tf(44));
        }
        if bits > 32 {
            let leaf = CpuidResult {
                ebx: (bits - 1) | 1 << 6,
                ..CpuidResult::default()
            };
            hosts.push(HostParams::x86(bits).with_encryption(leaf));
        }
    }
    // The kernel's spans, those of Linux with mode-based execute control, and a tiny pair.
    let spans = [(3, 10, 52, 62), (3, 9, 52, 62), (5, 5, 60, 61)].map(|(a, b, c, d)| GenerationSpans {
        low: BitSpan::new(a, b).unwrap(),
        high: BitSpan::new(c, d).unwrap(),
    });
    hosts
        .iter()
        .flat_map(|host| spans.map(|spans| layout(host.with_generation(spans))))
        .collect()
}

/// Does a walk over this leaf entry end in a fault that says "reserved" (x86) or "misconfigured" (EPT)? From the
/// manuals, not from the crate.
fn faults_as_reserved(host: &HostParams, entry: u64) -> bool {
    match host.format {
        EntryFormat::X86 => {
            let c_bit = host.encryption_bit.map_or(0, |bit| 1 << bit);
            let reserved = ((1u64 << 52) - 1) & !((1u64 << host.physical_bits) - 1) & !c_bit;
            entry & 1 == 1 && entry & reserved != 0
        }
        EntryFormat::Ept { .. } => entry & 0b111 == 0b110,
    }
}

#[test]
fn entry_seen_in_the_kernels_trace_is_made_bit_for_bit() {
    // mark_mmio_spte: gfn d0000 access 7 gen 2; kvm_tdp_mmu_spte_changed: new_spte 80000d0000017.
    let layout = layout(HostParams::x86(48));
    let made = spte(&layout, 0xd0000, 7, 2).unwrap();
    assert_eq!(made.raw(), 0x0008_0000_d000_0017);
    let read = MmioSpte::recognise(&layout, 0x0008_0000_d000_0017)
        .unwrap()
        .facts(&layout);
    assert_eq!(
        (read.gfn.get(), read.access.bits(), read.generation.get()),
        (0xd0000, 6, 2)
    );
}

#[test]
fn entries_worked_out_by_hand_from_the_kernels_rules() {
    // Generation 0x7ffff: all of bits 10-3 and 62-52. No write, no user: only P of the low bits.
    assert_eq!(
        spte(&layout(HostParams::x86(48)), 1, 1, 0x7_ffff).unwrap().raw(),
        0x7ff8_0000_0000_17f9
    );
    // Generation 0x100 is the lowest bit of the high part.
    assert_eq!(
        spte(&layout(HostParams::x86(48)), 0, 0, 0x100).unwrap().raw(),
        0x0018_0000_0000_0001
    );
    // EPT keeps no access.
    assert_eq!(
        spte(&layout(HostParams::ept(48)), 0xfee00, 7, 3).unwrap().raw(),
        0x0000_0000_fee0_001e
    );
    // L1TF, 46 bits: bits 45-41 set, the true ones at 50-46. gpa 0x2a00_0000_1000 has bits 45, 43, 41.
    assert_eq!(
        spte(&layout(HostParams::x86(46).with_l1tf(46)), 0x2_a000_0001, 4, 0)
            .unwrap()
            .raw(),
        1 << 51 | 0b10101 << 46 | 0b11111 << 41 | 0x1000 | 0b101
    );
}

#[test]
fn every_access_and_edge_gfn_and_edge_generation_survives_on_every_host() {
    let mut made = 0u32;
    for layout in every_layout() {
        let host = *layout.host();
        let spans = layout.generation_spans();
        for gfn in (0..52)
            .flat_map(|bit| [(1u64 << bit) - 1, 1 << bit])
            .chain([Gfn::MAX.get()])
        {
            let gfn = Gfn::new(gfn).unwrap();
            for generation in (0..40).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit]) {
                let generation = MmioGen::cut(Generation::from_raw(generation), spans);
                for access in (0..8).map(AccessMask::from_masked) {
                    let Some(spte) = MmioSpte::encode(&layout, gfn, access, generation) else {
                        assert!(!layout.caches_mmio() || !layout.holds_gfn(gfn));
                        continue;
                    };
                    made += 1;
                    let kept = match host.format {
                        EntryFormat::X86 => access.without(AccessMask::EXEC),
                        EntryFormat::Ept { .. } => AccessMask::NONE,
                    };
                    assert_eq!(MmioSpte::recognise(&layout, spte.raw()), Some(spte));
                    assert_eq!(
                        spte.facts(&layout),
                        MmioFacts {
                            gfn,
                            access: kept,
                            generation
                        }
                    );
                    assert!(faults_as_reserved(&host, spte.raw()), "{spte:?} on {host:?}");
                    assert_eq!(spte.raw() & MMU_PRESENT, 0);
                    assert!(!layout.is_mmu_present(spte.raw()));
                    assert_eq!(link::target(&layout, spte.raw()), None);
                }
            }
        }
    }
    assert!(made > 1_000_000, "only {made} entries were made");
}

#[test]
fn hosts_hold_every_gfn_below_their_width() {
    for layout in every_layout().into_iter().filter(SpteLayout::caches_mmio) {
        let last = Gfn::new((1 << (layout.host().physical_bits - 12)) - 1).unwrap();
        assert!(layout.holds_gfn(last), "{last} on {:?}", layout.host());
    }
}

#[test]
fn links_empty_and_frozen_entries_are_never_taken_for_mmio() {
    for layout in every_layout() {
        let top = 1u64 << layout.host().physical_bits;
        for address in [0, 0x1000, top - 0x1000, top >> 1] {
            let entry = link::encode(&layout, address);
            assert_eq!(
                MmioSpte::recognise(&layout, entry),
                None,
                "{entry:#x} on {:?}",
                layout.host()
            );
            assert_eq!(link::target(&layout, entry), Some(address));
        }
        assert_eq!(MmioSpte::recognise(&layout, layout.empty()), None);
        assert_eq!(MmioSpte::recognise(&layout, FROZEN), None);
    }
}

#[test]
fn caching_off_neither_makes_nor_recognises() {
    let layout = layout(HostParams::x86(48).with_mmio_caching(false));
    assert_eq!(spte(&layout, 0xd0000, 7, 2), None);
    assert_eq!(MmioSpte::recognise(&layout, 0x0008_0000_d000_0017), None);
    assert_eq!(MmioSpte::recognise(&layout, 0), None);
}

#[test]
fn entry_made_during_an_update_is_stale_after_it() {
    let layout = layout(HostParams::x86(48));
    let before = Generation::from_raw(6);
    let during = before.begin_update();
    let after = during.finish_update(2);
    let spte = spte(&layout, 5, 7, during.get()).unwrap();
    assert_eq!(spte.check(&layout, during), Freshness::InProgress);
    assert_eq!(spte.check(&layout, after), Freshness::Stale);
    assert_eq!(spte.check(&layout, before), Freshness::Fresh);
}

fn any_layout() -> impl Strategy<Value = SpteLayout> {
    proptest::sample::select(every_layout())
}

proptest! {
    #[test]
    fn random_facts_survive(layout in any_layout(), gfn: u64, access in 0u8..8, generation: u64) {
        let gfn = gfn & ((layout.lower_gfn_mask() | layout.l1tf_mask()) >> 12);
        if let Some(spte) = spte(&layout, gfn, access, generation) {
            let facts = spte.facts(&layout);
            prop_assert_eq!(facts.gfn.get(), gfn);
            prop_assert_eq!(facts.generation, MmioGen::cut(Generation::from_raw(generation), layout.generation_spans()));
            prop_assert!(faults_as_reserved(layout.host(), spte.raw()));
        } else {
            prop_assert!(!layout.caches_mmio());
        }
    }

    #[test]
    fn any_word_that_is_recognised_would_fault_and_is_no_link(layout in any_layout(), word: u64) {
        if MmioSpte::recognise(&layout, word & !MMU_PRESENT).is_some() {
            prop_assert!(faults_as_reserved(layout.host(), word));
        }
    }

    #[test]
    fn fresh_means_equal_in_the_bits_that_fit(layout in any_layout(), made: u64, now: u64) {
        if let Some(spte) = spte(&layout, 1, 7, made) {
            let width = layout.generation_spans().width();
            let now = Generation::from_raw(now & !Generation::IN_PROGRESS);
            let equal = (made ^ now.number()) & ((1 << width) - 1) == 0;
            prop_assert_eq!(spte.check(&layout, now) == Freshness::Fresh, equal);
        }
    }
}
