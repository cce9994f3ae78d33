//! Task switches on broken stacks and in devices.

use super::*;

/// A TSS descriptor in the second half of a GDT at 0x700, whose limit is raised.
fn add_task(guest: &mut Guest, selector: u64, base: u64, kind: u64) {
    let descriptor = 0x67 | (base & 0xff_ffff) << 16 | kind << 40;
    guest.write(0x700 + selector, &descriptor.to_le_bytes());
    let mut system = guest.vcpu.system_regs().unwrap();
    system.gdt.limit = 0x3f;
    guest.vcpu.set_system_regs(&system).unwrap();
}

/// The state of a task that begins at `entry` with its stack below 0x8000, as words from the place of CR3 on.
fn task(entry: u32) -> [u32; 18] {
    let mut words = [0; 18];
    (words[1], words[2], words[7]) = (entry, 2, 0x8000);
    words[11..17].copy_from_slice(&[16, 8, 16, 16, 16, 16]);
    words
}

#[test]
fn double_fault_of_a_broken_stack_is_survived_by_a_task_of_its_own() {
    let mut guest = Guest::new(|a| {
        a.mov(ax, 0x18)?;
        a.ltr(ax)?;
        // The stack's segment ends here: neither #SS nor #DF could push anything.
        a.mov(ax, 0x28)?;
        a.mov(ss, ax)?;
        a.mov(esp, 0x100)?;
        a.push(eax)?;
        a.hlt()
    });
    add_task(&mut guest, 0x18, 0x5000, 0x89);
    add_task(&mut guest, 0x20, 0x5100, 0x89);
    // Expand-down data with a limit above its stack pointer: there is no stack at all.
    guest.write(0x728, &0x0040_9700_0000_0fff_u64.to_le_bytes());
    for (index, word) in (0..).zip(task(HANDLER as u32)) {
        guest.put(0x511c + 4 * index, word);
    }
    guest.write(IDT + 8 * 8, &(0x20_u64 << 16 | 0x8500 << 32).to_le_bytes());
    load(&guest.machine, HANDLER, |a| {
        a.pop(ebx)?;
        a.str(dx)?;
        a.hlt()
    });
    guest.run(VmEntry::Resume);
    let regs = guest.vcpu.regs().unwrap();
    assert_eq!((regs.rbx, regs.rdx & 0xffff, regs.rip), (0, 0x20, HANDLER + 6));
    // The faulting instruction is in the old task's state.
    let saved = u64::from(guest.word(0x5020));
    assert_eq!((guest.word(0x5038), guest.word(0x5050) & 0xffff), (0x100, 0x28));
    assert!((CODE..CODE + 0x40).contains(&saved));
}

#[test]
fn task_state_in_a_device_is_read_and_written_once() {
    let mut guest = Guest::new(|a| {
        a.mov(ax, 0x18)?;
        a.ltr(ax)?;
        a.jmp(0x1_2345)?;
        a.hlt()
    });
    // ltr; then jmp 0x20:0 by hand.
    guest.write(
        CODE,
        &[0x66, 0xb8, 0x18, 0, 0x0f, 0x00, 0xd8, 0xea, 0, 0, 0, 0, 0x20, 0],
    );
    add_task(&mut guest, 0x18, u64::from(DEVICE), 0x89);
    add_task(&mut guest, 0x20, u64::from(DEVICE) + 0x1000, 0x89);
    load(&guest.machine, HANDLER, |a| a.hlt());
    let image = task(HANDLER as u32);
    let mut device = vec![0_u8; 0x2000];
    for (index, word) in image.into_iter().enumerate() {
        device[0x101c + 4 * index..][..4].copy_from_slice(&word.to_le_bytes());
    }
    let mut seen = Vec::new();
    let mut entry = VmEntry::Resume;
    loop {
        match guest.run(entry) {
            VmExit::Mmio { gpa, size, op } => {
                assert!(!seen.contains(&(gpa, op)), "{gpa:?} {op:?} twice");
                seen.push((gpa, op));
                let at = (gpa.get() - RAM) as usize;
                let bytes = size.bytes() as usize;
                entry = match op {
                    IoOp::Read => {
                        let mut value = [0; 8];
                        value[..bytes].copy_from_slice(&device[at..at + bytes]);
                        VmEntry::Value(u64::from_le_bytes(value))
                    }
                    IoOp::Write(value) => {
                        device[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
                        VmEntry::Resume
                    }
                };
            }
            exit => break assert_eq!(exit, VmExit::Hlt),
        }
    }
    assert_eq!(guest.vcpu.regs().unwrap().rip, HANDLER + 1);
    assert_eq!(device[0x20..0x24], (CODE as u32 + 14).to_le_bytes());
    assert_eq!(guest.vcpu.system_regs().unwrap().tr.selector, 0x20);
    assert_eq!((guest.word(0x71c) >> 8 & 15, guest.word(0x724) >> 8 & 15), (9, 11));
}
