//! Several software CPUs in one machine, each on a thread of its own: what one does, the others must see as on real
//! hardware.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how tests fail")]

#[path = "support/soft_machine.rs"]
mod soft_machine;

use iced_x86::code_asm::*;
use soft_machine::Machine;
use umbra_memslots::{AddressSpaceId, Gpa, GuestMemory};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::regs::Regs;
use umbra_vcpu::soft::SoftVcpu;

const RAM: u64 = 1 << 20;
/// Where the first CPU's code begins; the next one's lies a page further.
const CODE: u64 = 0x1_0000;
const PAGE: u64 = 0x1000;
/// What the CPUs share.
const SHARED: u32 = 0x4_0000;
const ROUNDS: u32 = 600;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Where a CPU's code begins.
fn code_of(cpu: usize) -> u64 {
    CODE + cpu as u64 * PAGE
}

/// A CPU that is about to run the program that [`load`] gave it.
fn cpu(machine: &Machine, number: usize) -> SoftVcpu {
    machine.vcpu(code_of(number), 0x8_0000 + number as u64 * PAGE)
}

/// Puts each program, with a `hlt` behind it, where its CPU begins.
fn load(machine: &Machine, programs: &[Code]) {
    for (cpu, program) in programs.iter().enumerate() {
        let mut code = CodeAssembler::new(32).unwrap();
        program(&mut code).unwrap();
        code.hlt().unwrap();
        let code = code.assemble(code_of(cpu)).unwrap();
        machine.ram.write(Gpa::new(code_of(cpu)), &code).unwrap();
    }
}

/// Runs each program on a CPU of its own until all have halted. EDI is the CPU's number.
fn run(machine: &Machine, programs: &[Code]) -> Vec<Regs> {
    load(machine, programs);
    std::thread::scope(|scope| {
        let run_one = |number: usize| {
            let mut vcpu = cpu(machine, number);
            let regs = vcpu.regs().unwrap();
            vcpu.set_regs(&Regs {
                rdi: number as u64,
                ..regs
            })
            .unwrap();
            move || {
                vcpu.stop_after(200_000_000);
                let exit = vcpu.run(VmEntry::Resume).unwrap();
                assert_eq!(exit, VmExit::Hlt, "CPU {number}");
                vcpu.regs().unwrap()
            }
        };
        let threads: Vec<_> = (0..programs.len()).map(|number| scope.spawn(run_one(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn word(machine: &Machine, at: u32) -> u64 {
    let mut bytes = [0; 8];
    machine.ram.read(Gpa::new(u64::from(at)), &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// Counts with locked instructions: aligned, within a page but unaligned, across two pages, and 8 bytes wide.
fn count(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut round, mut again) = (a.create_label(), a.create_label());
    a.mov(esi, ROUNDS)?;
    a.set_label(&mut round)?;
    a.lock().inc(dword_ptr(SHARED))?;
    a.mov(eax, 1)?;
    a.lock().xadd(dword_ptr(SHARED + 0x11), eax)?;
    a.lock().add(dword_ptr(SHARED + 0xffe), 1)?;
    a.mov(eax, dword_ptr(SHARED + 0x40))?;
    a.mov(edx, dword_ptr(SHARED + 0x44))?;
    a.set_label(&mut again)?;
    a.mov(ebx, eax)?;
    a.mov(ecx, edx)?;
    a.add(ebx, 1)?;
    a.adc(ecx, 1)?;
    a.lock().cmpxchg8b(qword_ptr(SHARED + 0x40))?;
    a.jne(again)?;
    a.dec(esi)?;
    a.jne(round)
}

#[test]
fn locked_instructions_lose_nothing_wherever_they_point() {
    let machine = Machine::new(RAM);
    run(&machine, &[count as Code; 3]);
    let total = u64::from(3 * ROUNDS);
    assert_eq!(word(&machine, SHARED) & 0xffff_ffff, total, "aligned");
    assert_eq!(word(&machine, SHARED + 0x11) & 0xffff_ffff, total, "unaligned");
    assert_eq!(word(&machine, SHARED + 0xffe) & 0xffff_ffff, total, "across pages");
    assert_eq!(word(&machine, SHARED + 0x40), total << 32 | total, "8 bytes");
}

/// Says that round ESI is ready, waits for the other to have answered it, and goes on to the next.
fn hand_over(a: &mut CodeAssembler, round: CodeLabel) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    a.mov(dword_ptr(SHARED), esi)?;
    a.set_label(&mut wait)?;
    a.pause()?;
    a.cmp(dword_ptr(SHARED + 64), esi)?;
    a.jne(wait)?;
    next_round(a, round)
}

/// Answers round ESI, and goes on to the next.
fn answer(a: &mut CodeAssembler, round: CodeLabel) -> Result<(), IcedError> {
    a.mov(dword_ptr(SHARED + 64), esi)?;
    next_round(a, round)
}

fn next_round(a: &mut CodeAssembler, round: CodeLabel) -> Result<(), IcedError> {
    a.inc(esi)?;
    a.cmp(esi, ROUNDS)?;
    a.jbe(round)
}

/// A function in a page of its own: `mov eax, imm32; ret`.
const FUNCTION: u32 = 0x6_0000;

#[test]
fn code_that_another_cpu_changes_is_seen_after_a_serialising_instruction() {
    let machine = Machine::new(RAM);
    machine
        .ram
        .write(Gpa::new(u64::from(FUNCTION)), &[0xb8, 0, 0, 0, 0, 0xc3])
        .unwrap();
    // The writer puts the round's number into the function, says so, and waits for the other to have called it.
    let writer: Code = |a| {
        let mut round = a.create_label();
        a.mov(esi, 1)?;
        a.set_label(&mut round)?;
        a.mov(dword_ptr(FUNCTION + 1), esi)?;
        hand_over(a, round)
    };
    let caller: Code = |a| {
        let (mut round, mut wait, mut good) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(esi, 1)?;
        a.set_label(&mut round)?;
        a.mov(edx, FUNCTION)?;
        a.set_label(&mut wait)?;
        a.call(edx)?;
        a.cmp(dword_ptr(SHARED), esi)?;
        a.jne(wait)?;
        a.cpuid()?;
        a.mov(edx, FUNCTION)?;
        a.call(edx)?;
        a.cmp(eax, esi)?;
        a.je(good)?;
        a.inc(ebp)?;
        a.set_label(&mut good)?;
        answer(a, round)
    };
    let ended = run(&machine, &[writer, caller]);
    assert_eq!(ended[1].rbp, 0, "calls of old code");
}

/// A page directory with 4 MiB pages that maps everything to itself, a page table for the window, and the window.
const DIRECTORY: u32 = 0x5_0000;
const TABLE: u32 = 0x5_1000;
const WINDOW: u32 = 0x40_0000;
/// Two frames between which the window is moved.
const FRAMES: u32 = 0x7_0000;

/// Paging with 4 MiB pages, on the directory that both CPUs share.
fn turn_paging_on(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, 0x10)?;
    a.mov(cr4, eax)?;
    a.mov(eax, DIRECTORY)?;
    a.mov(cr3, eax)?;
    a.mov(eax, cr0)?;
    a.or(eax, i32::MIN)?;
    a.mov(cr0, eax)
}

#[test]
fn mapping_that_another_cpu_changes_is_seen_after_a_flush() {
    let machine = Machine::new(RAM);
    let put = |at: u32, value: u32| {
        machine
            .ram
            .write(Gpa::new(u64::from(at)), &value.to_le_bytes())
            .unwrap();
    };
    put(DIRECTORY, 0x83);
    put(DIRECTORY + 4, TABLE | 3);
    // What each frame holds is its number.
    put(FRAMES, 0);
    put(FRAMES + 0x1000, 1);
    // The writer knows the table as ordinary memory first, then moves the window: sometimes through a TLB entry of a time
    // in which nobody walked the table.
    let writer: Code = |a| {
        let mut round = a.create_label();
        turn_paging_on(a)?;
        a.mov(esi, 1)?;
        a.set_label(&mut round)?;
        a.inc(dword_ptr(TABLE + 0x800))?;
        a.mov(eax, esi)?;
        a.and(eax, 1)?;
        a.shl(eax, 12)?;
        a.add(eax, FRAMES.cast_signed() | 3)?;
        a.mov(dword_ptr(TABLE), eax)?;
        hand_over(a, round)
    };
    let reader: Code = |a| {
        let (mut wait, mut good) = (a.create_label(), a.create_label());
        let (mut all, mut flushed) = (a.create_label(), a.create_label());
        turn_paging_on(a)?;
        a.mov(esi, 1)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(SHARED), esi)?;
        a.jne(wait)?;
        // By turns one page, and everything: only then is the table protected again.
        a.test(esi, 2)?;
        a.jne(all)?;
        a.invlpg(dword_ptr(WINDOW))?;
        a.jmp(flushed)?;
        a.set_label(&mut all)?;
        a.mov(eax, cr3)?;
        a.mov(cr3, eax)?;
        a.set_label(&mut flushed)?;
        a.mov(eax, esi)?;
        a.and(eax, 1)?;
        a.cmp(dword_ptr(WINDOW), eax)?;
        a.je(good)?;
        a.inc(ebp)?;
        a.set_label(&mut good)?;
        answer(a, wait)
    };
    let ended = run(&machine, &[writer, reader]);
    assert_eq!(ended[1].rbp, 0, "accesses by an old mapping");
}

#[test]
fn slot_that_goes_is_not_used_any_more_by_any_cpu() {
    // CPUs write to a page all the time while it comes and goes; what they write to where no slot is comes out.
    let machine = Machine::new(RAM);
    let at = 0x20_0000u64;
    let spin: Code = |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(dword_ptr(0x20_0000u32), edi)?;
        a.cmp(dword_ptr(SHARED), 0)?;
        a.je(again)
    };
    load(&machine, &[spin; 2]);
    let exits = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|number| {
                let mut vcpu = cpu(&machine, number);
                scope.spawn(move || {
                    let mut exits = 0u32;
                    loop {
                        match vcpu.run(VmEntry::Resume).unwrap() {
                            VmExit::Mmio { gpa, .. } if gpa == Gpa::new(at) => exits += 1,
                            VmExit::Hlt => return exits,
                            other => panic!("{other:?}"),
                        }
                    }
                })
            })
            .collect();
        for _ in 0..200 {
            let mapping = std::sync::Arc::new(umbra_memslots::ram::HostMapping::anonymous(PAGE).unwrap());
            let slot = machine.ram.map(Gpa::new(at), mapping).unwrap();
            std::thread::yield_now();
            machine.ram.remove(AddressSpaceId::Normal, slot).unwrap();
        }
        machine.ram.write(Gpa::new(u64::from(SHARED)), &[1]).unwrap();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>()
    });
    assert!(exits > 0, "the page was never seen without a slot");
}
