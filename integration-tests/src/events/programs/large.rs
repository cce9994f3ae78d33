//! Large pages of the guest, over memory in small pages and in large ones.

use super::tables::{
    A, APART, DATA, MMIO, P, POINTERS, PS, ROOT, RWU, U, W, WINDOW, WINDOW_DIRECTORY, WINDOW_TABLE, low, start,
};
use crate::events::memory::{Action, HUGE};
use crate::events::program::Step::{Act, Cr3, Invlpg, Read, UserRead, UserWrite, Write, Write8};
use crate::events::program::{Differs, Paging, Program};

/// A large page on level 2.
const LARGE: u64 = 0x20_0000;

pub fn programs() -> Vec<Program> {
    vec![
        over_large("Large pages over large memory, four levels", Paging::Long),
        over_large("Large pages over large memory, PAE", Paging::Pae),
        large32(),
        gigabyte(),
        gigabyte_of_tables(),
        over_small("Large pages over small memory, four levels", Paging::Long),
        over_small("Large pages over small memory, PAE", Paging::Pae),
        mmio(),
        splits(),
    ]
}

fn slot() -> Action {
    slot_at(HUGE.start)
}

fn slot_at(at: u64) -> Action {
    Action::Add {
        at,
        bytes: 2 * LARGE,
        read_only: false,
    }
}

/// 2 MiB of the guest's over 2 MiB of the host's.
fn over_large(name: &'static str, paging: Paging) -> Program {
    let mut program = start(name, paging);
    program.image.entry(WINDOW_DIRECTORY, 1, HUGE.start | RWU | PS);
    program
        .image
        .entry(WINDOW_DIRECTORY, 2, (HUGE.start + LARGE) | P | U | A | PS);
    let (first, second) = (WINDOW + LARGE, WINDOW + 2 * LARGE);
    program.actions = vec![slot()];
    program.about = &["SetSpte", "level: 2"];
    program.then(&[
        Act,
        Read(first),
        Write(first + 0x10_0000, 1),
        UserWrite(first + 0x1f_f000, 2),
        Read(second),
        Write(second, 3),
        UserRead(second + 0x8000),
        Invlpg(first),
        Read(first),
    ])
}

/// 4 MiB of the guest's, which are two leaves.
fn large32() -> Program {
    let mut program = start("Large pages over large memory, 32-bit", Paging::Bits32);
    let page = WINDOW + 2 * LARGE;
    let at = |address: u64| low(address).to_le_bytes();
    program.image.bytes(ROOT + (page >> 22) * 4, &at(HUGE.start | RWU | PS));
    // Above 4 GiB, by PSE-36; and with one of its bits that must be clear.
    let above = page + 2 * LARGE;
    program.image.bytes(ROOT + (above >> 22) * 4, &at(1 << 13 | RWU | PS));
    program
        .image
        .bytes(ROOT + (above >> 22) * 4 + 4, &at(1 << 21 | RWU | PS));
    program.actions = vec![slot()];
    program.about = &["level: 2", "entry_bytes: 4", "WalkerError { code: 9 }"];
    program.then(&[
        Act,
        Read(page),
        Write(page + LARGE, 1),
        UserWrite(page + LARGE - 4, 2),
        Read(above),
        Write(above + LARGE, 3),
        Read(above + 2 * LARGE),
    ])
}

/// 1 GiB of the guest's.
fn gigabyte() -> Program {
    let mut program = start("Gigabyte pages", Paging::Long);
    let page = 2 << 30;
    program.image.entry(POINTERS, 2, 1 << 30 | RWU | PS);
    // Has a bit that must be clear.
    program.image.entry(POINTERS, 3, 1 << 20 | RWU | PS);
    program.actions = vec![slot_at(1 << 30)];
    program.about = &["direct: true", "level: 2", "WalkerError { code: 9 }"];
    program.then(&[
        Act,
        Read(page),
        Write(page + LARGE, 1),
        Read(page + 0x100_0000),
        UserRead(page + (1 << 29)),
        Write(page + 8, 2),
        Read(page + (1 << 30)),
    ])
}

/// 1 GiB of the guest's, its own tables among it.
fn gigabyte_of_tables() -> Program {
    let mut program = start("A gigabyte page over its own tables", Paging::Long);
    let page = 2 << 30;
    program.image.entry(POINTERS, 2, RWU | PS);
    let at = HUGE.start;
    program.actions = vec![slot()];
    program.about = &["direct: true"];
    program.differs = Some(Differs {
        kernel: "SpteRequested { gfn: Gfn(0x30000), memory: true, level: 1 }",
        ours: "SpteRequested { gfn: Gfn(0x30000), memory: true, level: 2 }",
    });
    program.then(&[Act, Read(page + at), Write(page + at + LARGE, 1), Read(page + DATA)])
}

/// 2 MiB of the guest's over small pages, its own tables among them.
fn over_small(name: &'static str, paging: Paging) -> Program {
    let mut program = start(name, paging);
    program.image.entry(WINDOW_DIRECTORY, 1, RWU | PS);
    program.image.entry(WINDOW_DIRECTORY, 2, P | W | U | A | PS);
    let (first, clean) = (WINDOW + LARGE, WINDOW + 2 * LARGE);
    program.about = &["direct: true", "SetDirtyBit"];
    let page = program.window(0, DATA | RWU);
    program.then(&[
        Read(first + DATA),
        Write(first + DATA + 0x1_0000, 1),
        Read(clean + DATA),
        Write(clean + DATA, 2),
        Read(clean + DATA + 0x1_0000),
        Read(page),
        Read(first + WINDOW_TABLE),
        Write(first + WINDOW_TABLE + 128, low((DATA + APART) | RWU)),
        Read(page + 16 * 4096),
        Write(first + WINDOW_DIRECTORY + 128, 0),
        Read(page),
    ])
}

/// 2 MiB without a slot.
fn mmio() -> Program {
    let mut program = start("Large pages over MMIO", Paging::Long);
    program.image.entry(WINDOW_DIRECTORY, 1, MMIO | RWU | PS);
    let first = WINDOW + LARGE;
    program.about = &["MarkMmioSpte", "direct: true"];
    program.then(&[
        Read(first),
        Read(first + APART),
        Write(first, 1),
        Read(first + APART),
        UserWrite(first, 2),
        // The entry changes: what hung there is cut off.
        Write8(WINDOW_DIRECTORY + 8, (MMIO + LARGE) | P | A | PS),
        Invlpg(first),
        Read(first),
        Write(first, 3),
        UserRead(first),
    ])
}

/// A large page over large memory in which one small page becomes a table.
fn splits() -> Program {
    let mut program = start("A table within a large page", Paging::Long);
    program.image.entry(WINDOW_DIRECTORY, 1, HUGE.start | RWU | PS);
    let first = WINDOW + LARGE;
    // A table, written through the large page.
    let table = HUGE.start + 0x8000;
    program.actions = vec![slot()];
    program.about = &["level: 2", "direct: true"];
    program.then(&[
        Act,
        Write8(first + 0x8000, DATA | RWU),
        Write8(WINDOW_DIRECTORY + 24, table | RWU),
        Read(WINDOW + 3 * LARGE),
        Cr3(low(ROOT)),
        Read(WINDOW + 3 * LARGE),
        Write8(first + 0x8000, (DATA + APART) | RWU),
        Invlpg(WINDOW + 3 * LARGE),
        Read(WINDOW + 3 * LARGE),
    ])
}
