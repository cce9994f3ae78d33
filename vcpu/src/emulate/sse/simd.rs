//! What an x86-64 host has instructions for: what `lanes` and `shuffle` say one lane at a time, and the parts of a register.
//!
//! A value of 128 bits stays in one of the host's vector registers from where it is read to where it is written. In two
//! halves it would cost more than any operation, and more again where it is read as a whole soon after.

use super::lanes::{Binary, ByCount};
use super::shuffle::{Pick, Shuffle};
use iced_x86::Mnemonic as M;
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::transmute;
use std::sync::atomic::{AtomicBool, Ordering};

/// As the host's instructions take it.
#[inline(always)]
pub(super) const fn vector(bits: u128) -> __m128i {
    // SAFETY: both are 16 bytes, of which any will do.
    unsafe { transmute::<u128, __m128i>(bits) }
}

/// As the state has it.
#[inline(always)]
pub(super) const fn bits(vector: __m128i) -> u128 {
    // SAFETY: as in `vector`.
    unsafe { transmute::<__m128i, u128>(vector) }
}

/// Defines functions of instructions that every host has.
macro_rules! baseline {
    ($($(#[$doc:meta])* fn $name:ident($($operand:ident: $kind:ty),*) -> $result:ty $body:block)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name($($operand: $kind),*) -> $result {
            #[inline]
            #[target_feature(enable = "sse2")]
            fn by_host($($operand: $kind),*) -> $result $body
            // SAFETY: SSE2 is part of x86-64.
            unsafe { by_host($($operand),*) }
        }
    )*};
}
pub(super) use baseline;

/// The host's own way to compute each lane from the two at its place, if it has one.
pub(super) const fn lanes(mnemonic: M) -> Option<Binary> {
    macro_rules! choose {
        ($($($mnemonic:ident)|+ => $instruction:expr,)*) => {
            match mnemonic {
                $($(M::$mnemonic)|+ => |a, b| {
                    baseline! { fn operation(a: __m128i, b: __m128i) -> __m128i { $instruction(a, b) } }
                    bits(operation(vector(a), vector(b)))
                },)*
                _ => return None,
            }
        };
    }
    let operation: Binary = choose! {
        Pand | Andps | Andpd => _mm_and_si128,
        Pandn | Andnps | Andnpd => _mm_andnot_si128,
        Por | Orps | Orpd => _mm_or_si128,
        Pxor | Xorps | Xorpd => _mm_xor_si128,
        Paddb => _mm_add_epi8,
        Paddw => _mm_add_epi16,
        Paddd => _mm_add_epi32,
        Paddq => _mm_add_epi64,
        Psubb => _mm_sub_epi8,
        Psubw => _mm_sub_epi16,
        Psubd => _mm_sub_epi32,
        Psubq => _mm_sub_epi64,
        Paddsb => _mm_adds_epi8,
        Paddsw => _mm_adds_epi16,
        Paddusb => _mm_adds_epu8,
        Paddusw => _mm_adds_epu16,
        Psubsb => _mm_subs_epi8,
        Psubsw => _mm_subs_epi16,
        Psubusb => _mm_subs_epu8,
        Psubusw => _mm_subs_epu16,
        Pcmpeqb => _mm_cmpeq_epi8,
        Pcmpeqw => _mm_cmpeq_epi16,
        Pcmpeqd => _mm_cmpeq_epi32,
        Pcmpgtb => _mm_cmpgt_epi8,
        Pcmpgtw => _mm_cmpgt_epi16,
        Pcmpgtd => _mm_cmpgt_epi32,
        Pminub => _mm_min_epu8,
        Pmaxub => _mm_max_epu8,
        Pminsw => _mm_min_epi16,
        Pmaxsw => _mm_max_epi16,
        Pavgb => _mm_avg_epu8,
        Pavgw => _mm_avg_epu16,
        Pmullw => _mm_mullo_epi16,
        Pmulhw => _mm_mulhi_epi16,
        Pmulhuw => _mm_mulhi_epu16,
        Pmulld => multiply,
        Pmuludq => _mm_mul_epu32,
        Pmaddwd => _mm_madd_epi16,
        Psadbw => _mm_sad_epu8,
    };
    Some(operation)
}

/// `pmulld`, which came later than SSE2: the even lanes' products and the odd ones', without their upper halves.
#[inline]
#[target_feature(enable = "sse2")]
fn multiply(a: __m128i, b: __m128i) -> __m128i {
    let even = _mm_mul_epu32(a, b);
    let odd = _mm_mul_epu32(_mm_srli_epi64::<32>(a), _mm_srli_epi64::<32>(b));
    _mm_unpacklo_epi32(_mm_shuffle_epi32::<0b1000>(even), _mm_shuffle_epi32::<0b1000>(odd))
}

/// The host's own way to shift every lane by one count, if it has one.
pub(super) const fn shift(mnemonic: M) -> Option<ByCount> {
    macro_rules! choose {
        (($a:ident, $count:ident) $($mnemonic:ident => $result:expr,)*) => {
            match mnemonic {
                $(M::$mnemonic => |a, count| {
                    baseline! { fn operation($a: __m128i, $count: i64) -> __m128i { $result } }
                    bits(operation(vector(a), count.into()))
                },)*
                _ => return None,
            }
        };
    }
    let operation: ByCount = choose! {
        (a, count)
        Psllw => _mm_sll_epi16(a, amount(count)),
        Pslld => _mm_sll_epi32(a, amount(count)),
        Psllq => _mm_sll_epi64(a, amount(count)),
        Psrlw => _mm_srl_epi16(a, amount(count)),
        Psrld => _mm_srl_epi32(a, amount(count)),
        Psrlq => _mm_srl_epi64(a, amount(count)),
        Psraw => _mm_sra_epi16(a, amount(count)),
        Psrad => _mm_sra_epi32(a, amount(count)),
        Pslldq => up(a, 8 * count),
        Psrldq => down(a, 8 * count),
    };
    Some(operation)
}

/// A count where shifts look for it: a negative one is as large as one can be.
#[inline]
#[target_feature(enable = "sse2")]
fn amount(count: i64) -> __m128i {
    _mm_cvtsi64_si128(count)
}

/// The whole register shifted up by `count` bits. Nothing is left if that is negative, or 128 or more.
#[inline]
#[target_feature(enable = "sse2")]
fn up(a: __m128i, count: i64) -> __m128i {
    // Each of the shifts gives zero where it has no part in the result.
    let low = _mm_slli_si128::<8>(a);
    let carried = _mm_or_si128(
        _mm_sll_epi64(low, amount(count - 64)),
        _mm_srl_epi64(low, amount(64 - count)),
    );
    _mm_or_si128(_mm_sll_epi64(a, amount(count)), carried)
}

/// Likewise down.
#[inline]
#[target_feature(enable = "sse2")]
fn down(a: __m128i, count: i64) -> __m128i {
    let high = _mm_srli_si128::<8>(a);
    let carried = _mm_or_si128(
        _mm_srl_epi64(high, amount(count - 64)),
        _mm_sll_epi64(high, amount(64 - count)),
    );
    _mm_or_si128(_mm_srl_epi64(a, amount(count)), carried)
}

/// The host's own way to shuffle, if it has one.
pub(super) const fn shuffle(mnemonic: M) -> Option<Shuffle> {
    macro_rules! choose {
        (($a:ident, $b:ident, $control:ident) $($($mnemonic:ident)|+ => $result:expr,)*) => {
            match mnemonic {
                $($(M::$mnemonic)|+ => |a, b, control| {
                    baseline! {
                        fn operation($a: __m128i, $b: __m128i, $control: u8) -> __m128i {
                            // Not every one looks at all of them.
                            let _ = ($a, $b, $control);
                            $result
                        }
                    }
                    bits(operation(vector(a), vector(b), control))
                },)*
                _ => return None,
            }
        };
    }
    let operation: Shuffle = choose! {
        (a, b, control)
        Punpcklbw => _mm_unpacklo_epi8(a, b),
        Punpcklwd => _mm_unpacklo_epi16(a, b),
        Punpckldq | Unpcklps => _mm_unpacklo_epi32(a, b),
        Punpcklqdq | Unpcklpd => _mm_unpacklo_epi64(a, b),
        Punpckhbw => _mm_unpackhi_epi8(a, b),
        Punpckhwd => _mm_unpackhi_epi16(a, b),
        Punpckhdq | Unpckhps => _mm_unpackhi_epi32(a, b),
        Punpckhqdq | Unpckhpd => _mm_unpackhi_epi64(a, b),
        Packsswb => _mm_packs_epi16(a, b),
        Packuswb => _mm_packus_epi16(a, b),
        Packssdw => _mm_packs_epi32(a, b),
        Palignr => aligned(a, b, 8 * i64::from(control)),
    };
    Some(operation)
}

/// Whether the host is known to have `pshufb`.
static CAN_PICK: AtomicBool = AtomicBool::new(false);

/// Looks whether the host can do what [`pick`] says. Until it has been found so, no function of that does anything.
pub(crate) fn can_pick() -> bool {
    let can = is_x86_feature_detected!("ssse3");
    CAN_PICK.store(can, Ordering::Relaxed);
    can
}

/// Shuffles whose order the host takes from a register.
pub(crate) const fn pick(mnemonic: M) -> Option<Pick> {
    macro_rules! choose {
        (($a:ident, $b:ident, $control:ident) $($mnemonic:ident => $result:expr,)*) => {
            match mnemonic {
                $(M::$mnemonic => |a, b, control| {
                    baseline! {
                        fn operation($a: __m128i, $b: __m128i, $control: u8) -> Option<__m128i> {
                            // Not every one looks at all of them.
                            let _ = ($a, $b, $control);
                            $result
                        }
                    }
                    operation(vector(a), vector(b), control).map(bits)
                },)*
                _ => return None,
            }
        };
    }
    let operation: Pick = choose! {
        (a, b, control)
        Pshufb => bytes(a, b),
        Pshufd => quarters(b, control),
        Pshuflw => bytes(b, _mm_set_epi64x(0x0f0e_0d0c_0b0a_0908, words(control))),
        Pshufhw => bytes(b, _mm_set_epi64x(words(control) + 0x0808_0808_0808_0808, 0x0706_0504_0302_0100)),
        Shufps => Some(low_and_high(quarters(a, control)?, quarters(b, control)?)),
        Shufpd => Some(low_and_high(quarters(a, halves(control))?, quarters(b, halves(control >> 1))?)),
    };
    Some(operation)
}

/// `pshufb`, if the host has it.
#[inline]
#[target_feature(enable = "sse2")]
fn bytes(a: __m128i, order: __m128i) -> Option<__m128i> {
    if !CAN_PICK.load(Ordering::Relaxed) {
        return None;
    }
    let mut result = a;
    // SAFETY: the host has SSSE3, as was found before; the instruction changes nothing but its first register.
    unsafe {
        asm!("pshufb {0}, {1}", inout(xmm_reg) result, in(xmm_reg) order, options(pure, nomem, nostack, preserves_flags));
    }
    Some(result)
}

/// `pshufd`.
#[inline]
#[target_feature(enable = "sse2")]
fn quarters(a: __m128i, order: u8) -> Option<__m128i> {
    bytes(a, vector(QUARTERS[usize::from(order)]))
}

/// The order of quarters that takes the high half twice if bit 0 says so, or the low one.
const fn halves(which: u8) -> u8 {
    if which & 1 != 0 { 0xee } else { 0x44 }
}

/// The low half of one and the high half of the other.
#[inline]
#[target_feature(enable = "sse2")]
fn low_and_high(a: __m128i, b: __m128i) -> __m128i {
    _mm_castpd_si128(_mm_move_sd(_mm_castsi128_pd(b), _mm_castsi128_pd(a)))
}

/// The bytes of the four low words in this order.
#[inline(always)]
fn words(order: u8) -> i64 {
    WORDS[usize::from(order)] as i64
}

/// 128 bits of both operands, side by side, from bit `count` on.
#[inline]
#[target_feature(enable = "sse2")]
fn aligned(high: __m128i, low: __m128i, count: i64) -> __m128i {
    _mm_or_si128(
        down(low, count),
        _mm_or_si128(up(high, 128 - count), down(high, count - 128)),
    )
}

/// For each order of four lanes of `bytes` bytes, which bytes that is.
const fn orders(bytes: u128) -> [u128; 256] {
    let mut orders = [0; 256];
    let mut order = 0;
    while order < 256 {
        let mut byte = 0;
        while byte < 4 * bytes {
            let lane = order as u128 >> (2 * (byte / bytes)) & 3;
            orders[order] |= (lane * bytes + byte % bytes) << (8 * byte);
            byte += 1;
        }
        order += 1;
    }
    orders
}

static QUARTERS: [u128; 256] = orders(4);
static WORDS: [u64; 256] = {
    let wide = orders(2);
    let mut words = [0; 256];
    let mut order = 0;
    while order < 256 {
        words[order] = wide[order] as u64;
        order += 1;
    }
    words
};

baseline! {
    /// The low 64 bits.
    fn low(value: u128) -> u64 { _mm_cvtsi128_si64(vector(value)) as u64 }
    /// A register of which only the low 64 bits are not zero.
    fn from_low(value: u64) -> u128 { bits(_mm_cvtsi64_si128(value as i64)) }
    /// A register whose low 32 bits are those of another.
    fn with_low_32(old: u128, new: u128) -> u128 {
        bits(_mm_castps_si128(_mm_move_ss(_mm_castsi128_ps(vector(old)), _mm_castsi128_ps(vector(new)))))
    }
    /// A register whose low 64 bits are those of another.
    fn with_low_64(old: u128, new: u128) -> u128 { bits(low_and_high(vector(new), vector(old))) }
    /// The lowest of four singles.
    fn single(register: u128) -> f32 { _mm_cvtss_f32(_mm_castsi128_ps(vector(register))) }
    /// A register whose lowest single is replaced.
    fn with_single(old: u128, new: f32) -> u128 { with_low_32(old, bits(_mm_castps_si128(_mm_set_ss(new)))) }
    /// The lower of two doubles.
    fn double(register: u128) -> f64 { _mm_cvtsd_f64(_mm_castsi128_pd(vector(register))) }
    /// A register whose lower double is replaced.
    fn with_double(old: u128, new: f64) -> u128 { with_low_64(old, bits(_mm_castpd_si128(_mm_set_sd(new)))) }
    /// The sign of each byte.
    fn byte_signs(value: u128) -> u32 { _mm_movemask_epi8(vector(value)) as u32 }
}
