//! What the software CPU says it is. It announces what it can do, and nothing else.

use super::pvclock;

/// Physical address bits.
pub(super) const PHYSICAL_BITS: u32 = 46;
/// Linear address bits.
const LINEAR_BITS: u32 = 48;
/// Twelve letters: EBX, EDX, ECX of leaf 0.
const VENDOR: [u8; 12] = *b"UmbraSoftCPU";
/// Forty-eight letters of leaves 0x80000002 to 0x80000004.
const BRAND: [u8; 48] = *b"Umbra software CPU, x86-64\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// Time-stamp counter and core clock in Hz: the counter counts nanoseconds.
pub(super) const TSC_HZ: u32 = 1_000_000_000;

/// Leaf 1 EDX: TSC, MSR, PAE, CX8, SEP, PSE, PGE, CMOV, PAT, PSE-36, CLFSH, DE, FPU, MMX,
/// FXSR, SSE, SSE2.
const BASIC_EDX: u32 = 1
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 11
    | 1 << 13
    | 1 << 15
    | 1 << 16
    | 1 << 17
    | 1 << 19
    | 1 << 23
    | 1 << 24
    | 1 << 25
    | 1 << 26;
/// Leaf 1 ECX: SSE3, SSSE3, CMPXCHG16B, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, HYPERVISOR.
const BASIC_ECX: u32 = 1 | 1 << 9 | 1 << 13 | 1 << 17 | 1 << 19 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 31;
/// Leaf 7 EBX: FSGSBASE, TSC_ADJUST, SMEP, fast string operations, INVPCID, SMAP, CLFLUSHOPT, CLWB.
const STRUCTURED_EBX: u32 = 1 | 1 << 1 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 20 | 1 << 23 | 1 << 24;
/// Leaf 7 ECX: UMIP, RDPID.
const STRUCTURED_ECX: u32 = 1 << 2 | 1 << 22;
/// Leaf 0x80000001 EDX: SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
const EXTENDED_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
/// Leaf 0x80000001 ECX: LAHF in 64-bit mode, LZCNT, PREFETCHW.
const EXTENDED_ECX: u32 = 1 | 1 << 5 | 1 << 8;
/// Family 6, model 0, stepping 0.
pub(super) const SIGNATURE: u32 = 0x600;

/// EAX, EBX, ECX, EDX.
pub(super) fn answer(leaf: u32, subleaf: u32) -> [u32; 4] {
    let word = |bytes: &[u8], at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&bytes[at..at + 4]);
        u32::from_le_bytes(word)
    };
    match (leaf, subleaf) {
        (0, _) => [0x16, word(&VENDOR, 0), word(&VENDOR, 8), word(&VENDOR, 4)],
        // EBX: one logical CPU, lines of 64 bytes for CLFLUSH.
        (1, _) => [SIGNATURE, 1 << 16 | 8 << 8, BASIC_ECX, BASIC_EDX],
        (7, 0) => [0, STRUCTURED_EBX, STRUCTURED_ECX, 0],
        (0x15, _) => [1, 1, TSC_HZ, 0],
        (0x16, _) => [TSC_HZ / 1_000_000, TSC_HZ / 1_000_000, 100, 0],
        (0x4000_0000, _) => {
            let letters = |at| word(&pvclock::SIGNATURE, at);
            [0x4000_0001, letters(0), letters(4), letters(8)]
        }
        (0x4000_0001, _) => [pvclock::FEATURES, 0, 0, 0],
        (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
        (0x8000_0001, _) => [SIGNATURE, 0, EXTENDED_ECX, EXTENDED_EDX],
        (0x8000_0002..=0x8000_0004, _) => {
            let at = 16 * (leaf - 0x8000_0002) as usize;
            [0, 4, 8, 12].map(|word_at| word(&BRAND, at + word_at))
        }
        // EDX: the time-stamp counter always runs at the same rate.
        (0x8000_0007, _) => [0, 0, 0, 1 << 8],
        (0x8000_0008, _) => [PHYSICAL_BITS | LINEAR_BITS << 8, 0, 0, 0],
        _ => [0; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_its_name_and_its_widths() {
        let [_, b, c, d] = answer(0, 0);
        assert_eq!([b, d, c].map(u32::to_le_bytes).as_flattened(), VENDOR);
        assert_eq!(answer(0x8000_0008, 0)[0], 0x302e);
        assert_eq!(
            answer(0x8000_0002, 0).map(u32::to_le_bytes).as_flattened(),
            &BRAND[..16]
        );
        assert_eq!(answer(0x1234, 0), [0; 4]);
    }

    #[test]
    fn it_is_an_x86_64_v2() {
        let [_, _, c, d] = answer(1, 0);
        let [_, _, extended_c, extended_d] = answer(0x8000_0001, 0);
        let fpu_tsc_msr_cx8_cmov_mmx_fxsr_sse_sse2 = 0x0780_8131;
        assert_eq!(
            d & fpu_tsc_msr_cx8_cmov_mmx_fxsr_sse_sse2,
            fpu_tsc_msr_cx8_cmov_mmx_fxsr_sse_sse2
        );
        let sse3_ssse3_cx16_sse41_sse42_popcnt = 0x0098_2201;
        assert_eq!(
            c & sse3_ssse3_cx16_sse41_sse42_popcnt,
            sse3_ssse3_cx16_sse41_sse42_popcnt
        );
        let (lahf, syscall_nx_long) = (1, 0x2010_0800);
        assert_eq!(
            (extended_c & lahf, extended_d & syscall_nx_long),
            (lahf, syscall_nx_long)
        );
    }
}
