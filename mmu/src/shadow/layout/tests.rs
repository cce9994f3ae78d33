//! Layouts of hosts that exist, and of some that can't.

use super::super::CpuidResult;
use super::*;
use crate::shadow::BitSpan;

fn layout(host: HostParams) -> SpteLayout {
    SpteLayout::new(host).unwrap()
}

#[test]
fn x86_host_below_52_bits_marks_with_bit_51_and_present() {
    for physical_bits in 32..52 {
        let layout = layout(HostParams::x86(physical_bits));
        assert_eq!(layout.mmio_value(), 0x8_0000_0000_0001);
        assert_eq!(layout.mmio_mask(), layout.mmio_value());
        assert_eq!(layout.mmio_access_mask(), 0b110);
        assert_eq!(layout.caching_off(), None);
    }
}

#[test]
fn x86_host_of_52_bits_has_no_reserved_bit_and_caching_is_off() {
    let layout = layout(HostParams::x86(52));
    assert_eq!(layout.mmio_value(), 0);
    assert_eq!(
        layout.caching_off(),
        Some(CachingOff::NoReservedBit { physical_bits: 52 })
    );
}

#[test]
fn ept_host_marks_with_writable_but_not_readable_whatever_its_width() {
    for physical_bits in 32..=52 {
        let layout = layout(HostParams::ept(physical_bits));
        assert_eq!(
            (layout.mmio_value(), layout.mmio_mask(), layout.mmio_access_mask()),
            (0b110, 0b111, 0)
        );
        assert!(layout.caches_mmio());
    }
    let with_ve = layout(HostParams {
        format: EntryFormat::Ept { suppress_ve: true },
        ..HostParams::ept(46)
    });
    assert_eq!(with_ve.mmio_mask(), 1 << 63 | 0b111);
    assert_eq!(with_ve.empty(), 1 << 63);
}

#[test]
fn l1tf_host_displaces_the_top_five_bits_of_its_cache() {
    let layout = layout(HostParams::x86(39).with_l1tf(44));
    assert_eq!(layout.l1tf_mask(), 0b1_1111 << 39);
    assert_eq!(layout.lower_gfn_mask(), bits(12, 38));
    assert_eq!(layout.l1tf_mask() << L1TF_DISPLACEMENT, 0b1_1111 << 44);
    assert!(layout.caches_mmio());
}

#[test]
fn l1tf_is_not_defended_against_where_five_more_bits_do_not_fit() {
    assert_ne!(layout(HostParams::x86(46).with_l1tf(46)).l1tf_mask(), 0);
    let wide = layout(HostParams::x86(47).with_l1tf(47));
    assert_eq!(wide.l1tf_mask(), 0);
    assert_eq!(wide.lower_gfn_mask(), bits(12, 46));
}

#[test]
fn encrypting_host_marks_with_all_bits_above_the_reduced_width() {
    // A 48-bit EPYC whose encryption takes 5 bits and uses bit 47.
    let leaf = CpuidResult {
        ebx: 47 | 5 << 6,
        ..CpuidResult::default()
    };
    let host = HostParams::x86(48).with_encryption(leaf);
    assert_eq!(host.physical_bits, 43);
    assert_eq!(layout(host).mmio_value(), bits(43, 51) | 1);
    // The C-bit right above the width is left out.
    let leaf = CpuidResult {
        ebx: 47 | 1 << 6,
        ..CpuidResult::default()
    };
    assert_eq!(
        layout(HostParams::x86(48).with_encryption(leaf)).mmio_value(),
        bits(48, 51) | 1
    );
    // Only the C-bit is above the width: nothing is reserved.
    let leaf = CpuidResult {
        ebx: 51 | 1 << 6,
        ..CpuidResult::default()
    };
    assert!(!layout(HostParams::x86(52).with_encryption(leaf)).caches_mmio());
}

#[test]
fn cpuid_gives_the_width_and_its_absence_means_36() {
    let modern = |leaf| match leaf {
        0x8000_0000 => CpuidResult {
            eax: 0x8000_0008,
            ..CpuidResult::default()
        },
        0x8000_0008 => CpuidResult {
            eax: 0x3930,
            ..CpuidResult::default()
        },
        _ => CpuidResult::default(),
    };
    assert_eq!(HostParams::from_cpuid(EntryFormat::X86, modern).physical_bits, 48);
    assert_eq!(
        HostParams::from_cpuid(EntryFormat::X86, |_| CpuidResult::default()).physical_bits,
        36
    );
}

#[test]
fn marks_that_cannot_work_switch_caching_off_and_say_why() {
    let host = HostParams::x86(48);
    let off = |host, value, mask| {
        SpteLayout::with_mmio_bits(host, value, mask, 0b110)
            .unwrap()
            .caching_off()
    };
    assert_eq!(
        off(host.with_mmio_caching(false), 1 << 51, 1 << 51),
        Some(CachingOff::ByOption)
    );
    assert!(matches!(
        off(host, 1 << 5, 1 << 5),
        Some(CachingOff::MaskNotAllowed { .. })
    ));
    assert!(matches!(
        off(host, 1 << 40, 1 << 40),
        Some(CachingOff::CollidesWithGfn { .. })
    ));
    assert!(matches!(
        off(host, 1 << 51 | 1, 1),
        Some(CachingOff::ValueOutsideMask { .. })
    ));
    assert!(matches!(
        off(host, 1 << 63, 1 << 63),
        Some(CachingOff::MatchesOther { pattern: FROZEN, .. })
    ));
    let l1tf = HostParams::x86(46).with_l1tf(46);
    assert!(matches!(
        off(l1tf, 1 << 50, 1 << 50),
        Some(CachingOff::CollidesWithDisplaced { .. })
    ));
    assert_eq!(off(l1tf, 1 << 51, 1 << 51), None);
}

#[test]
fn host_that_cannot_be_is_an_error() {
    assert!(matches!(
        SpteLayout::new(HostParams::x86(31)),
        Err(LayoutError::Width { bits: 31, .. })
    ));
    assert!(matches!(
        SpteLayout::new(HostParams::x86(53)),
        Err(LayoutError::Width { bits: 53, .. })
    ));
    assert!(matches!(
        SpteLayout::new(HostParams::x86(46).with_l1tf(60)),
        Err(LayoutError::Width { bits: 60, .. })
    ));
    let on_the_gfn = GenerationSpans {
        low: BitSpan::new(3, 12).unwrap(),
        high: BitSpan::new(52, 62).unwrap(),
    };
    let host = HostParams::x86(46).with_generation(on_the_gfn);
    assert!(matches!(
        SpteLayout::new(host),
        Err(LayoutError::GenerationSpans { .. })
    ));
}
