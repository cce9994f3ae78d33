//! Wider accesses to 8-bit devices: the ISA bus carries them out byte by byte, ascending, and so do we.

use crate::access::{IoOp, IoSize};
use crate::device::{Effect, IoOutcome};

/// Carries out an access one byte at a time. `byte` answers for one offset; a written byte comes as `IoOp::Write` of at
/// most 0xff.
///
/// Bytes that are refused read as 0xff; only if all are, the whole access is. Effects are collected in order.
pub(super) fn bytewise(offset: u64, size: IoSize, op: IoOp, mut byte: impl FnMut(u64, IoOp) -> IoOutcome) -> IoOutcome {
    if size == IoSize::B1 {
        return byte(offset, op);
    }
    let mut value = 0;
    let mut effects: Vec<Effect> = Vec::new();
    let mut refused = Some(None);
    for index in 0..size.bytes() {
        let op = match op {
            IoOp::Read => IoOp::Read,
            IoOp::Write(value) => IoOp::Write(value >> (8 * index) & 0xff),
        };
        let (answer, refusal) = match byte(offset.wrapping_add(index), op) {
            IoOutcome::Value(answer) => (answer, None),
            IoOutcome::Done => (0, None),
            IoOutcome::Effect { value, effect } => {
                effects.push(*effect);
                (value, None)
            }
            IoOutcome::Refused(refusal) => (0xff, Some(refusal)),
        };
        value |= (answer & 0xff) << (8 * index);
        refused = refused.and_then(|first| refusal.map(|refusal| Some(first.unwrap_or(refusal))));
    }
    if let Some(Some(refusal)) = refused {
        return IoOutcome::Refused(refusal);
    }
    let effect = if effects.len() > 1 {
        Some(Effect::All(effects))
    } else {
        effects.pop()
    };
    match (effect, op) {
        (Some(effect), _) => IoOutcome::Effect {
            value,
            effect: Box::new(effect),
        },
        (None, IoOp::Read) => IoOutcome::Value(value),
        (None, IoOp::Write(_)) => IoOutcome::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Refusal;

    #[test]
    fn wide_read_is_composed_little_endian_with_ones_where_refused() {
        let outcome = bytewise(4, IoSize::B4, IoOp::Read, |offset, _| match offset {
            7 => IoOutcome::Refused(Refusal::NoRegister),
            _ => IoOutcome::Value(offset),
        });
        assert_eq!(outcome, IoOutcome::Value(0xff06_0504));
        let none = bytewise(0, IoSize::B2, IoOp::Read, |_, _| {
            IoOutcome::Refused(Refusal::WrongDirection)
        });
        assert_eq!(none, IoOutcome::Refused(Refusal::WrongDirection));
    }

    #[test]
    fn wide_write_arrives_byte_by_byte_and_effects_are_collected() {
        let mut seen = Vec::new();
        let outcome = bytewise(0, IoSize::B4, IoOp::Write(0x0403_0201), |offset, op| {
            seen.push((offset, op));
            if offset % 2 == 1 {
                IoOutcome::effect(Effect::Reset)
            } else {
                IoOutcome::Done
            }
        });
        assert_eq!(
            seen,
            [
                (0, IoOp::Write(1)),
                (1, IoOp::Write(2)),
                (2, IoOp::Write(3)),
                (3, IoOp::Write(4))
            ]
        );
        assert_eq!(
            outcome,
            IoOutcome::effect(Effect::All(vec![Effect::Reset, Effect::Reset]))
        );
    }
}
