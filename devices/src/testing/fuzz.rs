//! The bodies of the fuzz targets (`fuzz/fuzz_targets`), which ordinary tests run too. Each takes arbitrary bytes, makes a
//! history of them, and panics if something breaks.

use super::apic_model::{ApicPair, ApicStep};
use super::bus_model::{BusPair, BusStep};
use crate::access::{IoOp, IoSize};
use crate::bus::BusAddress;
use crate::device::{IoOutcome, Persist};

/// Reads numbers off the input; zeros after its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    fn number(&mut self, bytes: u32) -> u64 {
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    fn size(&mut self) -> IoSize {
        IoSize::ALL[usize::from(self.byte() % 4)]
    }

    fn op(&mut self, size: IoSize) -> IoOp {
        match self.byte() {
            value if value < 0x80 => IoOp::Read,
            _ => IoOp::Write(self.number(8) & size.all_ones()),
        }
    }

    /// An address or length near one of a few places where something may go wrong, so that ranges often touch.
    fn edge(&mut self) -> u64 {
        let near = u64::from(self.byte()) & 0x1f;
        let place = match self.byte() % 6 {
            0 => 0,
            1 => 0x1000,
            2 => 0x1_0000,
            3 => 0x10_0000,
            4 => return near.wrapping_neg(),
            _ => u64::from(self.byte()) << 8,
        };
        place + near
    }
}

/// A history of claims, moves, releases and accesses, on the bus and on the naive one.
///
/// # Panics
/// They differ.
pub fn bus<A: BusAddress>(data: &[u8]) {
    let mut input = Input(data);
    let mut pair = BusPair::<A>::default();
    while !input.is_empty() {
        pair.step(match input.byte() % 8 {
            0 | 1 => BusStep::Claim {
                start: input.edge(),
                len: input.edge(),
            },
            2 => BusStep::Release {
                region: input.byte().into(),
            },
            3 => BusStep::Move {
                region: input.byte().into(),
                to: input.edge(),
            },
            _ => {
                let size = input.size();
                BusStep::Access {
                    addr: input.edge(),
                    size,
                    op: input.op(size),
                }
            }
        });
    }
}

/// A history of interrupts among local APICs, and on naive ones.
///
/// # Panics
/// They differ.
pub fn apics(data: &[u8]) {
    let mut input = Input(data);
    let mut pair = ApicPair::default();
    while !input.is_empty() {
        let (choice, cpu) = (input.byte(), input.byte());
        // Few vectors, so that they meet; sometimes any.
        let vector = |byte: u8| if byte & 0x80 == 0 { 0x0e + byte % 0x40 } else { byte };
        pair.step(match choice % 8 {
            0 | 1 => ApicStep::Ipi {
                cpu,
                mode: choice >> 3,
                shorthand: choice >> 6,
                logical: cpu & 0x80 != 0,
                to: input.byte(),
                vector: vector(input.byte()),
            },
            2 => ApicStep::Message {
                mode: choice >> 3,
                logical: choice & 0x40 != 0,
                to: cpu,
                vector: vector(input.byte()),
                level: choice & 0x80 != 0,
            },
            3 => ApicStep::Acknowledge { cpu },
            4 => ApicStep::TakeEvent { cpu },
            5 => ApicStep::End { cpu },
            6 => ApicStep::Priority { cpu, tpr: input.byte() },
            _ => ApicStep::Enable {
                cpu,
                on: choice & 0x18 != 0,
            },
        });
    }
}

/// A history of accesses, resets, saves and restores of one device of `len` bytes.
///
/// # Panics
/// An outcome does not fit its access, or state is lost by a save and restore.
pub fn device<D: Persist>(data: &[u8], len: u64, device: &D) {
    let mut input = Input(data);
    while !input.is_empty() {
        match input.byte() {
            0 => device.reset(),
            1 => {
                let state = device.save();
                device.reset();
                let restored = device.restore(&state);
                assert_eq!(restored, Ok(()));
                assert_eq!(device.save(), state);
            }
            _ => {
                let (offset, size) = (input.number(2) % len, input.size());
                let op = input.op(size);
                if size.bytes() > len - offset {
                    continue;
                }
                match device.access(offset, size, op) {
                    IoOutcome::Value(_) => assert!(op.is_read()),
                    IoOutcome::Done => assert!(!op.is_read()),
                    IoOutcome::Effect { .. } | IoOutcome::Refused(_) => {}
                }
            }
        }
    }
}
