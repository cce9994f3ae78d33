//! Code that is written over, or lies where it is hard to fetch.

use super::*;

#[test]
fn store_into_the_next_instruction_counts_at_once() {
    // Through the same address and through another page that is the same memory; also in code that ran before.
    for page in [1_u32, 0x30] {
        let mut guest = Guest::paged(|a| {
            let mut again = a.create_label();
            a.xor(ecx, ecx)?;
            a.set_label(&mut again)?;
            // esi: the immediate of the instruction behind, at 15.
            a.inc(byte_ptr(esi))?;
            a.mov(ebx, 0x10)?;
            a.inc(ecx)?;
            a.cmp(ecx, 3)?;
            a.jne(again)?;
            a.hlt()
        });
        guest.map(0x30, CODE as u32 | 3);
        let mut regs = guest.vcpu.regs().unwrap();
        // xor, inc [esi], opcode.
        regs.rsi = u64::from(page << 12) + 5;
        guest.vcpu.set_regs(&regs).unwrap();
        guest.finish();
        assert_eq!(guest.rbx(), 0x13, "through page {page:#x}");
    }
}

#[test]
fn string_instruction_may_overwrite_itself() {
    // rep stosb over itself with nops and what comes behind it with hlt.
    let mut guest = Guest::new(|a| {
        a.mov(edi, CODE as u32 + 12)?;
        a.mov(ecx, 8)?;
        a.mov(al, 0xf4)?;
        // At 12.
        a.rep().stosb()?;
        a.mov(ebx, 1)?;
        a.hlt()
    });
    guest.finish();
    let regs = guest.vcpu.regs().unwrap();
    // Whether what is left of it is done, or the new code runs at once, is the processor's choice; the rest is not.
    assert!(
        regs.rbx == 0 && (regs.rip == CODE + 15 || regs.rip == CODE + 13),
        "{:#x}",
        regs.rip
    );
}

#[test]
fn loop_that_another_cpu_patches_ends() {
    let machine = Machine::new(RAM);
    load(&machine, CODE, |a| {
        let mut spin = a.create_label();
        a.set_label(&mut spin)?;
        // Patched into a jump over itself to `hlt`.
        a.jmp(spin)?;
        a.nop()?;
        a.hlt()
    });
    load(&machine, HANDLER, |a| {
        a.mov(byte_ptr(CODE as u32 + 1), 1)?;
        a.hlt()
    });
    let mut spinner = machine.vcpu(CODE, STACK);
    let mut patcher = machine.vcpu(HANDLER, STACK - 0x100);
    // The jump to itself is billions of instructions if the new one never counts, and then no `hlt`.
    spinner.stop_after(1 << 32);
    patcher.stop_after(1000);
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(spinner.run(VmEntry::Resume).unwrap(), VmExit::Hlt));
        scope.spawn(|| assert_eq!(patcher.run(VmEntry::Resume).unwrap(), VmExit::Hlt));
    });
    assert_eq!(spinner.regs().unwrap().rip, CODE + 4);
}

#[test]
fn instruction_whose_second_page_is_missing_faults_there_and_runs_once_it_is_mapped() {
    let mut guest = Guest::paged(|a| a.jmp(0x2ffe));
    // mov ebx, 0x44332211, with its opcode and first byte on one page; hlt.
    guest.write(0x2ffe, &[0xbb, 0x11, 0x22, 0x33, 0x44, 0xf4]);
    guest.map(3, 0);
    guest.handler(14, |a| {
        a.pop(edx)?;
        a.mov(eax, cr2)?;
        a.mov(dword_ptr(TABLE as u32 + 12), 0x3003)?;
        a.invlpg(byte_ptr(eax))?;
        a.iretd()
    });
    guest.finish();
    let regs = guest.vcpu.regs().unwrap();
    assert_eq!((regs.rax, regs.rdx, regs.rbx), (0x3000, 0, 0x4433_2211));

    // One that ends at the page's end doesn't touch the next.
    let mut guest = Guest::paged(|a| a.jmp(0x2fff));
    guest.write(0x2fff, &[0xf4]);
    guest.map(3, 0);
    guest.finish();
}

#[test]
fn instruction_whose_second_part_is_in_a_device_is_fetched_from_both() {
    let mut guest = Guest::new(|a| a.jmp(u64::from(DEVICE) - 2));
    guest.write(RAM - 2, &[0xbb, 0x11]);
    let mut exit = guest.run(VmEntry::Resume);
    assert!(matches!(exit, VmExit::Mmio { gpa, op: IoOp::Read, .. } if gpa == Gpa::new(RAM)));
    // The rest of the instruction, and nothing but hlt.
    let mut device = [0xf4; 64];
    device[..3].copy_from_slice(&[0x22, 0x33, 0x44]);
    let mut fetches = 0;
    while let VmExit::Mmio {
        gpa,
        size,
        op: IoOp::Read,
    } = exit
    {
        fetches += 1;
        assert!(fetches < 100);
        let mut value = [0; 8];
        value.copy_from_slice(&device[(gpa.get() - RAM) as usize..][..8]);
        exit = guest.run(VmEntry::Value(size.truncate(u64::from_le_bytes(value))));
    }
    assert_eq!(exit, VmExit::Hlt);
    assert_eq!(guest.rbx(), 0x4433_2211);
}

#[test]
fn code_and_page_table_that_a_device_writes_to_count_when_it_has_said_so() {
    let mut guest = Guest::paged(|a| {
        let mut spin = a.create_label();
        a.set_label(&mut spin)?;
        a.inc(dword_ptr(0x4000))?;
        a.mov(ebx, dword_ptr(0x5000))?;
        a.jmp(spin)?;
        a.nop()?;
        a.hlt()
    });
    guest.put(0x6000, 7);
    guest.vcpu.stop_after(1 << 32);
    let Guest { machine, vcpu } = &mut guest;
    let rounds = || {
        let mut bytes = [0; 4];
        machine.ram.read(Gpa::new(0x4000), &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    };
    let wait = |rounds_more: u32| {
        let end = rounds() + rounds_more;
        while rounds() < end {
            thread::yield_now();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt));
        wait(100);
        machine.write_as_device(TABLE + 4 * 5, &0x6003_u32.to_le_bytes());
        // A jump over itself to `hlt`.
        let jump = CODE + 6 + 6;
        machine.write_as_device(jump + 1, &[1]);
    });
    assert_eq!(guest.rbx(), 7);
}
