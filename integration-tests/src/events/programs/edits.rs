//! The guest changes its own tables, and flushes or doesn't.

use super::tables::{
    A, APART, D, DATA, LOW_TABLE, MMIO, P, ROOT, RWU, SPARE, U, W, WINDOW_DIRECTORY, WINDOW_TABLE, low, start,
};
use crate::events::memory::Action;
use crate::events::program::Step::{Act, Cr3, Execute, Invlpg, Read, UserRead, UserWrite, Write, Write8};
use crate::events::program::{Differs, Paging, Program};

pub fn programs() -> Vec<Program> {
    let mut programs = vec![
        invlpg(),
        invlpg_mmio(),
        with_reload("Edits of a last-level table, then CR3, four levels", Paging::Long),
        with_reload("Edits of a last-level table, then CR3, PAE", Paging::Pae),
        with_reload("Edits of a last-level table, then CR3, 32-bit", Paging::Bits32),
        upper(),
        flooding(),
        misaligned(),
        faulting(),
        becomes_upper(),
        own_table(),
        flags(),
    ];
    programs.extend([mmio_sync(), mmio_sync_later()]);
    programs
}

/// A page moves; after INVLPG the new one is seen.
fn invlpg() -> Program {
    let mut program = start("INVLPG after an edit", Paging::Long);
    let page = program.window(0, DATA | RWU);
    let other = program.window(8, (DATA + APART) | RWU);
    let table = WINDOW_TABLE;
    program.about = &["UnsyncPage", "SetSpte"];
    program.then(&[
        Write(page, 1),
        Read(other),
        // The table becomes writable: its shadow is unsync.
        Write8(table, (DATA + 2 * APART) | RWU),
        Read(page),
        Invlpg(page),
        Read(page),
        Write(page, 2),
        // Gone.
        Write8(table, 0),
        Invlpg(page),
        Read(page),
        // Back, without INVLPG, which isn't needed.
        Write8(table, DATA | RWU),
        Read(page),
        // Nobody has changed this one.
        Invlpg(other),
        Read(other),
        // Nothing there.
        Invlpg(page + 0x20_0000),
        // No right to write any more.
        Write8(table + 64, (DATA + APART) | P | U | A),
        Invlpg(other),
        Write(other, 3),
        UserRead(other),
    ])
}

/// INVLPG of MMIO, whose table has no other shadow of its state than an MMIO SPTE.
fn invlpg_mmio() -> Program {
    let mut program = start("INVLPG of MMIO", Paging::Long);
    let page = program.window(0, MMIO | RWU);
    let other = program.window(8, (MMIO + APART) | RWU);
    program.about = &["MarkMmioSpte", "UnsyncPage"];
    program.then(&[
        Read(page),
        Read(other),
        // In sync: the MMIO SPTE stays.
        Invlpg(page),
        Read(page),
        Read(other),
        Write8(WINDOW_TABLE, (MMIO + 2 * APART) | RWU),
        Invlpg(page),
        Read(page),
        Read(other),
        Write8(WINDOW_TABLE, DATA | RWU),
        Invlpg(page),
        Write(page, 1),
        Write8(WINDOW_TABLE, MMIO | RWU),
        Invlpg(page),
        Write(page, 1),
        Read(other),
        Read(page),
    ])
}

/// Many edits without a flush, then one flush by loading CR3.
fn with_reload(name: &'static str, paging: Paging) -> Program {
    let size = if paging == Paging::Bits32 { 4 } else { 8 };
    let mut program = start(name, paging);
    let pages: Vec<u64> = (0..4)
        .map(|page| program.window(page * 8, (DATA + page * APART) | RWU))
        .collect();
    let entry = |page: u64| WINDOW_TABLE + page * 8 * size;
    program.about = &["UnsyncPage", "SyncPage"];
    let reload = Cr3(low(program.cr3));
    program.then(&[
        Write(pages[0], 1),
        Write(pages[1], 1),
        Read(pages[2]),
        Write(entry(0), low((DATA + 5 * APART) | RWU)),
        Write(entry(1), low((DATA + APART) | P | U | A | D)),
        Write(entry(2), 0),
        Read(pages[0]),
        Write(pages[1], 2),
        Read(pages[2]),
        reload,
        Write(pages[0], 3),
        Write(pages[1], 4),
        Read(pages[2]),
        Read(pages[3]),
        // In sync again, and so write-protected: once more.
        Write(entry(3), low((DATA + 6 * APART) | RWU)),
        reload,
        UserWrite(pages[3], 5),
        reload,
    ])
}

/// Entries above the last level change: writes are emulated and what hung there is cut off.
fn upper() -> Program {
    let mut program = start("Edits of a directory", Paging::Long);
    let page = program.window(0, DATA | RWU);
    program.image.entry(SPARE, 0, (DATA + APART) | RWU);
    program.about = &["PageFault", "GetPage"];
    program.then(&[
        Write(page, 1),
        Write8(WINDOW_DIRECTORY, SPARE | RWU),
        Write(page, 2),
        Read(page),
        Write8(WINDOW_DIRECTORY, 0),
        Read(page),
        Write8(WINDOW_DIRECTORY, WINDOW_TABLE | P | U | A),
        Read(page),
        Write(page, 3),
        Cr3(low(ROOT)),
        Read(page),
    ])
}

/// A directory is written to again and again without being used: it is taken for ordinary data.
fn flooding() -> Program {
    let mut program = start("Writes that flood a directory", Paging::Long);
    let page = program.window(0, DATA | RWU);
    program.about = &["PrepareZapPage"];
    let write = |entry: u64| Write8(WINDOW_DIRECTORY + 8 * entry, 0);
    program.then(&[
        Write(page, 1),
        write(16),
        write(24),
        write(32),
        write(40),
        write(48),
        Write(page, 2),
        Read(page),
    ])
}

/// Half of one entry and half of the next at once.
fn misaligned() -> Program {
    let mut program = start("A write across two entries of a directory", Paging::Long);
    let page = program.window(0, DATA | RWU);
    program.about = &["PrepareZapPage"];
    program.then(&[
        Write(page, 1),
        // One half.
        Write(WINDOW_DIRECTORY + 128, 0),
        Write(page, 2),
        Write8(WINDOW_DIRECTORY + 132, 0),
        Write(page, 3),
        Write(WINDOW_DIRECTORY + 130, 0),
        Read(page),
    ])
}

/// A fault of the guest's makes the CPU forget what it knew of the page, without INVLPG.
fn faulting() -> Program {
    let mut program = start("Stale translations after a fault", Paging::Long);
    let page = program.window(0, DATA | P | A | D);
    let device = program.window(8, MMIO | P | A | D);
    program.about = &["UnsyncPage", "WalkerError { code: 3 }"];
    program.then(&[
        Read(page),
        Read(device),
        Write8(WINDOW_TABLE, (DATA + APART) | P | A | D),
        Write8(WINDOW_TABLE + 64, (DATA + 2 * APART) | P | A | D),
        // The old page may be known still.
        Read(page),
        Write(page, 1),
        Read(page),
        Write(device, 1),
        Read(device),
    ])
}

/// What was a table of the last level, and unsync, is a directory from now on.
fn becomes_upper() -> Program {
    let mut program = start("A table changes its level", Paging::Long);
    let page = program.window(0, DATA | RWU);
    let second = 0x20_0000;
    program.image.entry(WINDOW_DIRECTORY, 1, SPARE | RWU);
    program.image.entry(SPARE, 0, WINDOW_TABLE | RWU);
    program.about = &["UnsyncPage", "PrepareZapPage"];
    program.then(&[
        Write(page, 1),
        Read(page + second),
        Write8(SPARE + 64, (DATA + APART) | RWU),
        Read(page + second),
        Read(page + second + 8 * 4096),
        // The pointers' third entry leads to it as a directory.
        Write8(super::tables::POINTERS + 16, SPARE | RWU),
        Read(page + (1 << 30)),
        Read(page + second),
        Write8(SPARE + 64, 0),
        Read(page + second),
    ])
}

/// The page that a program runs on, and its tables, through other mappings.
fn own_table() -> Program {
    let mut program = start("Tables mapped twice", Paging::Long);
    let table = program.window(0, WINDOW_TABLE | RWU);
    let below = program.window(8, LOW_TABLE | RWU);
    let page = program.window(16, DATA | RWU);
    let code = program.window(24, (DATA + APART) | RWU);
    program.image.jump_back(DATA + APART);
    program.about = &["UnsyncPage", "SyncPage"];
    program.then(&[
        Read(page),
        Read(table),
        Write8(table + 128, (DATA + 2 * APART) | RWU),
        Invlpg(page),
        Write(page, 1),
        Read(below),
        Write8(WINDOW_TABLE + 128, DATA | RWU),
        Cr3(low(ROOT)),
        Read(page),
        Execute(code),
        Write8(table + 128, (DATA + 2 * APART) | RWU),
        Invlpg(page),
        Read(page),
    ])
}

/// Accessed and dirty flags that the guest clears.
fn flags() -> Program {
    let mut program = start("Accessed and dirty flags", Paging::Long);
    let fresh = program.window(0, DATA | P | W | U);
    let clean = program.window(8, (DATA + APART) | P | W | U | A);
    let device = program.window(16, MMIO | P | W | U);
    program.about = &["SetAccessedBit", "SetDirtyBit"];
    program.then(&[
        Read(fresh),
        Write(fresh, 1),
        Read(clean),
        UserWrite(clean, 2),
        Read(device),
        Write(device, 3),
        Read(clean),
        Read(device),
        Write8(WINDOW_TABLE, DATA | P | W | U),
        Write8(WINDOW_TABLE + 64, (DATA + APART) | P | W | U | A),
        Invlpg(fresh),
        Invlpg(clean),
        Read(fresh),
        Write(clean, 4),
        Write(fresh, 5),
        Write8(WINDOW_TABLE + 128, MMIO | P | W | U | A),
        Cr3(low(ROOT)),
        Read(device),
        Write(device, 6),
    ])
}

/// The same after the slots have changed.
fn mmio_sync_later() -> Program {
    let mut program = start("MMIO in a table that catches up after the slots changed", Paging::Long);
    let page = program.window(0, MMIO | RWU);
    program.actions = vec![Action::Add {
        at: 0x1_0000_0000,
        bytes: 0x1000,
        read_only: false,
    }];
    program.about = &["SyncPage", "valid: false"];
    // Whether a slot was created over the frame, neither looks. KVM takes the SPTE for a new one all the same.
    program.differs = Some(Differs {
        kernel: "MarkMmioSpte { gfn: Gfn(0xd0000), access: AccessMask(xwu), generation: 4 }",
        ours: "MarkMmioSpte { gfn: Gfn(0xd0000), access: AccessMask(xwu), generation: 2 }",
    });
    program.then(&[
        Read(page),
        Write8(WINDOW_TABLE + 64, 0),
        Act,
        Cr3(low(ROOT)),
        Read(page),
    ])
}

/// MMIO SPTEs in an unsync table, when the guest flushes.
fn mmio_sync() -> Program {
    let mut program = start("MMIO in a table that catches up", Paging::Long);
    let stays = program.window(0, MMIO | RWU);
    let moves = program.window(8, (MMIO + APART) | RWU);
    let changes = program.window(16, (MMIO + 2 * APART) | RWU);
    program.about = &["SyncPage", "MarkMmioSpte"];
    program.then(&[
        Read(stays),
        Read(moves),
        Write(changes, 0),
        Write8(WINDOW_TABLE + 64, DATA | RWU),
        Write8(WINDOW_TABLE + 128, (MMIO + 2 * APART) | P | U | A),
        Read(stays),
        Cr3(low(ROOT)),
        Read(stays),
        Write(moves, 1),
        Read(changes),
        Write(changes, 2),
        Read(stays),
    ])
}
