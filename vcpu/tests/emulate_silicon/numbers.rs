//! Random floating-point state: numbers of every kind, control words with every mask, mode and precision.

use super::rng::Rng;

/// A random x87 and SSE state that `fxrstor` accepts.
pub fn random_fx(rng: &mut Rng, fx: &mut [u8; 512]) {
    let style = rng.below(4);
    for chunk in fx[160..416].chunks_mut(8) {
        chunk.copy_from_slice(&lane(rng, style).to_le_bytes());
    }
    for chunk in fx[32..160].chunks_mut(16) {
        let (mantissa, sign_exponent) = extended(rng);
        chunk[..8].copy_from_slice(&mantissa.to_le_bytes());
        chunk[8..10].copy_from_slice(&sign_exponent.to_le_bytes());
    }
    let control = control(rng);
    fx[0..2].copy_from_slice(&control.to_le_bytes());
    fx[2..4].copy_from_slice(&status(rng, control).to_le_bytes());
    fx[4] = match rng.below(8) {
        0 => rng.next() as u8,
        1 => 0,
        _ => 0xff,
    };
    fx[24..28].copy_from_slice(&mxcsr(rng).to_le_bytes());
}

fn control(rng: &mut Rng) -> u16 {
    if rng.chance(30) {
        return 0x037f;
    }
    let masks = if rng.chance(50) { 0x3f } else { rng.next() as u16 & 0x3f };
    let precision = rng.pick(&[0x0000, 0x0200, 0x0300]);
    0x40 | masks | precision | (rng.next() as u16 & 0x0c00)
}

fn status(rng: &mut Rng, control: u16) -> u16 {
    let mut status = rng.next() as u16 & 0x7f00;
    if rng.chance(30) {
        // Mostly flags that are masked, as nothing but an exception comes of the others.
        let flags = rng.next() as u16 & 0x7f;
        status |= if rng.chance(90) {
            flags & (control | 0x40)
        } else {
            flags
        };
    }
    let waits = status & !control & 0x3f != 0;
    status | if waits { 0x8080 } else { 0 }
}

fn mxcsr(rng: &mut Rng) -> u32 {
    match rng.below(4) {
        0 => 0x1f80,
        1 => 0x1fa0,
        2 => 0x1f80 | rng.next() as u32 & 0xe07f,
        _ => rng.next() as u32 & 0xffff,
    }
}

/// Eight bytes of an XMM register or of memory: two singles, a double, or integers.
pub fn lane(rng: &mut Rng, style: u64) -> u64 {
    match (style, rng.below(5)) {
        (0, 0..4) => u64::from(single(rng)) << 32 | u64::from(single(rng)),
        (1, 0..4) => double(rng),
        (_, 0) => u64::from(single(rng)) << 32 | u64::from(single(rng)),
        (_, 1) => double(rng),
        _ => rng.value(),
    }
}

/// Exponents at the edges, in the middle where sums cancel and integers lie, or any.
fn exponent(rng: &mut Rng, top: u64, fraction: u64) -> u64 {
    match rng.below(12) {
        0 => 0,
        1 => top,
        2 => rng.below(3),
        3 => top - rng.below(3),
        4 => rng.below(fraction + 3),
        5 => top / 2 + top / 4 - 2 + rng.below(5),
        6 => top / 4 - 2 + rng.below(5),
        7 | 8 => top / 2 - 2 + rng.below(5),
        9 | 10 => top / 2 - 2 + rng.below(fraction + 14),
        _ => rng.below(top + 1),
    }
}

fn fraction(rng: &mut Rng, bits: u64) -> u64 {
    let mask = (1 << bits) - 1;
    mask & match rng.below(8) {
        0 => 0,
        1 => mask,
        2 => 1 << rng.below(bits),
        3 => 1 << (bits - 1),
        4 => rng.below(4),
        5 => mask << rng.below(bits),
        _ => rng.next(),
    }
}

fn single(rng: &mut Rng) -> u32 {
    let sign = rng.below(2) << 31;
    (sign | exponent(rng, 0xff, 23) << 23 | fraction(rng, 23)) as u32
}

fn double(rng: &mut Rng) -> u64 {
    let sign = rng.below(2) << 63;
    sign | exponent(rng, 0x7ff, 52) << 52 | fraction(rng, 52)
}

/// Mantissa, sign and exponent; the integer bit is now and then wrong.
fn extended(rng: &mut Rng) -> (u64, u16) {
    let sign = rng.below(2) << 15;
    let exponent = exponent(rng, 0x7fff, 63);
    let mut integer = u64::from(exponent != 0);
    if rng.chance(2) {
        integer ^= 1;
    }
    (integer << 63 | fraction(rng, 63), (sign | exponent) as u16)
}

/// Sixteen bytes of memory: any of the above.
pub fn memory(rng: &mut Rng, bytes: &mut [u8]) {
    let style = rng.below(4);
    if style == 2 {
        let (mantissa, sign_exponent) = extended(rng);
        bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
        bytes[8..10].copy_from_slice(&sign_exponent.to_le_bytes());
        return;
    }
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&lane(rng, style).to_le_bytes());
    }
}
