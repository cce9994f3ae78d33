//! Neighbours of a page, which KVM maps ahead; and writes that are logged where there is no paging.

use super::tables::{A, D, DATA, MMIO, P, RWU, U, W, WINDOW_TABLE, start};
use crate::events::image::RAM;
use crate::events::memory::Action;
use crate::events::program::Step::{Act, Invlpg, Read, UserRead, UserWrite, Write, Write8};
use crate::events::program::{Paging, Program};

pub fn programs() -> Vec<Program> {
    vec![
        neighbours("Neighbours made ahead, four levels", Paging::Long),
        neighbours("Neighbours made ahead, PAE", Paging::Pae),
        neighbours("Neighbours made ahead, 32-bit", Paging::Bits32),
        ends(),
        no_paging(),
        logged_without_paging(),
    ]
}

/// Eight pages side by side, of all kinds that may be made ahead.
fn neighbours(name: &'static str, paging: Paging) -> Program {
    let mut program = start(name, paging);
    let kinds = [
        RWU,
        RWU,
        P | U | A,
        P | W | U | A,
        P | W | A | D,
        RWU,
        RWU,
        RWU,
        // Of another eight.
        RWU,
    ];
    let pages: Vec<u64> = (0u64..)
        .zip(kinds)
        .map(|(page, kind)| program.window(page, (DATA + page * 4096) | kind))
        .collect();
    program.about = &["flags: e47"];
    program.then(&[
        Read(pages[4]),
        Write(pages[0], 1),
        UserRead(pages[2]),
        UserWrite(pages[3], 1),
        UserRead(pages[4]),
        Read(pages[8]),
    ])
}

/// What ends it: a page that was never used, one that isn't there, MMIO, a table.
fn ends() -> Program {
    let mut program = start("Neighbours that are not made ahead", Paging::Long);
    let fresh = program.window(2, DATA | P | W | U);
    let first = program.window(0, (DATA + 0x1000) | RWU);
    let third = program.window(3, (DATA + 0x3000) | RWU);
    let device = program.window(9, MMIO | RWU);
    let beside = program.window(8, (DATA + 0x8000) | RWU);
    let after = program.window(10, (DATA + 0xa000) | RWU);
    let table = program.window(17, WINDOW_TABLE | RWU);
    let by_table = program.window(16, (DATA + 0x1_0000) | RWU);
    program.about = &["flags: e47"];
    program.then(&[
        Read(third),
        Read(first),
        Read(fresh),
        Read(beside),
        Read(device),
        Read(after),
        Read(device),
        Read(by_table),
        Read(table),
        Write8(table, (DATA + 0x2000) | RWU),
        Invlpg(first),
        Read(first),
        Read(beside),
    ])
}

/// Without paging, neighbours follow from the address.
fn no_paging() -> Program {
    let mut program = start("No paging", Paging::Off);
    program.actions = vec![
        Action::Add {
            at: MMIO,
            bytes: 0x3000,
            read_only: false,
        },
        Action::Remove(MMIO),
    ];
    program.about = &["direct: true", "flags: e47", "MarkMmioSpte"];
    program.then(&[
        Read(DATA + 0x3000),
        Write(DATA + 0x4000, 1),
        Read(RAM - 8),
        Read(MMIO),
        Read(MMIO + 0x8000),
        Act,
        Read(MMIO + 0x1000),
        Read(MMIO),
        Write(MMIO + 0x2000, 2),
        Read(MMIO + 0x3000),
        UserRead(DATA),
        Act,
        Read(MMIO),
        Read(DATA),
    ])
}

/// Without paging, a page whose writes are logged is made writable again without the MMU's lock.
fn logged_without_paging() -> Program {
    let mut program = start("Dirty logging, no paging", Paging::Off);
    const AT: u64 = 0xe000_0000;
    program.actions = vec![
        Action::Add {
            at: AT,
            bytes: 0x2_0000,
            read_only: false,
        },
        Action::Log(AT, true),
        Action::Log(AT, false),
    ];
    program.about = &["FastPageFault"];
    program.then(&[
        Act,
        Write(AT, 1),
        Read(AT + 0x8000),
        Act,
        Write(AT, 2),
        Write(AT, 3),
        Write(AT + 0x8000, 4),
        Read(AT + 0x1_0000),
        Write(AT + 0x1_0000, 5),
        Act,
        Write(AT + 0x1000, 6),
    ])
}
