//! Runs each loop at CPL 3 as often as there are passes. What the guest says is said at CPL 0: not every KVM lets CPL 3
//! use ports.

use super::plain::{branch, integer, memory};
use super::sse::{floats, packed};
use super::strings::{pages, strings};
use super::system::{interrupt, mmio, system_call};
use super::{Work, kernel, layout, report};
use crate::speed::rows::Row;
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, CodeLabel, al, dx, eax, edi, r14d, r15d, rax, rdi};

/// The debug-exit device's port: ends the machine where there is one.
const DEBUG_EXIT: u32 = 0xf4;

/// The code for [`layout::PROGRAM`].
pub fn program(work: &Work) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut pass = a.create_label();
    a.mov(r15d, work.passes)?;
    a.set_label(&mut pass)?;
    for row in Row::ALL.into_iter().filter(|row| work.rows.contains(row)) {
        let rounds = work.rounds(row);
        match row {
            // Run already, in its own mode.
            Row::Real => {}
            Row::Integer => integer(&mut a, rounds)?,
            Row::Memory => memory(&mut a, rounds)?,
            Row::Branch => branch(&mut a, rounds)?,
            Row::Pages => pages(&mut a, rounds)?,
            Row::Strings => strings(&mut a, rounds)?,
            Row::SseInteger => packed(&mut a, rounds)?,
            Row::SseFloat => floats(&mut a, rounds)?,
            Row::Mmio => mmio(&mut a, rounds)?,
            Row::Syscall => system_call(&mut a, rounds)?,
            Row::Interrupt => interrupt(&mut a, rounds)?,
        }
    }
    a.dec(r15d)?;
    a.jne(pass)?;
    let mut rest = a.create_label();
    report::say(&mut a, b'.')?;
    report::say(&mut a, b'\n')?;
    a.mov(dx, DEBUG_EXIT)?;
    a.xor(eax, eax)?;
    a.out(dx, al)?;
    a.set_label(&mut rest)?;
    a.pause()?;
    a.jmp(rest)?;
    a.assemble(u64::from(layout::PROGRAM))
}

/// A row whose loop runs at CPL 3: see [`report::row`].
pub fn row(
    a: &mut CodeAssembler,
    row: Row,
    prepare: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    run: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    report::row(a, row.letter(), prepare, |a| kernel::at_user(a, run))
}

/// Begins a loop of this many rounds, counted in r14d.
pub fn begin(a: &mut CodeAssembler, rounds: u32) -> Result<CodeLabel, IcedError> {
    let mut again = a.create_label();
    a.mov(r14d, rounds)?;
    a.set_label(&mut again)?;
    Ok(again)
}

/// Ends it: two instructions.
pub fn end(a: &mut CodeAssembler, again: CodeLabel) -> Result<(), IcedError> {
    a.dec(r14d)?;
    a.jne(again)
}

/// The checksum, edi, of what is in rax.
pub fn fold(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rdi, rax)?;
    a.shr(rax, 32)?;
    a.xor(edi, eax)
}
