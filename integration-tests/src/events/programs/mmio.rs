//! MMIO: first touch, repetition, slots that come and go, generations.

use super::tables::{A, APART, DATA, MMIO, NX, P, RWU, U, start};
use crate::events::memory::Action;
use crate::events::program::Step::{Act, Read, UserRead, UserWrite, Write};
use crate::events::program::{Paging, Program};

pub fn programs() -> Vec<Program> {
    let mut programs = Vec::new();
    for (paging, name) in [
        (Paging::Long, "MMIO: first touch and repeat, four levels"),
        (Paging::Pae, "MMIO: first touch and repeat, PAE"),
        (Paging::Bits32, "MMIO: first touch and repeat, 32-bit"),
    ] {
        programs.push(touch(name, paging));
    }
    programs.push(slot_over_mmio());
    programs.push(generation());
    programs
}

/// Two pages in turns, so that the vCPU's own memory of the last one doesn't answer.
fn touch(name: &'static str, paging: Paging) -> Program {
    let mut program = start(name, paging);
    let first = program.window(0, MMIO | RWU);
    let second = program.window(8, (MMIO + APART) | P | U | A);
    program.about = &["MarkMmioSpte", "HandleMmioPageFault"];
    program.then(&[
        Read(first),
        Read(second),
        Read(first),
        Write(first, 1),
        Read(second),
        UserRead(first),
        UserWrite(first, 2),
        UserRead(second),
        // Forbidden.
        UserWrite(second, 3),
        Read(first + 8),
    ])
}

/// What was MMIO becomes memory.
fn slot_over_mmio() -> Program {
    let mut program = start("MMIO: a slot is added over it, and removed", Paging::Long);
    let page = program.window(0, MMIO | RWU);
    let other = program.window(8, (MMIO + APART) | RWU | NX);
    let memory = program.window(16, DATA | RWU);
    program.actions = vec![
        Action::Add {
            at: MMIO,
            bytes: 0x1000,
            read_only: false,
        },
        Action::Remove(MMIO),
    ];
    program.about = &["MarkMmioSpte", "valid: false", "ZapAllFast"];
    program.then(&[
        Read(page),
        Read(other),
        Write(memory, 1),
        Act,
        Read(page),
        Write(page, 2),
        Read(other),
        Act,
        Read(page),
        Write(memory, 3),
        Read(other),
    ])
}

/// Slots elsewhere move the generation on.
fn generation() -> Program {
    let mut program = start("MMIO: the generation advances", Paging::Long);
    let page = program.window(0, MMIO | RWU);
    let other = program.window(8, (MMIO + APART) | RWU);
    for slot in 0..3 {
        program.actions.push(Action::Add {
            at: 0x1_0000_0000 + slot * 0x10000,
            bytes: 0x1000,
            read_only: false,
        });
    }
    program.about = &["valid: false", "valid: true"];
    program.then(&[
        Read(page),
        Read(other),
        Act,
        Read(page),
        Read(other),
        Read(page),
        Act,
        Act,
        Write(other, 1),
        Write(page, 1),
        Read(other),
    ])
}
