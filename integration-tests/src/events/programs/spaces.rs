//! Address spaces: CR3 changes, CR0 and CR4 change.

use super::tables::{A, APART, DATA, LOW_TABLE, MMIO, P, POINTERS, ROOT, RWU, SPARE, U, WINDOW_TABLE, low, start};
use crate::events::program::Step::{Cr0, Cr3, Cr4, Execute, Read, UserRead, UserWrite, Write, Write8};
use crate::events::program::{Paging, Program, Step};
use umbra_vcpu::emulate::state::{cr0, cr4};

pub fn programs() -> Vec<Program> {
    vec![
        switching("CR3 switching among three spaces", Paging::Long, 3),
        // As many as are remembered, and one more.
        switching("CR3 switching among four spaces", Paging::Long, 4),
        switching("CR3 switching among five spaces", Paging::Long, 5),
        switching("CR3 switching, PAE", Paging::Pae, 2),
        switching("CR3 switching, 32-bit", Paging::Bits32, 2),
        toggled("Paging off and on, 32-bit", Paging::Bits32),
        toggled("Paging off and on, PAE", Paging::Pae),
        write_protect(),
        supervisor_modes(),
    ]
}

/// Roots that share everything below, in turns; with an edit in between.
fn switching(name: &'static str, paging: Paging, count: u64) -> Program {
    let mut program = start(name, paging);
    let page = program.window(0, DATA | RWU);
    let device = program.window(8, MMIO | RWU);
    let other = program.window(16, (DATA + APART) | RWU);
    let roots: Vec<u64> = (0..count)
        .map(|root| if root == 0 { ROOT } else { SPARE + root * APART })
        .collect();
    let image = &mut program.image;
    for &root in &roots[1..] {
        match paging {
            Paging::Bits32 => {
                image.entry4(root, 0, low(LOW_TABLE | RWU));
                image.entry4(root, super::tables::WINDOW >> 22, low(WINDOW_TABLE | RWU));
            }
            Paging::Pae => {
                image.entry(root, 0, super::tables::LOW_DIRECTORY | P);
                image.entry(root, 1, super::tables::WINDOW_DIRECTORY | P);
            }
            Paging::Long | Paging::Off => image.entry(root, 0, POINTERS | RWU),
        }
    }
    let size = if paging == Paging::Bits32 { 4 } else { 8 };
    program.about = &["GetPage"];
    let mut steps: Vec<Step> = Vec::new();
    for round in 0..2 {
        for &root in &roots {
            steps.extend([Cr3(low(root)), Write(page, round), Read(device)]);
        }
        steps.push(Write(
            WINDOW_TABLE + 16 * size,
            low((DATA + u64::from(round) * APART) | RWU),
        ));
        steps.push(Read(other));
    }
    steps.extend([Cr3(low(roots[1])), Read(other), Cr3(low(roots[1])), Read(device)]);
    program.then(&steps)
}

/// Everything is mapped where it is, so the program goes on without paging.
fn toggled(name: &'static str, paging: Paging) -> Program {
    let mut program = start(name, paging);
    let page = program.window(0, DATA | RWU);
    let device = program.window(8, MMIO | RWU);
    program.about = &["direct: true"];
    let (on, off) = (paging.cr0(), paging.cr0() & !cr0::PG);
    program.then(&[
        Write(page, 1),
        Read(device),
        Cr0(low(off)),
        Read(MMIO),
        Read(MMIO + APART),
        Read(MMIO),
        Cr0(low(on)),
        Write(page, 2),
        Read(device),
        Cr0(low(off)),
        Read(MMIO + APART),
        Cr0(low(on)),
        Read(page),
    ])
}

/// CR0.WP: a supervisor writes to what is read-only.
fn write_protect() -> Program {
    let mut program = start("CR0.WP off and on", Paging::Long);
    let user = program.window(0, DATA | P | U | A);
    let own = program.window(8, (DATA + APART) | P | A);
    let device = program.window(16, MMIO | P | U | A);
    let (on, off) = (low(program.paging.cr0()), low(program.paging.cr0() & !cr0::WP));
    program.about = &["WalkerError", "GetPage"];
    program.then(&[
        Write(user, 1),
        Read(user),
        Cr0(off),
        Write(user, 2),
        Read(user),
        UserRead(user),
        UserWrite(user, 3),
        Write(user, 4),
        Read(own),
        Write(own, 5),
        Write(device, 6),
        Cr0(on),
        Write(user, 7),
        UserRead(user),
        Write(device, 8),
    ])
}

/// CR4.SMEP, SMAP and PGE.
fn supervisor_modes() -> Program {
    let mut program = start("CR4: SMEP, SMAP, PGE", Paging::Long);
    let code = program.window(0, DATA | RWU);
    let own = program.window(8, (DATA + APART) | P | A);
    program.image.jump_back(DATA);
    program.image.jump_back(DATA + APART);
    let base = program.paging.cr4();
    program.about = &["WalkerError"];
    program.then(&[
        Execute(code),
        Read(code),
        Cr4(low(base | cr4::SMEP)),
        Execute(code),
        Execute(own),
        Read(code),
        Cr4(low(base | cr4::SMEP | cr4::SMAP)),
        Read(code),
        Write(code, 1),
        UserRead(code),
        Read(own),
        Cr4(low(base | cr4::PGE)),
        Read(code),
        Write8(WINDOW_TABLE, (DATA + 2 * APART) | RWU),
        Cr4(low(base)),
        Read(code),
    ])
}
