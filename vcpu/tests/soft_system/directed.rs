//! Crossings one by one.

use super::machine::{
    CODE, END, HANDLER, IDT, KERNEL_CODE, KERNEL_STACK, PER_CPU, SUPERVISOR, USER_CODE, USER_DATA, USER_STACK, World,
    by_core, compare, gate,
};
use umbra_vcpu::exit::VmExit;

#[test]
fn system_calls_in_a_loop_need_the_core_at_first_only() {
    // mov r15d, 100; again: mov eax, r15d; syscall; dec r15d; jnz again; int 0x80
    let code = [
        &[0x41, 0xbf, 100, 0, 0, 0, 0x44, 0x89, 0xf8, 0x0f, 0x05][..],
        &[0x41, 0xff, 0xcf, 0x75, 0xf6, 0xcd, 0x80],
    ]
    .concat();
    // swapgs; mov gs:[8], rsp; mov rsp, gs:[0]; add r8, rax; mov rsp, gs:[8]; swapgs; sysretq
    let handler = [
        &[0x0f, 0x01, 0xf8, 0x65, 0x48, 0x89, 0x24, 0x25, 8, 0, 0, 0][..],
        &[0x65, 0x48, 0x8b, 0x24, 0x25, 0, 0, 0, 0, 0x49, 0x01, 0xc0],
        &[
            0x65, 0x48, 0x8b, 0x24, 0x25, 8, 0, 0, 0, 0x0f, 0x01, 0xf8, 0x48, 0x0f, 0x07,
        ],
    ]
    .concat();
    let mut world = World::good(&code, &handler);
    world.put(PER_CPU, KERNEL_STACK);
    let [low, high] = gate(HANDLER + 0x100, KERNEL_CODE, 14, 3, 0);
    world.put(IDT + 16 * 0x80, low);
    world.put(IDT + 16 * 0x80 + 8, high);
    world.memory.push((HANDLER + 0x100, END.to_vec()));
    let (machine, exits) = compare(&world, 2000, "system calls");
    assert!(matches!(exits[..], [VmExit::Pio { port: 0x80, .. }]), "{exits:?}");
    assert_eq!(machine.vcpu.state().gpr[8], 5050);
    for mnemonic in ["syscall", "swapgs", "sysretq", "int"] {
        assert_eq!(by_core(&machine, mnemonic), 0, "{mnemonic}");
    }
}

#[test]
fn interrupts_in_a_loop_need_the_core_at_first_only() {
    // mov r15d, 100; again: mov eax, r15d; int 0x80; dec r15d; jnz again; int 0x81
    let code = [
        &[0x41, 0xbf, 100, 0, 0, 0, 0x44, 0x89, 0xf8, 0xcd, 0x80][..],
        &[0x41, 0xff, 0xcf, 0x75, 0xf6, 0xcd, 0x81],
    ]
    .concat();
    for (ist, level) in [(0, 3), (1, 3), (0, 0)] {
        // add r8, rax; iretq
        let mut world = World::good(&code, &[0x49, 0x01, 0xc0, 0x48, 0xcf]);
        world.cpl = level;
        for (vector, target) in [(0x80, HANDLER), (0x81, HANDLER + 0x100)] {
            let [low, high] = gate(target, KERNEL_CODE, 14, 3, ist);
            world.put(IDT + 16 * vector, low);
            world.put(IDT + 16 * vector + 8, high);
        }
        world.memory.push((HANDLER + 0x100, END.to_vec()));
        let (machine, exits) = compare(&world, 2000, "interrupts");
        assert!(matches!(exits[..], [VmExit::Pio { port: 0x80, .. }]), "{exits:?}");
        assert_eq!(machine.vcpu.state().gpr[8], 5050);
        assert_eq!(by_core(&machine, "int"), 0);
        // The first finds the frame in a page that was written to only.
        assert!(by_core(&machine, "iretq") <= 1);
    }
}

#[test]
fn interrupt_that_waits_is_taken_as_soon_as_a_return_lets_it_in() {
    // At CPL 0: mov ecx, user; mov r11d, 0x202; sysretq. At CPL 3: add r9, 1; syscall.
    let user = CODE as u32 + 0x100;
    let mut sysret = vec![0xb9];
    sysret.extend(user.to_le_bytes());
    sysret.extend([0x41, 0xbb, 0x02, 0x02, 0, 0, 0x48, 0x0f, 0x07]);
    // push data; push stack; push 0x202; push code; push user; iretq
    let mut iret = vec![0x6a, USER_DATA as u8, 0x68];
    iret.extend((USER_STACK as u32).to_le_bytes());
    iret.extend([0x68, 0x02, 0x02, 0, 0, 0x6a, USER_CODE as u8, 0x68]);
    iret.extend(user.to_le_bytes());
    iret.extend([0x48, 0xcf]);
    for code in [sysret, iret] {
        let mut world = World::good(&code, &END);
        world.memory.push((CODE + 0x100, vec![0x49, 0x83, 0xc1, 1, 0x0f, 0x05]));
        world.cpl = 0;
        world.interrupts = vec![0x30];
        let (machine, _) = compare(&world, 100, "an interrupt waits");
        let state = machine.vcpu.state();
        assert_eq!(state.gpr[9], 0, "no instruction of CPL 3 comes first");
        assert_eq!(state.gpr[4], KERNEL_STACK - 40);
    }
}

#[test]
fn users_page_is_shut_again_when_flags_are_popped() {
    // At CPL 0: mov r15d, 12; again: stac; mov rax, [rbx]; push 2; popfq; dec r15d; jnz again; mov rcx, [rbx]; out
    let code = [
        &[
            0x41, 0xbf, 12, 0, 0, 0, 0x0f, 0x01, 0xcb, 0x48, 0x8b, 0x03, 0x6a, 2, 0x9d,
        ][..],
        &[0x41, 0xff, 0xcf, 0x75, 0xf2, 0x48, 0x8b, 0x0b],
        &END,
    ]
    .concat();
    // inc r8; out
    let mut world = World::good(&code, &[&[0x49, 0xff, 0xc0][..], &END].concat());
    world.cpl = 0;
    world.cr4 |= 1 << 21;
    world.regs.rsp = SUPERVISOR + 0x800;
    world.regs.rbx = USER_STACK;
    world.put(USER_STACK, 0x77);
    let (machine, _) = compare(&world, 200, "a user's page");
    let state = machine.vcpu.state();
    assert_eq!((state.gpr[0], state.gpr[1], state.gpr[8]), (0x77, 0, 1));
    assert_eq!(state.sys.cr2, USER_STACK);
    // The flag says what may be accessed, and not what is translated to what.
    let stats = machine.vcpu.shadow_stats();
    assert!(stats.roots + stats.root_hits < 6, "{stats:?}");
}
