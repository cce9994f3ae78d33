//! Shuffles, packs and unpacks: results whose lanes come from other places.

use iced_x86::Mnemonic as M;

/// What an instruction makes of destination, source and immediate.
pub(crate) type Shuffle = fn(u128, u128, u8) -> u128;

/// The same where it is not certain that the host can.
pub(crate) type Pick = fn(u128, u128, u8) -> Option<u128>;

/// Lane `index` of `bits` bits.
#[inline(always)]
fn lane(value: u128, index: u32, bits: u32) -> u128 {
    value >> (index * bits) & (u128::MAX >> (128 - bits))
}

/// A value whose lanes of `bits` bits are given by number.
#[inline(always)]
fn build(bits: u32, lanes: impl Fn(u32) -> u128) -> u128 {
    (0..128 / bits).fold(0, |value, index| value | lanes(index) << (index * bits))
}

/// Lanes of both operands in turn, from the low or the high half.
#[inline(always)]
fn interleave(a: u128, b: u128, bits: u32, high: bool) -> u128 {
    let first = if high { 64 / bits } else { 0 };
    build(bits, |index| {
        let from = if index & 1 == 0 { a } else { b };
        lane(from, first + index / 2, bits)
    })
}

/// Lanes of both operands, halved in width with saturation.
#[inline(always)]
fn pack(a: u128, b: u128, bits: u32, low: i64, high: i64) -> u128 {
    let half = bits / 2;
    let count = 128 / bits;
    build(half, |index| {
        let (from, index) = if index < count { (a, index) } else { (b, index - count) };
        let raw = lane(from, index, bits) as i64;
        let signed = raw << (64 - bits) >> (64 - bits);
        (signed.clamp(low, high) as u64 & (u64::MAX >> (64 - half))).into()
    })
}

/// Two bits of the immediate for each lane.
#[inline(always)]
fn select(order: u8, index: u32) -> u32 {
    u32::from(order) >> (2 * index) & 3
}

/// The low lanes, widened.
#[inline(always)]
fn widen(b: u128, from: u32, to: u32, signed: bool) -> u128 {
    build(to, |index| {
        let raw = lane(b, index, from);
        if signed && raw >> (from - 1) & 1 != 0 {
            raw | (u128::MAX >> (128 - to)) & !(u128::MAX >> (128 - from))
        } else {
            raw
        }
    })
}

/// The instructions of this file.
pub(crate) const fn operation(mnemonic: M) -> Option<Shuffle> {
    #[cfg(target_arch = "x86_64")]
    if let Some(operation) = super::simd::shuffle(mnemonic) {
        return Some(operation);
    }
    by_lanes(mnemonic)
}

/// The same lane by lane.
pub(super) const fn by_lanes(mnemonic: M) -> Option<Shuffle> {
    let operation: Shuffle = match mnemonic {
        M::Punpcklbw => |a, b, _| interleave(a, b, 8, false),
        M::Punpcklwd => |a, b, _| interleave(a, b, 16, false),
        M::Punpckldq | M::Unpcklps => |a, b, _| interleave(a, b, 32, false),
        M::Punpcklqdq | M::Unpcklpd => |a, b, _| interleave(a, b, 64, false),
        M::Punpckhbw => |a, b, _| interleave(a, b, 8, true),
        M::Punpckhwd => |a, b, _| interleave(a, b, 16, true),
        M::Punpckhdq | M::Unpckhps => |a, b, _| interleave(a, b, 32, true),
        M::Punpckhqdq | M::Unpckhpd => |a, b, _| interleave(a, b, 64, true),
        M::Packsswb => |a, b, _| pack(a, b, 16, -0x80, 0x7f),
        M::Packuswb => |a, b, _| pack(a, b, 16, 0, 0xff),
        M::Packssdw => |a, b, _| pack(a, b, 32, -0x8000, 0x7fff),
        M::Packusdw => |a, b, _| pack(a, b, 32, 0, 0xffff),
        M::Pshufd => |_, b, order| build(32, |index| lane(b, select(order, index), 32)),
        M::Pshuflw => |_, b, order| {
            let low = build(16, |index| {
                if index < 4 {
                    lane(b, select(order, index), 16)
                } else {
                    0
                }
            });
            b >> 64 << 64 | low
        },
        M::Pshufhw => |_, b, order| {
            let high = build(16, |index| {
                if index < 4 {
                    lane(b, 4 + select(order, index), 16)
                } else {
                    0
                }
            });
            b & u128::from(u64::MAX) | high << 64
        },
        M::Shufps => |a, b, order| {
            build(32, |index| {
                lane(if index < 2 { a } else { b }, select(order, index), 32)
            })
        },
        M::Shufpd => |a, b, order| {
            build(64, |index| {
                lane(if index == 0 { a } else { b }, u32::from(order) >> index & 1, 64)
            })
        },
        M::Pshufb => |a, b, _| {
            let a = a.to_le_bytes();
            let pick = |control: u8| {
                if control & 0x80 != 0 {
                    0
                } else {
                    a[usize::from(control & 15)]
                }
            };
            u128::from_le_bytes(b.to_le_bytes().map(pick))
        },
        M::Palignr => |a, b, count| {
            let bits = 8 * u32::from(count);
            let low = b.checked_shr(bits).unwrap_or(0);
            let high = match bits {
                0 => 0,
                1..=128 => a.checked_shl(128 - bits).unwrap_or(0),
                _ => a.checked_shr(bits - 128).unwrap_or(0),
            };
            low | high
        },
        M::Movsldup => |_, b, _| build(32, |index| lane(b, index & 2, 32)),
        M::Movshdup => |_, b, _| build(32, |index| lane(b, index | 1, 32)),
        M::Movddup => |_, b, _| build(64, |_| lane(b, 0, 64)),
        M::Pblendw => |a, b, mask| build(16, |index| lane(if mask >> index & 1 != 0 { b } else { a }, index, 16)),
        M::Blendps => |a, b, mask| build(32, |index| lane(if mask >> index & 1 != 0 { b } else { a }, index, 32)),
        M::Blendpd => |a, b, mask| build(64, |index| lane(if mask >> index & 1 != 0 { b } else { a }, index, 64)),
        M::Pmovsxbw => |_, b, _| widen(b, 8, 16, true),
        M::Pmovsxbd => |_, b, _| widen(b, 8, 32, true),
        M::Pmovsxbq => |_, b, _| widen(b, 8, 64, true),
        M::Pmovsxwd => |_, b, _| widen(b, 16, 32, true),
        M::Pmovsxwq => |_, b, _| widen(b, 16, 64, true),
        M::Pmovsxdq => |_, b, _| widen(b, 32, 64, true),
        M::Pmovzxbw => |_, b, _| widen(b, 8, 16, false),
        M::Pmovzxbd => |_, b, _| widen(b, 8, 32, false),
        M::Pmovzxbq => |_, b, _| widen(b, 8, 64, false),
        M::Pmovzxwd => |_, b, _| widen(b, 16, 32, false),
        M::Pmovzxwq => |_, b, _| widen(b, 16, 64, false),
        M::Pmovzxdq => |_, b, _| widen(b, 32, 64, false),
        M::Phaddw => |a, b, _| neighbours(a, b, 16, i64::wrapping_add),
        M::Phaddd => |a, b, _| neighbours(a, b, 32, i64::wrapping_add),
        M::Phsubw => |a, b, _| neighbours(a, b, 16, i64::wrapping_sub),
        M::Phsubd => |a, b, _| neighbours(a, b, 32, i64::wrapping_sub),
        M::Phaddsw => |a, b, _| neighbours(a, b, 16, |x, y| (x + y).clamp(-0x8000, 0x7fff)),
        M::Phsubsw => |a, b, _| neighbours(a, b, 16, |x, y| (x - y).clamp(-0x8000, 0x7fff)),
        M::Phminposuw => |_, b, _| {
            let smallest = (0..8).map(|index| (lane(b, index, 16), u128::from(index))).min();
            smallest.map_or(0, |(value, index)| value | index << 16)
        },
        M::Mpsadbw => |a, b, control| {
            let (first, fixed) = (u32::from(control) & 4, 4 * (u32::from(control) & 3));
            build(16, |index| {
                let distance = |byte| lane(a, first + index + byte, 8).abs_diff(lane(b, fixed + byte, 8));
                (0..4).map(distance).sum()
            })
        },
        _ => return None,
    };
    Some(operation)
}

/// What `operation` makes of neighbouring signed lanes, those of `a` first.
fn neighbours(a: u128, b: u128, bits: u32, operation: impl Fn(i64, i64) -> i64) -> u128 {
    let half = 64 / bits;
    let signed = |from, index| (lane(from, index, bits) as i64) << (64 - bits) >> (64 - bits);
    build(bits, |index| {
        let (from, first) = if index < half {
            (a, 2 * index)
        } else {
            (b, 2 * (index - half))
        };
        let result = operation(signed(from, first), signed(from, first + 1));
        u128::from(result as u64 & (u64::MAX >> (64 - bits)))
    })
}
