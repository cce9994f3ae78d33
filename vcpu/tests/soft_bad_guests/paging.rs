//! Page tables that change under the code that is executed.

use super::*;

/// Code at `CODE` is another page's; the same address without paging is what lies there.
fn pages_under_its_feet(code: Code, there: Code) -> Guest {
    let mut guest = Guest::paged(there);
    load(&guest.machine, 0x5000, code);
    guest.map(1, 0x5003);
    let system = guest.vcpu.system_regs().unwrap();
    guest.vcpu.set_system_regs(&system).unwrap();
    guest
}

#[test]
fn guest_that_turns_paging_off_goes_on_with_what_lies_there() {
    let mut guest = pages_under_its_feet(
        |a| {
            a.mov(eax, cr0)?;
            a.and(eax, 0x7fff_ffff)?;
            a.mov(cr0, eax)?;
            a.mov(ebx, 1)?;
            a.hlt()
        },
        |a| {
            for _ in 0..11 {
                a.nop()?;
            }
            a.mov(ebx, 2)?;
            a.hlt()
        },
    );
    guest.finish();
    assert_eq!(guest.rbx(), 2);
}

#[test]
fn guest_that_changes_its_tables_goes_on_where_they_lead() {
    // mov cr3 to a directory in which everything is where it is.
    let mut guest = pages_under_its_feet(
        |a| {
            a.mov(eax, 0x1_8000)?;
            a.mov(cr3, eax)?;
            a.mov(ebx, 1)?;
            a.hlt()
        },
        |a| {
            for _ in 0..8 {
                a.nop()?;
            }
            a.mov(ebx, 2)?;
            a.hlt()
        },
    );
    guest.put(0x1_8000, 0x1_9003);
    for page in 0..16 {
        guest.put(0x1_9000 + 4 * page, (page as u32) << 12 | 3);
    }
    guest.finish();
    assert_eq!(guest.rbx(), 2);
}

#[test]
fn guest_that_turns_paging_off_in_the_middle_of_nowhere_fetches_from_there() {
    let mut guest = Guest::paged(|a| a.jmp(0x20_0000));
    guest.map(0x200, 0x5003);
    load(&guest.machine, 0x5000, |a| {
        a.mov(eax, cr0)?;
        a.and(eax, 0x7fff_ffff)?;
        a.mov(cr0, eax)?;
        a.hlt()
    });
    let exit = guest.run(VmEntry::Resume);
    assert!(
        matches!(exit, VmExit::Mmio { gpa, op: IoOp::Read, .. } if gpa.get() & !15 == 0x20_0000),
        "{exit:?}"
    );
}

#[test]
fn guest_that_turns_paging_on_without_tables_shuts_down() {
    let mut guest = Guest::new(|a| {
        a.mov(eax, 0x1_0000)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr0)?;
        a.or(eax, PAGING as u32 as i32)?;
        a.mov(cr0, eax)?;
        a.hlt()
    });
    guest.handler(14, |a| a.hlt());
    assert_eq!(guest.run(VmEntry::Resume), VmExit::Shutdown);
}
