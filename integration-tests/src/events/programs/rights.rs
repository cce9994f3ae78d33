//! What pages permit, and what tables must not hold.

use super::tables::{A, APART, D, DATA, MMIO, NX, P, PS, ROOT, RW, RWU, U, W, WINDOW_DIRECTORY, start};
use crate::events::memory::Action;
use crate::events::program::Step::{Act, Execute, Invlpg, Read, UserExecute, UserRead, UserWrite, Write, Write8};
use crate::events::program::{Paging, Program};

pub fn programs() -> Vec<Program> {
    vec![
        faults("Permission faults, four levels", Paging::Long),
        faults("Permission faults, PAE", Paging::Pae),
        faults("Permission faults, 32-bit", Paging::Bits32),
        reserved(),
        combined(),
        nowhere(),
        read_only_slot(),
        logged(),
        invlpg_logged(),
    ]
}

/// All that a page may be, and all that may be tried.
fn faults(name: &'static str, paging: Paging) -> Program {
    let mut program = start(name, paging);
    let nx = if paging == Paging::Bits32 { 0 } else { NX };
    let kinds = [RWU, RW, P | U | A, P | A, RWU | nx, P | W | A | D | nx, 0];
    let mut steps = Vec::new();
    for (index, kind) in (0u64..).zip(kinds) {
        let data = DATA + index * APART;
        let page = program.window(index * 8, data | kind);
        program.image.call_supervisor(data);
        program.image.jump_back(data + 16);
        steps.extend([
            UserRead(page),
            UserExecute(page),
            Read(page + 32),
            Execute(page + 16),
            UserWrite(page + 32, 1),
            Write(page + 32, 2),
        ]);
    }
    program.about = &["WalkerError"];
    program.then(&steps)
}

/// Reserved bits in tables of either level.
fn reserved() -> Program {
    let mut program = start("Reserved bits", Paging::Long);
    let above = program.window(0, 1 << 45 | DATA | RWU);
    let fine = program.window(8, DATA | RWU);
    let second = fine + 0x20_0000;
    program.image.entry(WINDOW_DIRECTORY, 1, 1 << 50 | DATA | RWU);
    let third = fine + 0x40_0000;
    // Bit 13 of a large page.
    program.image.entry(WINDOW_DIRECTORY, 2, 1 << 13 | RWU | PS);
    program.about = &["WalkerError { code: d }", "WalkerError { code: 9 }"];
    program.then(&[
        Read(above),
        UserRead(above),
        Read(fine),
        Write(second, 1),
        UserWrite(third, 2),
        Read(fine),
    ])
}

/// Tables where there is no memory, and tables that lead back to themselves.
fn nowhere() -> Program {
    let mut program = start("Tables outside memory, and in circles", Paging::Long);
    let page = program.window(0, DATA | RWU);
    program.image.entry(WINDOW_DIRECTORY, 1, MMIO | RWU);
    program.image.entry(WINDOW_DIRECTORY, 2, WINDOW_DIRECTORY | RWU);
    program.image.entry(ROOT, 16, ROOT | RWU);
    let circle = 16 << 39 | 16 << 30 | 16 << 21 | 16 << 12;
    program.about = &["WalkerError { code: 0 }"];
    program.then(&[
        Read(page),
        Read(page + 0x20_0000),
        UserWrite(page + 0x20_0000, 1),
        // Through itself to the window's table, and to itself.
        Read(page + 0x40_0000),
        Read(page + 0x40_2000),
        Read(circle),
        Write(circle + 256, 0),
        Read(page),
    ])
}

/// What the tables above forbid.
fn combined() -> Program {
    let mut program = start("Rights of the tables above", Paging::Long);
    let page = program.window(0, DATA | RWU);
    let table = super::tables::WINDOW_TABLE;
    program.image.entry(WINDOW_DIRECTORY, 1, table | P | U | A);
    program.image.entry(WINDOW_DIRECTORY, 2, table | P | W | A);
    program.image.entry(WINDOW_DIRECTORY, 3, table | RWU | NX);
    program.image.call_supervisor(DATA);
    program.image.jump_back(DATA + 16);
    let mut steps = Vec::new();
    for directory in 0..4 {
        let page = page + directory * 0x20_0000;
        steps.extend([
            Read(page),
            Write(page + 32, 1),
            UserRead(page),
            UserWrite(page + 32, 2),
            UserExecute(page),
            Execute(page + 16),
        ]);
    }
    program.about = &["WalkerError", "GetPage"];
    program.then(&steps)
}

/// Writes to a read-only slot go to the bus.
fn read_only_slot() -> Program {
    let mut program = start("A read-only slot", Paging::Long);
    let page = program.window(0, MMIO | RWU);
    program.actions = vec![Action::Add {
        at: MMIO,
        bytes: 0x2000,
        read_only: true,
    }];
    program.about = &["MarkMmioSpte", "SetSpte"];
    program.then(&[
        Read(page),
        Act,
        Read(page),
        Write(page, 1),
        Read(page),
        UserWrite(page, 2),
        UserRead(page),
    ])
}

/// INVLPG while writes are logged: what is made anew may be written to, and counts as written to.
fn invlpg_logged() -> Program {
    let mut program = start("INVLPG while writes are logged", Paging::Long);
    const AT: u64 = 0x1_0000_0000;
    let page = program.window(0, AT | RWU);
    let table = super::tables::WINDOW_TABLE;
    program.actions = vec![
        Action::Add {
            at: AT,
            bytes: 0x1_0000,
            read_only: false,
        },
        Action::Log(AT, true),
    ];
    program.about = &["UnsyncPage"];
    program.then(&[
        Act,
        Read(page),
        Act,
        Write8(table, (AT + APART) | RWU),
        Invlpg(page),
        Read(page),
        Write(page, 1),
        Write8(table, AT | P | U | A),
        Invlpg(page),
        Write(page, 2),
        Read(page),
    ])
}

/// The log of writes is switched on and off.
fn logged() -> Program {
    let mut program = start("Dirty logging on and off", Paging::Long);
    const AT: u64 = 0x1_0000_0000;
    let page = program.window(0, AT | RWU);
    let other = program.window(8, (AT + APART) | RWU);
    program.actions = vec![
        Action::Add {
            at: AT,
            bytes: 0x1_0000,
            read_only: false,
        },
        Action::Log(AT, true),
        Action::Log(AT, false),
    ];
    program.about = &["SetSpte"];
    program.then(&[
        Act,
        Write(page, 1),
        Read(other),
        Act,
        Read(page),
        Write(page, 2),
        Write(page, 3),
        Read(other),
        UserWrite(other, 4),
        Act,
        Write(page, 5),
        Write(other, 6),
    ])
}
