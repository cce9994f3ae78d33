//! Debug registers and the traps of debugging against what the manual says of them (SDM vol. 3B chapter 18).
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code with small numbers"
)]

#[path = "support/flat_machine.rs"]
mod flat_machine;

use flat_machine::*;
use umbra_memslots::Gva;
use umbra_vcpu::emulate::exception::debug_cause::{REGISTER_ACCESS, SINGLE_STEP};
use umbra_vcpu::emulate::state::{RSP, cr4};
use umbra_vcpu::emulate::{Cpu, Event, Exception, Source, Step, exception, flags};

const TRAP: Step = Step::Done { trap: true };
/// R/W and LEN fields.
const EXECUTION: u64 = 0;
const WRITES: u64 = 1;
const PORTS: u64 = 2;
const DATA: u64 = 3;
const FOUR: u64 = 3 << 2;
const WATCHED: u64 = 0x6000;

/// Breakpoint `number` at `at`, enabled globally.
fn watch(cpu: &mut Cpu<Flat>, number: usize, at: u64, settings: u64) {
    cpu.state.debug[number] = at;
    cpu.state.debug[7] |= 2 << (2 * number) | settings << (16 + 4 * number) | 0x400;
}

/// In 64-bit mode at level 0, with RBX at the watched variable.
fn watcher(code: &[u8]) -> Cpu<Flat> {
    let mut cpu = machine(true, 0, code);
    cpu.state.gpr[3] = WATCHED;
    cpu
}

fn deliver(cpu: &mut Cpu<Flat>, exception: Exception) {
    gate(cpu, u64::from(exception.vector), 14, 0, 0);
    let event = Event {
        exception,
        source: Source::Exception,
    };
    assert_eq!(cpu.deliver(event), Ok(()));
}

/// RFLAGS in the frame of a handler that was entered in 64-bit mode.
fn saved_flags(cpu: &Cpu<Flat>, error_code: bool) -> u64 {
    cpu.env.number(cpu.state.gpr[RSP] + 16 + 8 * u64::from(error_code), 8)
}

#[test]
fn write_is_reported_behind_the_instruction_and_a_read_only_if_wanted() {
    // mov eax, [rbx]; mov [rbx], eax; mov [rbx + 4], eax
    let code = [0x8b, 0x03, 0x89, 0x03, 0x89, 0x43, 0x04];
    let mut cpu = watcher(&code);
    watch(&mut cpu, 2, WATCHED, WRITES | FOUR);
    cpu.env.put(WATCHED, &[1, 2, 3, 4]);
    assert_eq!(cpu.step(), DONE);
    assert_eq!((cpu.step(), cpu.state.rip), (TRAP, CODE + 4));
    let due = cpu.due().unwrap();
    assert_eq!(due, Exception::debug(1 << 2));
    assert_eq!((cpu.step(), cpu.due()), (DONE, None));

    // What DR6 said of breakpoints before is gone, what it said of steps is not.
    cpu.state.debug[6] = 0xffff_0ff0 | SINGLE_STEP | 3;
    deliver(&mut cpu, due);
    assert_eq!(cpu.state.debug[6], 0xffff_0ff0 | SINGLE_STEP | 1 << 2);
    assert_eq!(saved_flags(&cpu, false) & flags::RF, 0);

    let mut cpu = watcher(&code);
    watch(&mut cpu, 0, WATCHED, DATA | FOUR);
    assert_eq!((cpu.step(), cpu.state.rip), (TRAP, CODE + 2));
}

#[test]
fn breakpoints_that_are_not_enabled_say_nothing() {
    let mut cpu = watcher(&[0x89, 0x03]);
    watch(&mut cpu, 1, WATCHED, WRITES);
    cpu.state.debug[7] &= !0xff;
    assert_eq!(cpu.step(), DONE);
}

#[test]
fn every_way_to_write_is_seen() {
    for code in [
        &[0x00, 0x03][..],                           // add [rbx], al
        &[0xf0, 0x48, 0x0f, 0xc1, 0x03],             // lock xadd [rbx], rax
        &[0x48, 0x0f, 0xc7, 0x0b],                   // cmpxchg16b [rbx]
        &[0x0f, 0x11, 0x43, 0xf1],                   // movups [rbx - 15], xmm0
        &[0xdd, 0x5b, 0xf9],                         // fstp qword [rbx - 7]
        &[0x0f, 0xae, 0x83, 0x60, 0xfe, 0xff, 0xff], // fxsave [rbx - 416]
        &[0x8f, 0x03],                               // pop [rbx]
        &[0xff, 0x53, 0x08],                         // call [rbx + 8]: pushes below STACK, see RSP
        &[0x0f, 0x01, 0x43, 0xfc],                   // sgdt [rbx - 4]
    ] {
        let mut cpu = watcher(code);
        cpu.state.sys.cr4 |= cr4::OSFXSR;
        watch(&mut cpu, 3, WATCHED, WRITES);
        if code[..2] == [0xff, 0x53] {
            cpu.state.gpr[RSP] = WATCHED + 8;
        }
        assert_eq!(
            (cpu.step(), cpu.due()),
            (TRAP, Some(Exception::debug(1 << 3))),
            "{code:02x?}"
        );
    }
}

#[test]
fn instruction_breakpoint_comes_before_the_instruction_and_rf_passes_it() {
    let mut cpu = watcher(&[0xff, 0xc0, 0xff, 0xc0]); // inc eax, twice
    watch(&mut cpu, 0, CODE, EXECUTION);
    let before = cpu.state.clone();
    assert_eq!(cpu.step(), Step::Fault(Exception::debug(1)));
    assert_eq!(cpu.state, before);
    deliver(&mut cpu, Exception::debug(1));
    assert_eq!(cpu.state.debug[6] & 15, 1);
    assert_eq!(saved_flags(&cpu, false) & flags::RF, 0, "the handler is to set RF");

    // iretq with RF in the frame.
    let frame = cpu.state.gpr[RSP];
    let with_rf = saved_flags(&cpu, false) | flags::RF;
    cpu.env.put(frame + 16, &with_rf.to_le_bytes());
    cpu.env.put(HANDLER, &[0x48, 0xcf]);
    assert_eq!((cpu.step(), cpu.state.rip), (DONE, CODE));
    assert!(cpu.state.flag(flags::RF));
    assert_eq!((cpu.step(), cpu.state.gpr[0]), (DONE, 1));
    assert!(!cpu.state.flag(flags::RF), "it is for one instruction");
    cpu.state.rip = CODE;
    assert_eq!(cpu.step(), Step::Fault(Exception::debug(1)));
}

#[test]
fn instruction_breakpoint_precedes_the_fault_of_the_fetch() {
    let mut cpu = watcher(&[]);
    cpu.state.rip = 0x1_0000;
    watch(&mut cpu, 1, 0x1_0000, EXECUTION);
    assert_eq!(cpu.step(), Step::Fault(Exception::debug(2)));
    cpu.state.rflags |= flags::RF;
    assert_eq!(cpu.step(), Step::Fault(Exception::page_fault(2, Gva::new(0x1_0000))));
}

#[test]
fn faults_save_rf_and_software_interrupts_do_not() {
    let mut cpu = watcher(&[0xcd, 0x30]);
    deliver(&mut cpu, Exception::gp(0));
    assert_eq!(saved_flags(&cpu, true) & flags::RF, flags::RF);
    let mut cpu = watcher(&[0xcd, 0x30]);
    gate(&mut cpu, 0x30, 14, 0, 0);
    cpu.state.rflags |= flags::RF;
    assert_eq!(cpu.step(), DONE);
    assert_eq!(saved_flags(&cpu, false) & flags::RF, 0);
    for vector in [exception::DF, exception::BP, exception::NMI] {
        assert!(!Exception::new(vector).is_fault());
    }
}

#[test]
fn repeated_string_instruction_traps_after_the_iteration_that_hit() {
    // rep movsb, 8 bytes, of which the fourth is watched
    let mut cpu = watcher(&[0xf3, 0xa4]);
    (cpu.state.gpr[1], cpu.state.gpr[6], cpu.state.gpr[7]) = (8, 0x7000, WATCHED - 3);
    watch(&mut cpu, 0, WATCHED, WRITES);
    assert_eq!((cpu.step(), cpu.state.rip), (TRAP, CODE));
    assert_eq!((cpu.state.gpr[1], cpu.state.gpr[7]), (4, WATCHED + 1));
    assert!(cpu.state.flag(flags::RF));
    assert_eq!(cpu.due(), Some(Exception::debug(1)));
    assert_eq!((cpu.step(), cpu.state.rip, cpu.state.gpr[1]), (DONE, CODE + 2, 0));
    assert!(!cpu.state.flag(flags::RF));

    // The last iteration traps behind the instruction.
    let mut cpu = watcher(&[0xf3, 0xaa]);
    (cpu.state.gpr[1], cpu.state.gpr[7]) = (4, WATCHED - 3);
    watch(&mut cpu, 0, WATCHED, WRITES);
    assert_eq!((cpu.step(), cpu.state.rip, cpu.state.gpr[1]), (TRAP, CODE + 2, 0));
    assert!(!cpu.state.flag(flags::RF));
}

#[test]
fn single_step_stops_at_each_iteration_and_shares_the_exception() {
    let mut cpu = watcher(&[0xf3, 0xaa]);
    (cpu.state.gpr[1], cpu.state.gpr[7]) = (2, WATCHED);
    cpu.state.rflags |= flags::TF;
    watch(&mut cpu, 0, WATCHED, DATA);
    assert_eq!((cpu.step(), cpu.state.gpr[1], cpu.state.rip), (TRAP, 1, CODE));
    assert_eq!(cpu.due(), Some(Exception::debug(SINGLE_STEP | 1)));
    assert_eq!((cpu.step(), cpu.state.gpr[1], cpu.state.rip), (TRAP, 0, CODE + 2));
    assert_eq!(cpu.due(), Some(Exception::debug(SINGLE_STEP)));
}

#[test]
fn ports_are_watched_with_the_debugging_extensions_only() {
    // in al, 0x70; out 0x71, ax; outsb
    let code = [0xe4, 0x70, 0x66, 0xe7, 0x71, 0x6e];
    for (extensions, step) in [(cr4::DE, TRAP), (0, DONE)] {
        let mut cpu = watcher(&code);
        cpu.state.sys.cr4 |= extensions;
        (cpu.state.gpr[2], cpu.state.gpr[6]) = (0x73, 0x6000);
        // Two bytes at 0x72 and 0x73; data at that address is something else.
        watch(&mut cpu, 0, 0x72, PORTS | 1 << 2);
        assert_eq!((cpu.step(), cpu.due()), (DONE, None));
        assert_eq!(cpu.step(), step);
        assert_eq!(cpu.due().is_some(), extensions != 0);
        assert_eq!(cpu.step(), step);
    }
    let mut cpu = watcher(&[0x8a, 0x04, 0x25, 0x72, 0, 0, 0]); // mov al, [0x72]
    cpu.state.sys.cr4 |= cr4::DE;
    watch(&mut cpu, 0, 0x72, PORTS);
    assert_eq!(cpu.step(), DONE);
}

#[test]
fn load_of_ss_holds_the_trap_for_one_instruction() {
    let mut cpu = watcher(&[0x8e, 0x13, 0x90]); // mov ss, [rbx]; nop
    cpu.env.put(WATCHED, &KERNEL_DATA.to_le_bytes());
    watch(&mut cpu, 0, WATCHED, DATA);
    assert_eq!(cpu.step(), DONE);
    assert_eq!((cpu.step(), cpu.state.rip), (TRAP, CODE + 3));
    assert_eq!(cpu.due(), Some(Exception::debug(1)));
    // The step of the load itself is lost, that of sti is not.
    let mut cpu = watcher(&[0x8e, 0xd0, 0xfa, 0xfb]); // mov ss, eax; cli; sti
    cpu.state.gpr[0] = u64::from(KERNEL_DATA);
    cpu.state.rflags |= flags::TF;
    let steps: Vec<(Step, Option<Exception>)> = (0..3).map(|_| (cpu.step(), cpu.due())).collect();
    let step = (TRAP, Some(Exception::debug(SINGLE_STEP)));
    assert_eq!(steps, [(DONE, None), step, step]);
}

#[test]
fn instruction_that_faults_has_touched_nothing() {
    let mut cpu = watcher(&[0xa4]); // movsb into nothing
    (cpu.state.gpr[6], cpu.state.gpr[7]) = (WATCHED, 0x1_0000);
    watch(&mut cpu, 0, WATCHED, DATA);
    assert_eq!(cpu.step(), Step::Fault(Exception::page_fault(2, Gva::new(0x1_0000))));
    assert_eq!(cpu.due(), None);
}

#[test]
fn iteration_that_waits_for_a_device_is_reported_when_it_has_happened() {
    // rep movsb to the last byte before the device, and then to the device: the second byte that is read is watched.
    let mut cpu = watcher(&[0xf3, 0xa4]);
    cpu.env.0.resize(SLOW_DEVICE as usize, 0);
    (cpu.state.gpr[1], cpu.state.gpr[6], cpu.state.gpr[7]) = (3, WATCHED - 1, SLOW_DEVICE - 1);
    watch(&mut cpu, 0, WATCHED, DATA);
    assert_eq!((cpu.step(), cpu.due()), (Step::Repeat, None));
    assert_eq!((cpu.state.gpr[1], cpu.state.gpr[6]), (2, WATCHED), "one is done");
    assert!(matches!(cpu.step(), Step::Pending(_)));
    assert_eq!((cpu.due(), cpu.state.gpr[1]), (None, 2));
    // The device is gone.
    cpu.state.gpr[7] = WATCHED + 0x100;
    assert_eq!((cpu.step(), cpu.due()), (TRAP, Some(Exception::debug(1))));
    assert_eq!(cpu.state.gpr[1], 1);
}

#[test]
fn handlers_frame_is_watched_and_reported_in_the_handler() {
    let mut cpu = watcher(&[0x90]);
    watch(&mut cpu, 0, STACK - 8, WRITES);
    deliver(&mut cpu, Exception::new(exception::UD));
    assert_eq!((cpu.state.rip, cpu.due()), (HANDLER, Some(Exception::debug(1))));
    // A delivery that fails leaves nothing.
    let mut cpu = watcher(&[0x90]);
    watch(&mut cpu, 0, GDT + 8, DATA);
    deliver(&mut cpu, Exception::new(exception::UD));
    assert_eq!(cpu.due(), None, "descriptors are not watched");
}

#[test]
fn general_detect_guards_the_debug_registers() {
    let mut cpu = watcher(&[0x0f, 0x21, 0xf0]); // mov rax, dr6
    cpu.state.debug[7] = 0x2400;
    let before = cpu.state.clone();
    assert_eq!(cpu.step(), Step::Fault(Exception::debug(REGISTER_ACCESS)));
    assert_eq!(cpu.state, before);
    deliver(&mut cpu, Exception::debug(REGISTER_ACCESS));
    assert_eq!(
        (cpu.state.debug[7], cpu.state.debug[6] & REGISTER_ACCESS),
        (0x400, REGISTER_ACCESS)
    );
    assert_eq!(saved_flags(&cpu, false) & flags::RF, flags::RF);
}

#[test]
fn registers_4_and_5_are_6_and_7_until_the_extensions_are_on() {
    let code = [0x0f, 0x23, 0xef, 0x0f, 0x21, 0xe0]; // mov dr5, rdi; mov rax, dr4
    let mut cpu = watcher(&code);
    cpu.state.gpr[7] = 0xffff_ffff;
    cpu.state.debug[6] = 0xffff_0ff1;
    assert_eq!((cpu.step(), cpu.state.debug[7]), (DONE, 0xffff_27ff));
    cpu.state.debug[7] = 0x400;
    assert_eq!((cpu.step(), cpu.state.gpr[0]), (DONE, 0xffff_0ff1));
    let mut cpu = watcher(&code);
    cpu.state.sys.cr4 |= cr4::DE;
    assert_eq!(cpu.step(), Step::Fault(Exception::UD));
}

#[test]
fn return_from_an_interrupt_is_stepped_over_like_any_instruction() {
    let mut cpu = watcher(&[0x48, 0xcf]);
    let words = [
        CODE + 0x10,
        u64::from(KERNEL_CODE),
        flags::FIXED,
        STACK,
        u64::from(KERNEL_DATA),
    ];
    for (index, word) in words.into_iter().enumerate() {
        cpu.env.put(STACK - 0x100 + 8 * index as u64, &word.to_le_bytes());
    }
    cpu.state.gpr[RSP] = STACK - 0x100;
    cpu.state.rflags |= flags::TF;
    assert_eq!((cpu.step(), cpu.state.rip), (TRAP, CODE + 0x10));
    assert_eq!(cpu.due(), Some(Exception::debug(SINGLE_STEP)));
}
