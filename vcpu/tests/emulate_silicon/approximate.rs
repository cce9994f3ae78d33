//! Results that the architecture defines only up to an error.

use iced_x86::{Instruction, Mnemonic as M};

/// Whether two register contents are equal as far as the architecture goes.
pub fn close(insn: &Instruction, left: &[u8], right: &[u8]) -> bool {
    match insn.mnemonic() {
        M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss if left.len() == 16 => left
            .chunks(4)
            .zip(right.chunks(4))
            .all(|(left, right)| near(single(left), single(right))),
        _ => false,
    }
}

fn single(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Both may be off by 1.5 / 4096, and become zero if they are tiny.
fn near(left: f32, right: f32) -> bool {
    let tiny = |x: f32| x.abs() <= f32::MIN_POSITIVE * 1.001;
    left.to_bits() == right.to_bits()
        || (tiny(left) && tiny(right) && left.is_sign_negative() == right.is_sign_negative())
        || (left / right - 1.0).abs() <= 3.0 / 4096.0
}
