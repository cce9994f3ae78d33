//! Operations on the lanes of two 128-bit values: arithmetic, comparison, logic, shifts.

use iced_x86::Mnemonic as M;

/// Defines a function that splits 128-bit values into lanes of one type and back.
macro_rules! lanes {
    ($name:ident, $lane:ty) => {
        #[inline(always)]
        pub(super) fn $name(a: u128, b: u128, mut operation: impl FnMut($lane, $lane) -> $lane) -> u128 {
            const BYTES: usize = size_of::<$lane>();
            const LANES: usize = 16 / BYTES;
            let split = |value: u128| -> [$lane; LANES] {
                let value = value.to_le_bytes();
                let (bytes, _) = value.as_chunks::<BYTES>();
                std::array::from_fn(|lane| <$lane>::from_le_bytes(bytes[lane]))
            };
            let (a, b) = (split(a), split(b));
            let mut result = [0; 16];
            let (lanes, _) = result.as_chunks_mut::<BYTES>();
            for (lane, bytes) in lanes.iter_mut().enumerate() {
                *bytes = operation(a[lane], b[lane]).to_le_bytes();
            }
            u128::from_le_bytes(result)
        }
    };
}

lanes!(u8s, u8);
lanes!(i8s, i8);
lanes!(u16s, u16);
lanes!(i16s, i16);
lanes!(u32s, u32);
lanes!(i32s, i32);
lanes!(u64s, u64);
lanes!(i64s, i64);

/// What an instruction makes of destination and source.
pub(crate) type Binary = fn(u128, u128) -> u128;

/// Instructions that compute each lane from the two lanes at its place.
pub(crate) const fn operation(mnemonic: M) -> Option<Binary> {
    #[cfg(target_arch = "x86_64")]
    if let Some(operation) = super::simd::lanes(mnemonic) {
        return Some(operation);
    }
    by_lanes(mnemonic)
}

/// The same lane by lane.
pub(super) const fn by_lanes(mnemonic: M) -> Option<Binary> {
    let operation: Binary = match mnemonic {
        M::Pand | M::Andps | M::Andpd => |a, b| a & b,
        M::Pandn | M::Andnps | M::Andnpd => |a, b| !a & b,
        M::Por | M::Orps | M::Orpd => |a, b| a | b,
        M::Pxor | M::Xorps | M::Xorpd => |a, b| a ^ b,
        M::Paddb => |a, b| u8s(a, b, u8::wrapping_add),
        M::Paddw => |a, b| u16s(a, b, u16::wrapping_add),
        M::Paddd => |a, b| u32s(a, b, u32::wrapping_add),
        M::Paddq => |a, b| u64s(a, b, u64::wrapping_add),
        M::Psubb => |a, b| u8s(a, b, u8::wrapping_sub),
        M::Psubw => |a, b| u16s(a, b, u16::wrapping_sub),
        M::Psubd => |a, b| u32s(a, b, u32::wrapping_sub),
        M::Psubq => |a, b| u64s(a, b, u64::wrapping_sub),
        M::Paddsb => |a, b| i8s(a, b, i8::saturating_add),
        M::Paddsw => |a, b| i16s(a, b, i16::saturating_add),
        M::Paddusb => |a, b| u8s(a, b, u8::saturating_add),
        M::Paddusw => |a, b| u16s(a, b, u16::saturating_add),
        M::Psubsb => |a, b| i8s(a, b, i8::saturating_sub),
        M::Psubsw => |a, b| i16s(a, b, i16::saturating_sub),
        M::Psubusb => |a, b| u8s(a, b, u8::saturating_sub),
        M::Psubusw => |a, b| u16s(a, b, u16::saturating_sub),
        M::Pcmpeqb => |a, b| u8s(a, b, |x, y| if x == y { u8::MAX } else { 0 }),
        M::Pcmpeqw => |a, b| u16s(a, b, |x, y| if x == y { u16::MAX } else { 0 }),
        M::Pcmpeqd => |a, b| u32s(a, b, |x, y| if x == y { u32::MAX } else { 0 }),
        M::Pcmpeqq => |a, b| u64s(a, b, |x, y| if x == y { u64::MAX } else { 0 }),
        M::Pcmpgtb => |a, b| i8s(a, b, |x, y| -i8::from(x > y)),
        M::Pcmpgtw => |a, b| i16s(a, b, |x, y| -i16::from(x > y)),
        M::Pcmpgtd => |a, b| i32s(a, b, |x, y| -i32::from(x > y)),
        M::Pcmpgtq => |a, b| i64s(a, b, |x, y| -i64::from(x > y)),
        _ => return rarer(mnemonic),
    };
    Some(operation)
}

const fn rarer(mnemonic: M) -> Option<Binary> {
    let operation: Binary = match mnemonic {
        M::Pminub => |a, b| u8s(a, b, u8::min),
        M::Pminuw => |a, b| u16s(a, b, u16::min),
        M::Pminud => |a, b| u32s(a, b, u32::min),
        M::Pminsb => |a, b| i8s(a, b, i8::min),
        M::Pminsw => |a, b| i16s(a, b, i16::min),
        M::Pminsd => |a, b| i32s(a, b, i32::min),
        M::Pmaxub => |a, b| u8s(a, b, u8::max),
        M::Pmaxuw => |a, b| u16s(a, b, u16::max),
        M::Pmaxud => |a, b| u32s(a, b, u32::max),
        M::Pmaxsb => |a, b| i8s(a, b, i8::max),
        M::Pmaxsw => |a, b| i16s(a, b, i16::max),
        M::Pmaxsd => |a, b| i32s(a, b, i32::max),
        M::Pavgb => |a, b| u8s(a, b, |x, y| ((u16::from(x) + u16::from(y) + 1) >> 1) as u8),
        M::Pavgw => |a, b| u16s(a, b, |x, y| ((u32::from(x) + u32::from(y) + 1) >> 1) as u16),
        M::Pmullw => |a, b| u16s(a, b, u16::wrapping_mul),
        M::Pmulld => |a, b| u32s(a, b, u32::wrapping_mul),
        M::Pmulhw => |a, b| i16s(a, b, |x, y| ((i32::from(x) * i32::from(y)) >> 16) as i16),
        M::Pmulhuw => |a, b| u16s(a, b, |x, y| ((u32::from(x) * u32::from(y)) >> 16) as u16),
        M::Pmulhrsw => |a, b| i16s(a, b, |x, y| ((((i32::from(x) * i32::from(y)) >> 14) + 1) >> 1) as i16),
        M::Pmuludq => |a, b| u64s(a, b, |x, y| (x & 0xffff_ffff) * (y & 0xffff_ffff)),
        M::Pmuldq => |a, b| i64s(a, b, |x, y| i64::from(x as i32) * i64::from(y as i32)),
        M::Pabsb => |_, b| i8s(b, b, |x, _| x.wrapping_abs()),
        M::Pabsw => |_, b| i16s(b, b, |x, _| x.wrapping_abs()),
        M::Pabsd => |_, b| i32s(b, b, |x, _| x.wrapping_abs()),
        M::Psignb => |a, b| i8s(a, b, |x, y| x.wrapping_mul(y.signum())),
        M::Psignw => |a, b| i16s(a, b, |x, y| x.wrapping_mul(y.signum())),
        M::Psignd => |a, b| i32s(a, b, |x, y| x.wrapping_mul(y.signum())),
        M::Pmaddwd => |a, b| {
            i32s(a, b, |x, y| {
                let product = |shift| i32::from((x >> shift) as i16).wrapping_mul(i32::from((y >> shift) as i16));
                product(0).wrapping_add(product(16))
            })
        },
        M::Pmaddubsw => |a, b| {
            i16s(a, b, |x, y| {
                let product = |shift| i32::from((x >> shift) as u8) * i32::from((y >> shift) as i8);
                (product(0) + product(8)).clamp(-0x8000, 0x7fff) as i16
            })
        },
        M::Psadbw => |a, b| {
            u64s(a, b, |x, y| {
                let pairs = x.to_le_bytes().into_iter().zip(y.to_le_bytes());
                pairs.map(|(x, y)| u64::from(x.abs_diff(y))).sum()
            })
        },
        _ => return None,
    };
    Some(operation)
}

/// What a shift makes of a value and a count.
pub(crate) type ByCount = fn(u128, u32) -> u128;

/// Shifts of every lane by one count; a count of the width or more leaves zero, or the sign.
pub(crate) const fn shift(mnemonic: M) -> Option<ByCount> {
    #[cfg(target_arch = "x86_64")]
    if let Some(operation) = super::simd::shift(mnemonic) {
        return Some(operation);
    }
    shift_by_lanes(mnemonic)
}

/// The same lane by lane.
pub(super) const fn shift_by_lanes(mnemonic: M) -> Option<ByCount> {
    let operation: ByCount = match mnemonic {
        M::Psllw => |a, n| u16s(a, 0, |x, _| x.checked_shl(n).unwrap_or(0)),
        M::Pslld => |a, n| u32s(a, 0, |x, _| x.checked_shl(n).unwrap_or(0)),
        M::Psllq => |a, n| u64s(a, 0, |x, _| x.checked_shl(n).unwrap_or(0)),
        M::Psrlw => |a, n| u16s(a, 0, |x, _| x.checked_shr(n).unwrap_or(0)),
        M::Psrld => |a, n| u32s(a, 0, |x, _| x.checked_shr(n).unwrap_or(0)),
        M::Psrlq => |a, n| u64s(a, 0, |x, _| x.checked_shr(n).unwrap_or(0)),
        M::Psraw => |a, n| i16s(a, 0, |x, _| x >> n.min(15)),
        M::Psrad => |a, n| i32s(a, 0, |x, _| x >> n.min(31)),
        // Of the whole register, in bytes.
        M::Pslldq => |a, n| a.checked_shl(8 * n).unwrap_or(0),
        M::Psrldq => |a, n| a.checked_shr(8 * n).unwrap_or(0),
        _ => return None,
    };
    Some(operation)
}
