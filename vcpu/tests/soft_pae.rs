//! PAE paging on the software CPU: the PDPTE registers are what memory held when they were loaded.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how tests fail")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "small addresses, and bits"
)]

#[path = "support/soft_machine.rs"]
mod soft_machine;

use iced_x86::code_asm::*;
use soft_machine::{IDT, Machine};
use umbra_memslots::{Gpa, GuestMemory};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};

const RAM: u64 = 1 << 20;
const CODE: u64 = 0x1000;
const HANDLER: u64 = 0x3000;
/// Four PDPTEs, then the tables of the first and of the second GiB, of which there are two.
const PDPT: u32 = 0x1_0020;
const LOW: u64 = 0x1_1000;
const FIRST: u64 = 0x1_2000;
const SECOND: u64 = 0x1_3000;
const PAGES: u64 = 0x1_4000;
/// An address in the second GiB.
const PLACE: u32 = 1 << 30;
/// Where the second PDPTE is, in the identity-mapped first GiB.
const ENTRY: u32 = PDPT + 8;

/// In each GiB's table the first 2 MiB are mapped: to themselves, or by a table to one page that holds 1 or 2.
fn machine() -> Machine {
    let machine = Machine::new(RAM);
    let entries = [
        (u64::from(PDPT), LOW | 1),
        (u64::from(ENTRY), FIRST | 1),
        (LOW, 0x83),
        (FIRST, PAGES | 3),
        (SECOND, (PAGES + 0x1000) | 3),
        (PAGES, 0x8_0003),
        (PAGES + 0x1000, 0x8_1003),
        (0x8_0000, 1),
        (0x8_1000, 2),
        (IDT + 8 * 13, HANDLER | 8 << 16 | 0x8e00 << 32),
    ];
    for (at, value) in entries {
        machine.ram.write(Gpa::new(at), &value.to_le_bytes()).unwrap();
    }
    machine
}

fn run(machine: &Machine, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> (u64, u64, u64) {
    let mut assembler = CodeAssembler::new(32).unwrap();
    let a = &mut assembler;
    a.mov(eax, cr4).unwrap();
    a.or(eax, 0x20).unwrap();
    a.mov(cr4, eax).unwrap();
    a.mov(eax, PDPT).unwrap();
    a.mov(cr3, eax).unwrap();
    a.mov(eax, cr0).unwrap();
    a.or(eax, 0x8000_0000u32 as i32).unwrap();
    a.mov(cr0, eax).unwrap();
    code(a).unwrap();
    machine
        .ram
        .write(Gpa::new(CODE), &assembler.assemble(CODE).unwrap())
        .unwrap();
    let mut vcpu = machine.vcpu(CODE, 0x9000);
    vcpu.stop_after(10_000);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
    let regs = vcpu.regs().unwrap();
    (regs.rbx, regs.rcx, regs.rdx)
}

#[test]
fn entry_in_memory_counts_when_cr3_is_loaded_and_no_earlier() {
    let seen = run(&machine(), |a| {
        a.mov(ebx, dword_ptr(PLACE))?;
        a.mov(dword_ptr(ENTRY), SECOND as u32 | 1)?;
        // None of these loads it.
        a.invlpg(byte_ptr(PLACE))?;
        a.mov(eax, cr0)?;
        a.xor(eax, 8)?;
        a.mov(cr0, eax)?;
        a.mov(eax, cr4)?;
        a.xor(eax, 4)?;
        a.mov(cr4, eax)?;
        a.mov(ecx, dword_ptr(PLACE))?;
        a.mov(eax, cr3)?;
        a.mov(cr3, eax)?;
        a.mov(edx, dword_ptr(PLACE))?;
        a.hlt()
    });
    assert_eq!(seen, (1, 1, 2));
}

#[test]
fn entry_with_a_reserved_bit_is_refused_and_the_old_ones_stay() {
    let machine = machine();
    // The handler notes that it ran, steps over `mov cr3` and drops the error code.
    let mut handler = CodeAssembler::new(32).unwrap();
    let a = &mut handler;
    a.inc(edx).unwrap();
    a.add(dword_ptr(esp + 4), 3).unwrap();
    a.add(esp, 4).unwrap();
    a.iretd().unwrap();
    machine
        .ram
        .write(Gpa::new(HANDLER), &handler.assemble(HANDLER).unwrap())
        .unwrap();
    let seen = run(&machine, |a| {
        a.xor(edx, edx)?;
        a.mov(dword_ptr(ENTRY), SECOND as u32 | 3)?;
        a.mov(eax, PDPT)?;
        a.mov(cr3, eax)?;
        a.mov(ebx, dword_ptr(PLACE))?;
        a.mov(ecx, cr3)?;
        a.hlt()
    });
    assert_eq!(seen, (1, u64::from(PDPT), 1));
}
