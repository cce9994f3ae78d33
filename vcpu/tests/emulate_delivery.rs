//! Deliveries and returns of long mode that fail: they find everything out first, and change nothing (SDM vol. 3A section
//! 6.14, vol. 2 INT, IRET).

#[path = "support/flat_machine.rs"]
mod flat_machine;

use flat_machine::*;
use umbra_vcpu::emulate::state::RSP;
use umbra_vcpu::emulate::{Exception, Step, exception};

#[test]
fn interrupt_that_can_not_be_delivered_in_long_mode_changes_nothing() {
    type Break = fn(&mut umbra_vcpu::emulate::Cpu<Flat>);
    const AT: u64 = IDT + 16 * 0x80;
    let cases: [(&str, Break, Exception); 9] = [
        (
            "IDT too short",
            |cpu| cpu.state.sys.idt.limit = 0x80f - 1,
            Exception::gp(0x402),
        ),
        ("gate of level 0", |cpu| gate(cpu, 0x80, 14, 0, 0), Exception::gp(0x402)),
        ("call gate", |cpu| gate(cpu, 0x80, 12, 3, 0), Exception::gp(0x402)),
        (
            "gate not present",
            |cpu| cpu.env.put(AT + 5, &[0x6e]),
            Exception::with_code(exception::NP, 0x402),
        ),
        ("no selector", |cpu| cpu.env.put(AT + 2, &[0, 0]), Exception::gp(0)),
        (
            "data",
            |cpu| cpu.env.put(AT + 2, &KERNEL_DATA.to_le_bytes()),
            Exception::gp(u32::from(KERNEL_DATA)),
        ),
        (
            "target not canonical",
            |cpu| cpu.env.put(AT + 8, &[0, 0, 1, 0]),
            Exception::gp(0),
        ),
        (
            "task too short",
            |cpu| cpu.state.sys.tr.limit = 10,
            Exception::with_code(exception::TS, u32::from(TASK)),
        ),
        (
            "stack not canonical",
            |cpu| cpu.env.put(TSS + 4, &[0, 0, 0, 0, 0, 0, 1, 0]),
            Exception::with_code(exception::SS, 0),
        ),
    ];
    for (what, break_it, fault) in cases {
        let mut cpu = machine(true, 3, &[0xcd, 0x80]);
        gate(&mut cpu, 0x80, 14, 3, 0);
        break_it(&mut cpu);
        let (state, memory) = (cpu.state.clone(), cpu.env.0.clone());
        assert_eq!(cpu.step(), Step::Fault(fault), "{what}");
        assert!(cpu.state == state && cpu.env.0 == memory, "{what}");
    }
}

#[test]
fn return_that_fails_in_long_mode_changes_nothing() {
    let good = [CODE + 2, u64::from(USER_CODE), 2, STACK, u64::from(USER_DATA)];
    let change = |index: usize, word: u64| {
        let mut frame = good;
        frame[index] = word;
        frame
    };
    let cases = [
        ("RIP not canonical", change(0, 1 << 47), Exception::gp(0)),
        ("no CS", change(1, 3), Exception::gp(0)),
        (
            "CS of level 0 for level 3",
            change(1, u64::from(KERNEL_CODE) | 3),
            Exception::gp(u32::from(KERNEL_CODE)),
        ),
        (
            "CS is data",
            change(1, u64::from(USER_DATA)),
            Exception::gp(u32::from(USER_DATA & !3)),
        ),
        ("no SS at level 3", change(4, 0), Exception::gp(0)),
        (
            "SS of level 0",
            change(4, u64::from(KERNEL_DATA)),
            Exception::gp(u32::from(KERNEL_DATA)),
        ),
        (
            "SS is code",
            change(4, u64::from(USER_CODE)),
            Exception::gp(u32::from(USER_CODE & !3)),
        ),
    ];
    for (what, frame, fault) in cases {
        let mut cpu = machine(true, 0, &[0x48, 0xcf]);
        cpu.state.gpr[RSP] = KERNEL_STACK;
        for (at, word) in (KERNEL_STACK..).step_by(8).zip(frame) {
            cpu.env.put(at, &word.to_le_bytes());
        }
        let (state, memory) = (cpu.state.clone(), cpu.env.0.clone());
        assert_eq!(cpu.step(), Step::Fault(fault), "{what}");
        assert!(cpu.state == state && cpu.env.0 == memory, "{what}");
    }
    // The frame ends behind the end of memory: CS is looked at before SS is read.
    let mut cpu = machine(true, 0, &[0x48, 0xcf]);
    cpu.state.gpr[RSP] = 0x1_0000 - 24;
    for (at, word) in (0x1_0000 - 24..).step_by(8).zip(&change(1, 3)[..3]) {
        cpu.env.put(at, &word.to_le_bytes());
    }
    assert_eq!(cpu.step(), Step::Fault(Exception::gp(0)));
    cpu.env.put(0x1_0000 - 16, &u64::from(USER_CODE).to_le_bytes());
    let state = cpu.state.clone();
    assert!(matches!(
        cpu.step(),
        Step::Fault(Exception {
            vector: exception::PF,
            ..
        })
    ));
    assert_eq!(cpu.state, state);
}
