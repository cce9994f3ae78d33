//! Task switches by hardware against what the manual says of them (SDM vol. 3A chapter 8).
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code with small numbers"
)]

#[path = "support/flat_machine.rs"]
mod flat_machine;

use flat_machine::*;
use umbra_memslots::Gva;
use umbra_vcpu::emulate::exception::debug_cause;
use umbra_vcpu::emulate::state::{RSP, cr0, cr4};
use umbra_vcpu::emulate::{Cpu, Event, Exception, Source, Step, Stop, exception, flags};

/// Selectors beyond those of the machine: the other task's TSS, a gate to it, an LDT.
const OTHER: u16 = 0x30;
const GATE: u16 = 0x38;
const LDT: u16 = 0x40;
/// Where they lie.
const OTHER_TSS: u64 = 0x3800;
const LDT_AT: u64 = 0x7000;
/// Where the other task goes on, and its stack.
const OTHER_CODE: u64 = 0x5800;
const OTHER_STACK: u64 = 0xa000;
const FAULTS_IN_THE_NEW_TASK: &[(u64, u16, Exception)] = &[
    (0x60, OTHER, Exception::with_code(exception::TS, OTHER as u32)),
    (0x60, 0x1000, Exception::with_code(exception::TS, 0x1000)),
    (
        0x4c,
        KERNEL_DATA,
        Exception::with_code(exception::TS, KERNEL_DATA as u32),
    ),
    (
        0x4c,
        USER_CODE & !3,
        Exception::with_code(exception::TS, USER_CODE as u32 & !3),
    ),
    (0x4c, 0, Exception::with_code(exception::TS, 0)),
    (
        0x50,
        KERNEL_CODE,
        Exception::with_code(exception::TS, KERNEL_CODE as u32),
    ),
    (
        0x50,
        USER_DATA,
        Exception::with_code(exception::TS, USER_DATA as u32 & !3),
    ),
    (0x50, 0, Exception::with_code(exception::TS, 0)),
    (0x54, 0x1000, Exception::with_code(exception::TS, 0x1000)),
    (0x5c, OTHER, Exception::with_code(exception::TS, OTHER as u32)),
];

fn descriptor(cpu: &mut Cpu<Flat>, selector: u16, base: u64, limit: u64, access: u64) {
    let raw = limit & 0xffff | (base & 0xff_ffff) << 16 | access << 40 | (base >> 24 & 0xff) << 56;
    cpu.env.put(GDT + u64::from(selector & !7), &raw.to_le_bytes());
}

fn kind(cpu: &Cpu<Flat>, selector: u16) -> u64 {
    cpu.env.number(GDT + u64::from(selector) + 5, 1) & 15
}

fn put32(cpu: &mut Cpu<Flat>, at: u64, value: u64) {
    cpu.env.put(at, &(value as u32).to_le_bytes());
}

/// Two tasks of the 386 at this level; the present one executes `code`, whose selector `target` follows.
fn two_tasks(cpl: u8, code: &[u8]) -> Cpu<Flat> {
    let mut cpu = machine(false, cpl, code);
    cpu.state.sys.gdt.limit = 0x47;
    descriptor(&mut cpu, TASK, TSS, 0x67, 0x8b);
    descriptor(&mut cpu, OTHER, OTHER_TSS, 0x67, 0x89 | u64::from(cpl) << 5);
    let gate = u64::from(OTHER) << 16 | (0x85 | u64::from(cpl) << 5) << 40;
    cpu.env.put(GDT + u64::from(GATE), &gate.to_le_bytes());
    descriptor(&mut cpu, LDT, LDT_AT, 0x1f, 0x82);
    put32(&mut cpu, OTHER_TSS + 0x1c, 0x1_2000);
    put32(&mut cpu, OTHER_TSS + 0x20, OTHER_CODE);
    put32(&mut cpu, OTHER_TSS + 0x24, flags::FIXED | flags::ZF);
    for index in 0..8 {
        put32(&mut cpu, OTHER_TSS + 0x28 + 4 * index, 0x100 + index);
    }
    put32(&mut cpu, OTHER_TSS + 0x38, OTHER_STACK);
    let (code, data) = (KERNEL_CODE, KERNEL_DATA);
    for (index, selector) in [data, code, data, data, 0, data].into_iter().enumerate() {
        put32(&mut cpu, OTHER_TSS + 0x48 + 4 * index as u64, u64::from(selector));
    }
    put32(&mut cpu, OTHER_TSS + 0x60, u64::from(LDT));
    cpu.env.put(OTHER_TSS + 0x64, &[0, 0, 0x68, 0]);
    cpu.state.gpr[0] = 0x1234_5678;
    cpu
}

/// `call selector:0` and `jmp selector:0`.
fn call(selector: u16) -> [u8; 7] {
    [0x9a, 0, 0, 0, 0, selector as u8, 0]
}

fn jmp(selector: u16) -> [u8; 7] {
    [0xea, 0, 0, 0, 0, selector as u8, 0]
}

#[test]
fn call_saves_one_task_loads_the_other_and_iret_goes_back() {
    let mut cpu = two_tasks(0, &call(OTHER));
    cpu.env.put(OTHER_CODE, &[0x40, 0xcf]); // inc eax; iret
    cpu.state.debug[7] = 0x455;
    assert_eq!(cpu.step(), DONE);

    let saved: Vec<u64> = (0..16).map(|index| cpu.env.number(TSS + 0x20 + 4 * index, 4)).collect();
    assert_eq!(
        saved[..3],
        [CODE + 7, flags::FIXED | flags::IF | flags::CF, 0x1234_5678]
    );
    assert_eq!((saved[6], saved[10], saved[11]), (STACK, 0x10, 8));
    assert_eq!(cpu.env.number(OTHER_TSS, 2), u64::from(TASK), "the link");
    assert_eq!((kind(&cpu, TASK), kind(&cpu, OTHER)), (11, 11), "both are busy");

    let state = &cpu.state;
    assert_eq!((state.rip, state.gpr[0], state.gpr[7]), (OTHER_CODE, 0x100, 0x107));
    assert_eq!(state.gpr[RSP], OTHER_STACK);
    assert_eq!(state.rflags, flags::FIXED | flags::ZF | flags::NT);
    assert_eq!((state.sys.tr.selector, state.sys.tr.base), (OTHER, OTHER_TSS));
    assert_eq!((state.sys.ldt.selector, state.sys.ldt.base), (LDT, LDT_AT));
    assert!(state.sys.cr0 & cr0::TS != 0 && state.sys.fs.unusable && !state.sys.gs.unusable);
    assert_eq!(state.sys.cr3, 0, "without paging it is not loaded");
    assert_eq!(state.debug[7], 0x400, "local breakpoints are the old task's");

    assert_eq!((cpu.step(), cpu.step()), (DONE, DONE));
    let state = &cpu.state;
    assert_eq!(
        (state.rip, state.gpr[0], state.gpr[RSP]),
        (CODE + 7, 0x1234_5678, STACK)
    );
    assert_eq!(state.rflags, flags::FIXED | flags::IF | flags::CF);
    assert_eq!(state.sys.tr.selector, TASK);
    assert_eq!((kind(&cpu, TASK), kind(&cpu, OTHER)), (11, 9));
    // The other task was saved without NT, and behind its iret.
    assert_eq!(cpu.env.number(OTHER_TSS + 0x20, 4), OTHER_CODE + 2);
    assert_eq!(cpu.env.number(OTHER_TSS + 0x24, 4) & flags::NT, 0);
    assert_eq!(cpu.env.number(OTHER_TSS + 0x28, 4), 0x101);
}

#[test]
fn jump_leaves_the_old_task_free_and_unlinked() {
    let mut cpu = two_tasks(0, &jmp(OTHER));
    cpu.env.put(OTHER_TSS, &[0x99, 0x99]);
    assert_eq!(cpu.step(), DONE);
    assert_eq!((kind(&cpu, TASK), kind(&cpu, OTHER)), (9, 11));
    assert_eq!(cpu.env.number(OTHER_TSS, 2), 0x9999);
    assert!(!cpu.state.flag(flags::NT));
    assert_eq!(cpu.env.number(TSS + 0x20, 4), CODE + 7);
}

#[test]
fn task_gate_is_open_to_its_level_whatever_the_tss_says() {
    let mut cpu = two_tasks(3, &call(GATE | 3));
    descriptor(&mut cpu, OTHER, OTHER_TSS, 0x67, 0x89);
    assert_eq!(cpu.step(), DONE);
    assert_eq!((cpu.state.cpl(), cpu.state.sys.tr.selector), (0, OTHER));

    // The TSS itself is closed to level 3, and so is a gate of level 0.
    for (target, closed) in [(OTHER, OTHER), (GATE, GATE)] {
        let mut cpu = two_tasks(3, &call(target | 3));
        descriptor(&mut cpu, OTHER, OTHER_TSS, 0x67, 0x89);
        cpu.env.put(GDT + u64::from(GATE) + 5, &[0x85]);
        assert_eq!(cpu.step(), Step::Fault(Exception::gp(u32::from(closed))));
    }
}

#[test]
fn exception_through_a_task_gate_brings_its_error_code_along() {
    let mut cpu = two_tasks(0, &[0x90]);
    let gate = u64::from(OTHER) << 16 | 0x85 << 40;
    cpu.env.put(IDT + 8 * u64::from(exception::GP), &gate.to_le_bytes());
    let event = Event {
        exception: Exception::gp(0x1234),
        source: Source::Exception,
    };
    assert_eq!((cpu.deliver(event), cpu.due()), (Ok(()), None));
    assert_eq!((cpu.state.rip, cpu.state.gpr[RSP]), (OTHER_CODE, OTHER_STACK - 4));
    assert_eq!(cpu.env.number(OTHER_STACK - 4, 4), 0x1234);
    assert!(cpu.state.flag(flags::NT));
    assert_eq!(cpu.env.number(TSS + 0x20, 4), CODE, "the instruction is begun anew");
    assert!(cpu.env.number(TSS + 0x24, 4) & flags::RF != 0);
    // The handler's task is busy now: a second exception finds that, and that makes a double fault.
    assert_eq!(cpu.deliver(event), Err(Stop::TripleFault));
}

#[test]
fn software_interrupt_through_a_task_gate_returns_behind_itself() {
    let mut cpu = two_tasks(0, &[0xcd, 0x30]);
    let gate = u64::from(OTHER) << 16 | 0x85 << 40;
    cpu.env.put(IDT + 8 * 0x30, &gate.to_le_bytes());
    assert_eq!(cpu.step(), DONE);
    assert_eq!((cpu.state.rip, cpu.state.gpr[RSP]), (OTHER_CODE, OTHER_STACK));
    assert_eq!(cpu.env.number(TSS + 0x20, 4), CODE + 2);
    assert_eq!(cpu.env.number(TSS + 0x24, 4) & flags::RF, 0);
}

#[test]
fn task_of_the_286_has_words() {
    let mut cpu = two_tasks(0, &call(OTHER));
    descriptor(&mut cpu, OTHER, OTHER_TSS, 0x2b, 0x81);
    let words = [
        OTHER_CODE,
        flags::FIXED | flags::CF,
        1,
        2,
        3,
        4,
        OTHER_STACK,
        6,
        7,
        8,
        0x10,
        8,
        0x10,
        0x10,
        0,
    ];
    for (index, word) in words.into_iter().enumerate() {
        cpu.env
            .put(OTHER_TSS + 0x0e + 2 * index as u64, &(word as u16).to_le_bytes());
    }
    cpu.state.gpr[0] = 0xdead_beef;
    assert_eq!(cpu.step(), DONE);
    let state = &cpu.state;
    assert_eq!((state.rip, state.gpr[0], state.gpr[RSP]), (OTHER_CODE, 1, OTHER_STACK));
    assert!(state.sys.fs.unusable && state.sys.gs.unusable && !state.sys.ds.unusable);
    assert_eq!((state.sys.tr.kind, kind(&cpu, OTHER)), (3, 3));

    // Back, and what was saved are words.
    cpu.env.put(OTHER_CODE, &[0xcf]);
    assert_eq!(cpu.step(), DONE);
    assert_eq!((cpu.state.rip, cpu.state.gpr[0]), (CODE + 7, 0xdead_beef));
    assert_eq!(cpu.env.number(OTHER_TSS + 0x0e, 2), OTHER_CODE + 1);
    assert_eq!(cpu.env.number(OTHER_TSS + 0x2a, 2), 0, "the LDT is not saved");
}

#[test]
fn refusals_before_the_commit_point_leave_no_trace() {
    let ts = |selector: u16| Exception::with_code(exception::TS, u32::from(selector));
    let np = |selector: u16| Exception::with_code(exception::NP, u32::from(selector));
    let gp = |selector: u16| Exception::gp(u32::from(selector));
    type Spoil = fn(&mut Cpu<Flat>);
    let cases: &[(&[u8], Spoil, Exception)] = &[
        (
            &jmp(OTHER),
            |cpu| descriptor(cpu, OTHER, OTHER_TSS, 0x67, 0x8b),
            gp(OTHER),
        ),
        (
            &jmp(OTHER),
            |cpu| descriptor(cpu, OTHER, OTHER_TSS, 0x67, 0x09),
            np(OTHER),
        ),
        (
            &jmp(OTHER),
            |cpu| descriptor(cpu, OTHER, OTHER_TSS, 0x66, 0x89),
            ts(OTHER),
        ),
        (
            &jmp(OTHER),
            |cpu| descriptor(cpu, OTHER, OTHER_TSS, 0x2a, 0x81),
            ts(OTHER),
        ),
        (&jmp(GATE), |cpu| cpu.env.put(GDT + 0x3d, &[0x05]), np(GATE)),
        // The gate names a code segment, something in an LDT, something beyond the table.
        (&jmp(GATE), |cpu| cpu.env.put(GDT + 0x3a, &[8, 0]), gp(8)),
        (&jmp(GATE), |cpu| cpu.env.put(GDT + 0x3a, &[0x34, 0]), gp(0x34)),
        (&jmp(GATE), |cpu| cpu.env.put(GDT + 0x3a, &[0x48, 0]), gp(0x48)),
        // The present TSS is too short to be saved into, or lies nowhere.
        (&jmp(OTHER), |cpu| cpu.state.sys.tr.limit = 0x30, ts(TASK)),
        (
            &jmp(OTHER),
            |cpu| cpu.state.sys.tr.base = 0x1_0000,
            Exception::page_fault(2, Gva::new(0x1_0020)),
        ),
        (
            &jmp(OTHER),
            |cpu| descriptor(cpu, OTHER, 0xffe0, 0x67, 0x89),
            Exception::page_fault(2, Gva::new(0xffe0)),
        ),
        // iret with NT to a task that is not busy, and to none.
        (
            &[0xcf],
            |cpu| {
                cpu.state.rflags |= flags::NT;
                cpu.env.put(TSS, &OTHER.to_le_bytes());
            },
            ts(OTHER),
        ),
        (&[0xcf], |cpu| cpu.state.rflags |= flags::NT, ts(0)),
    ];
    for (index, (code, spoil, expected)) in cases.iter().enumerate() {
        let mut cpu = two_tasks(0, code);
        spoil(&mut cpu);
        let before = (cpu.state.clone(), cpu.env.0.clone());
        assert_eq!(cpu.step(), Step::Fault(*expected), "case {index}");
        assert!((cpu.state, cpu.env.0) == before, "case {index}");
    }
}

#[test]
fn faults_behind_the_commit_point_are_the_new_tasks() {
    for &(field, selector, expected) in FAULTS_IN_THE_NEW_TASK {
        let mut cpu = two_tasks(0, &call(OTHER));
        cpu.env.put(OTHER_TSS + field, &selector.to_le_bytes());
        assert_eq!(cpu.step(), Step::Done { trap: true });
        assert_eq!((cpu.state.rip, cpu.state.sys.tr.selector), (OTHER_CODE, OTHER));
        assert_eq!((kind(&cpu, OTHER), cpu.env.number(TSS + 0x20, 4)), (11, CODE + 7));
        assert_eq!(cpu.due(), Some(expected), "{selector:#x} at {field:#x}");
        assert_eq!(cpu.due(), None);
    }
    // Missing segments, and an entry point beyond the code segment.
    let cases: [(u64, u64, Exception); 3] = [
        (0x4c, 0x1b, Exception::with_code(exception::NP, 0x18)),
        (0x50, 0x18, Exception::with_code(exception::SS, 0x18)),
        (0x54, 0x18, Exception::with_code(exception::NP, 0x18)),
    ];
    for (field, access, expected) in cases {
        let mut cpu = two_tasks(0, &call(OTHER));
        let access = if access == 0x1b { 0x1b } else { 0x13 };
        descriptor(&mut cpu, 0x18, 0, 0xffff, access);
        put32(&mut cpu, OTHER_TSS + field, 0x18);
        assert_eq!(cpu.step(), Step::Done { trap: true });
        assert_eq!(cpu.due(), Some(expected));
    }
    let mut cpu = two_tasks(0, &call(OTHER));
    descriptor(&mut cpu, 0x18, 0, 0x100, 0x9b);
    put32(&mut cpu, OTHER_TSS + 0x4c, 0x18);
    assert_eq!(cpu.step(), Step::Done { trap: true });
    assert_eq!(cpu.due(), Some(Exception::gp(0)));
}

#[test]
fn fault_of_a_handlers_task_doubles_the_exception_that_it_was_for() {
    let mut cpu = two_tasks(0, &[0x90]);
    let gate = u64::from(OTHER) << 16 | 0x85 << 40;
    cpu.env.put(IDT + 8 * u64::from(exception::GP), &gate.to_le_bytes());
    put32(&mut cpu, OTHER_TSS + 0x50, 0);
    let deliver = |vector| Event {
        exception: Exception::with_code(vector, 0),
        source: Source::Exception,
    };
    assert_eq!(cpu.deliver(deliver(exception::GP)), Ok(()));
    assert_eq!(cpu.state.sys.tr.selector, OTHER);
    assert_eq!(cpu.due(), Some(Exception::with_code(exception::DF, 0)));

    // An interrupt is not doubled; the error code says that it came from outside.
    let mut cpu = two_tasks(0, &[0x90]);
    cpu.env.put(IDT + 8 * 0x40, &gate.to_le_bytes());
    put32(&mut cpu, OTHER_TSS + 0x50, 0x1000);
    let interrupt = Event {
        exception: Exception::new(0x40),
        source: Source::External,
    };
    assert_eq!(cpu.deliver(interrupt), Ok(()));
    assert_eq!(cpu.due(), Some(Exception::with_code(exception::TS, 0x1001)));
}

#[test]
fn paging_makes_the_switch_load_cr3() {
    let mut cpu = two_tasks(0, &jmp(OTHER));
    cpu.state.sys.cr0 |= cr0::PG;
    cpu.state.sys.cr4 |= cr4::PSE;
    cpu.state.sys.cr3 = 0x7000;
    assert_eq!(cpu.step(), DONE);
    assert_eq!(cpu.state.sys.cr3, 0x1_2000);
    // The world saw the new tables, the old ones for what is written there, and the new ones again.
    assert_eq!(cpu.env.1, [0x1_2000, 0x7000, 0x1_2000]);
    assert_eq!(cpu.env.number(TSS + 0x1c, 4), 0, "CR3 is not saved");
}

#[test]
fn pdptes_of_the_new_task_are_loaded_or_nothing_happens() {
    for (entry, good) in [(0x9001_u64, true), (0x9003, false)] {
        let mut cpu = two_tasks(0, &jmp(OTHER));
        cpu.state.sys.cr0 |= cr0::PG;
        cpu.state.sys.cr4 |= cr4::PAE;
        cpu.state.sys.cr3 = 0x7000;
        put32(&mut cpu, OTHER_TSS + 0x1c, 0xb020);
        cpu.env.put(0xb028, &entry.to_le_bytes());
        let before = (cpu.state.clone(), cpu.env.0.clone());
        if good {
            assert_eq!(cpu.step(), DONE);
            assert_eq!((cpu.state.sys.cr3, cpu.state.pdptes), (0xb020, [0, entry, 0, 0]));
        } else {
            assert_eq!(cpu.step(), Step::Fault(Exception::gp(0)));
            assert!((cpu.state, cpu.env.0) == before);
        }
    }
}

#[test]
fn trap_bit_raises_a_debug_exception_before_the_first_instruction() {
    let mut cpu = two_tasks(0, &jmp(OTHER));
    cpu.env.put(OTHER_TSS + 0x64, &[1]);
    gate(&mut cpu, 1, 14, 0, 0);
    assert_eq!(cpu.step(), Step::Done { trap: true });
    let exception = cpu.due().unwrap();
    assert_eq!(exception, Exception::debug(debug_cause::TASK_SWITCH));
    let event = Event {
        exception,
        source: Source::Exception,
    };
    assert_eq!(cpu.deliver(event), Ok(()));
    assert_eq!(
        (cpu.state.rip, cpu.state.debug[6] & 0xe00f),
        (HANDLER, debug_cause::TASK_SWITCH)
    );
    assert_eq!(cpu.env.number(OTHER_STACK - 12, 4), OTHER_CODE);
}

#[test]
fn nesting_needs_no_descriptor_of_the_old_task() {
    // The TSS that TR names lies behind the other task's, in a GDT that has shrunk since.
    let shrunk = |code: &[u8]| {
        let mut cpu = two_tasks(0, code);
        cpu.state.sys.tr.selector = 0x50;
        cpu
    };
    let mut cpu = shrunk(&call(OTHER));
    assert_eq!(cpu.step(), DONE);
    assert_eq!((cpu.state.rip, cpu.env.number(OTHER_TSS, 2)), (OTHER_CODE, 0x50));
    // A jump has to free it.
    let mut cpu = shrunk(&jmp(OTHER));
    assert_eq!(cpu.step(), Step::Fault(Exception::with_code(exception::TS, 0x50)));
    assert_eq!(kind(&cpu, OTHER), 9);
}

#[test]
fn task_may_be_in_virtual_8086_mode() {
    let mut cpu = two_tasks(0, &jmp(OTHER));
    put32(&mut cpu, OTHER_TSS + 0x24, flags::FIXED | flags::VM | flags::IOPL);
    put32(&mut cpu, OTHER_TSS + 0x20, 0x20);
    put32(&mut cpu, OTHER_TSS + 0x4c, 0x580);
    put32(&mut cpu, OTHER_TSS + 0x50, 0x900);
    assert_eq!(cpu.step(), DONE);
    assert!(cpu.state.virtual_8086() && cpu.state.cpl() == 3);
    assert_eq!((cpu.state.sys.cs.base, cpu.state.sys.ss.base), (OTHER_CODE, 0x9000));
}

#[test]
fn long_mode_knows_no_tasks() {
    // jmp far [rip]: the pointer lies behind the code.
    for selector in [OTHER, GATE] {
        let mut cpu = machine(true, 0, &[0xff, 0x2d, 0, 0, 0, 0, 0, 0, 0, 0, selector as u8, 0]);
        descriptor(&mut cpu, OTHER, OTHER_TSS, 0x67, 0x89);
        let gate = u64::from(OTHER) << 16 | 0x85 << 40;
        cpu.env.put(GDT + u64::from(GATE), &gate.to_le_bytes());
        assert_eq!(cpu.step(), Step::Fault(Exception::gp(u32::from(selector))));
    }
    let mut cpu = machine(true, 0, &[0x48, 0xcf]);
    cpu.state.rflags |= flags::NT;
    assert_eq!(cpu.step(), Step::Fault(Exception::gp(0)));
}

#[test]
fn task_that_returns_to_itself_goes_on_behind_the_return() {
    let mut cpu = two_tasks(0, &[0xcf, 0x40]);
    cpu.state.rflags |= flags::NT;
    cpu.env.put(TSS, &TASK.to_le_bytes());
    put32(&mut cpu, TSS + 0x60, 0);
    assert_eq!((cpu.step(), cpu.step()), (DONE, DONE));
    assert_eq!((cpu.state.rip, cpu.state.gpr[0]), (CODE + 2, 0x1234_5679));
    assert!(!cpu.state.flag(flags::NT));
    assert_eq!(kind(&cpu, TASK), 9, "the task it left is free, which is this one");
}
