//! System instructions and event delivery of the instruction core against expectations from the manuals (SDM vol. 3A
//! chapters 5, 6 and 20, vol. 2).
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code with small numbers"
)]

#[path = "support/flat_machine.rs"]
mod flat_machine;

use flat_machine::*;
use umbra_memslots::Gva;
use umbra_vcpu::emulate::state::{RSP, cr0, cr4, efer};
use umbra_vcpu::emulate::{Event, Exception, Source, Step, Stop, exception, flags};
use umbra_vcpu::regs::{DescriptorTable, Segment};

#[test]
fn interrupt_in_real_mode_pushes_three_words_and_iret_takes_them_back() {
    let mut cpu = machine(false, 0, &[0xcd, 0x10]);
    cpu.state.sys.cr0 = 0;
    for segment in [&mut cpu.state.sys.cs, &mut cpu.state.sys.ss] {
        *segment = Segment {
            limit: 0xffff,
            kind: 3,
            non_system: true,
            present: true,
            ..Segment::default()
        };
    }
    cpu.state.sys.idt = DescriptorTable { base: 0, limit: 0x3ff };
    cpu.env.put(0x40, &[0x00, 0x02, 0x20, 0x05]); // 0520:0200
    cpu.env.put(0x5400, &[0xcf]);
    assert_eq!(cpu.step(), DONE);
    assert_eq!((cpu.state.sys.cs.base, cpu.state.rip), (0x5200, 0x200));
    assert_eq!(cpu.env.number(STACK - 6, 2), CODE + 2);
    assert_eq!(cpu.env.number(STACK - 2, 2), flags::FIXED | flags::IF | flags::CF);
    assert!(!cpu.state.flag(flags::IF));
    assert_eq!(cpu.step(), DONE);
    assert_eq!(
        (cpu.state.sys.cs.base, cpu.state.rip, cpu.state.gpr[RSP]),
        (0, CODE + 2, STACK)
    );
    assert!(cpu.state.flag(flags::IF));
}

#[test]
fn interrupt_from_level_3_changes_the_stack_and_iretd_returns() {
    let mut cpu = machine(false, 3, &[0xcd, 0x80]);
    gate(&mut cpu, 0x80, 14, 3, 0);
    cpu.env.put(HANDLER, &[0xcf]);
    assert_eq!(cpu.step(), DONE);
    assert_eq!((cpu.state.cpl(), cpu.state.rip), (0, HANDLER));
    assert_eq!(
        (cpu.state.sys.cs.selector, cpu.state.sys.ss.selector),
        (KERNEL_CODE, KERNEL_DATA)
    );
    assert_eq!(cpu.state.gpr[RSP], KERNEL_STACK - 20);
    let frame: Vec<u64> = (0..5)
        .map(|index| cpu.env.number(KERNEL_STACK - 20 + 4 * index, 4))
        .collect();
    let rflags = flags::FIXED | flags::IF | flags::CF;
    assert_eq!(
        frame,
        [CODE + 2, u64::from(USER_CODE), rflags, STACK, u64::from(USER_DATA)]
    );
    assert_eq!(cpu.step(), DONE);
    assert_eq!(
        (cpu.state.cpl(), cpu.state.rip, cpu.state.gpr[RSP]),
        (3, CODE + 2, STACK)
    );
}

#[test]
fn page_fault_in_long_mode_uses_the_interrupt_stack_table_and_aligns() {
    let mut cpu = machine(true, 3, &[0x90]);
    gate(&mut cpu, 14, 14, 0, 2);
    cpu.env.put(TSS + 0x2c, &0x9ff9_u64.to_le_bytes());
    cpu.env.put(HANDLER, &[0x48, 0xcf]);
    let event = Event {
        exception: Exception::page_fault(6, Gva::new(0x1234)),
        source: Source::Exception,
    };
    assert_eq!(cpu.deliver(event), Ok(()));
    assert_eq!(
        (cpu.state.sys.cr2, cpu.state.rip, cpu.state.cpl()),
        (0x1234, HANDLER, 0)
    );
    assert_eq!(cpu.state.gpr[RSP], 0x9ff0 - 48);
    assert_eq!(cpu.env.number(0x9ff0 - 48, 8), 6, "error code");
    assert_eq!(cpu.env.number(0x9ff0 - 16, 8), STACK);
    assert!(cpu.state.sys.ss.unusable && cpu.state.sys.ss.selector == 0);
    // The handler drops the error code.
    cpu.state.gpr[RSP] += 8;
    assert_eq!(cpu.step(), DONE);
    assert_eq!((cpu.state.rip, cpu.state.gpr[RSP], cpu.state.cpl()), (CODE, STACK, 3));
}

#[test]
fn a_fault_pushes_rf_and_a_software_interrupt_does_not() {
    for (code, vector, resume) in [([0x0f, 0x0b], 6, flags::RF), ([0xcd, 0x40], 0x40, 0)] {
        let mut cpu = machine(true, 0, &code);
        gate(&mut cpu, vector, 14, 0, 0);
        if let Step::Fault(exception) = cpu.step() {
            let source = Source::Exception;
            assert_eq!(cpu.deliver(Event { exception, source }), Ok(()));
        }
        let pushed = cpu.env.number(cpu.state.gpr[RSP] + 16, 8);
        assert_eq!(pushed & flags::RF, resume, "vector {vector}");
        assert!(!cpu.state.flag(flags::RF));
    }
}

#[test]
fn a_page_fault_of_a_frame_names_its_first_word_and_cr2_outlives_it() {
    let mut cpu = machine(true, 0, &[]);
    gate(&mut cpu, 14, 14, 0, 1);
    gate(&mut cpu, 8, 14, 0, 0);
    // A stack behind the end of memory: five words and an error code don't fit, and the highest is pushed first.
    cpu.env.put(TSS + 0x24, &0x2_0000_u64.to_le_bytes());
    let event = Event {
        exception: Exception::page_fault(0, Gva::new(0x1234)),
        source: Source::Exception,
    };
    assert_eq!(cpu.deliver(event), Ok(()));
    assert_eq!(cpu.state.rip, HANDLER);
    assert_eq!(cpu.env.number(cpu.state.gpr[RSP], 8), 0, "error code of #DF");
    assert_eq!(cpu.state.sys.cr2, 0x1_fff8);
}

#[test]
fn virtual_8086_interrupt_saves_all_segments_and_iretd_restores_them() {
    let mut cpu = machine(false, 0, &[]);
    cpu.state.rflags |= flags::VM | flags::IOPL;
    let sys = &mut cpu.state.sys;
    for (selector, segment) in [
        (0x400, &mut sys.cs),
        (0x700, &mut sys.ss),
        (0x111, &mut sys.ds),
        (0x222, &mut sys.es),
    ] {
        *segment = Segment {
            selector,
            base: u64::from(selector) << 4,
            limit: 0xffff,
            kind: 3,
            dpl: 3,
            non_system: true,
            present: true,
            ..Segment::default()
        };
    }
    (cpu.state.rip, cpu.state.gpr[RSP]) = (0, 0x100);
    cpu.env.put(CODE, &[0xcd, 0x21]);
    gate(&mut cpu, 0x21, 14, 3, 0);
    cpu.env.put(HANDLER, &[0xcf]);
    assert_eq!(cpu.step(), DONE);
    assert!(!cpu.state.flag(flags::VM) && cpu.state.cpl() == 0 && cpu.state.sys.ds.unusable);
    let frame: Vec<u64> = (0..9)
        .map(|index| cpu.env.number(KERNEL_STACK - 36 + 4 * index, 4))
        .collect();
    assert_eq!((frame[0], frame[1], frame[3], frame[4]), (2, 0x400, 0x100, 0x700));
    assert_eq!((frame[5], frame[6]), (0x222, 0x111));
    assert_eq!(cpu.step(), DONE);
    assert!(cpu.state.flag(flags::VM));
    assert_eq!(
        (cpu.state.sys.ds.selector, cpu.state.sys.es.base, cpu.state.rip),
        (0x111, 0x2220, 2)
    );
}

#[test]
fn virtual_interrupt_flags_are_refused_where_they_would_count() {
    // cli, sti, pushf, popf, int 0x21, iret, of 16 bits.
    let all: [&[u8]; 6] = [&[0xfa], &[0xfb], &[0x9c], &[0x9d], &[0xcd, 0x21], &[0xcf]];
    let step = |code: &[u8], bits, iopl: u64, virtual_8086: bool| {
        let mut cpu = machine(false, 3, code);
        cpu.state.sys.cr4 = bits;
        cpu.state.rflags |= iopl << 12;
        if virtual_8086 {
            cpu.state.rflags |= flags::VM;
            cpu.state.sys.cs.db = false;
        }
        cpu.step()
    };
    let protection = Step::Fault(Exception::gp(0));
    for (index, code) in all.into_iter().enumerate() {
        assert!(
            matches!(step(code, cr4::VME, 0, true), Step::Unsupported(_)),
            "{code:x?}"
        );
        assert_eq!(step(code, cr4::PVI, 0, true), protection);
        // The map of interrupts counts at every IOPL.
        let at_iopl_3 = step(code, cr4::VME, 3, true);
        assert_eq!(matches!(at_iopl_3, Step::Unsupported(_)), index == 4, "{code:x?}");
    }
    for code in [&[0xfa][..], &[0xfb]] {
        assert!(matches!(step(code, cr4::PVI, 2, false), Step::Unsupported(_)));
        assert_eq!(step(code, cr4::VME, 2, false), protection);
        assert_eq!(step(code, cr4::PVI, 3, false), DONE);
    }
    // pushfd and popfd have no virtual flag to show.
    for code in [&[0x66, 0x9c][..], &[0x66, 0x9d]] {
        assert_eq!(step(code, cr4::VME, 0, true), protection);
    }
}

#[test]
fn software_interrupt_through_a_privileged_gate_is_a_protection_fault() {
    let mut cpu = machine(true, 3, &[0xcd, 0x30]);
    gate(&mut cpu, 0x30, 14, 0, 0);
    assert_eq!(cpu.step(), Step::Fault(Exception::gp(0x30 * 8 + 2)));
    assert_eq!((cpu.state.rip, cpu.state.cpl()), (CODE, 3));
}

#[test]
fn a_fault_without_any_gate_becomes_a_triple_fault_and_with_one_a_double_fault() {
    let event = Event {
        exception: Exception::gp(0),
        source: Source::Exception,
    };
    let mut cpu = machine(true, 0, &[]);
    assert_eq!(cpu.deliver(event), Err(Stop::TripleFault));
    gate(&mut cpu, u64::from(exception::DF), 14, 0, 0);
    assert_eq!(cpu.deliver(event), Ok(()));
    assert_eq!(cpu.env.number(cpu.state.gpr[RSP], 8), 0, "a double fault's error code");
    assert_eq!(cpu.env.number(cpu.state.gpr[RSP] + 8, 8), CODE);
}

#[test]
fn syscall_and_sysret_swap_levels_without_memory() {
    let mut cpu = machine(true, 3, &[0x0f, 0x05]);
    cpu.state.msrs.star = 0x0013_0008_0000_0000;
    cpu.state.msrs.lstar = HANDLER;
    cpu.state.msrs.sfmask = flags::IF;
    cpu.env.put(HANDLER, &[0x48, 0x0f, 0x07]);
    assert_eq!(cpu.step(), DONE);
    assert_eq!(
        (cpu.state.rip, cpu.state.cpl(), cpu.state.gpr[1]),
        (HANDLER, 0, CODE + 2)
    );
    assert!(!cpu.state.flag(flags::IF));
    assert_eq!((cpu.state.sys.cs.selector, cpu.state.sys.ss.selector), (8, 0x10));
    assert_eq!(cpu.step(), DONE);
    assert_eq!((cpu.state.rip, cpu.state.cpl()), (CODE + 2, 3));
    assert_eq!((cpu.state.sys.cs.selector, cpu.state.sys.ss.selector), (0x23, 0x1b));
    assert!(cpu.state.flag(flags::IF) && cpu.state.sys.cs.long);
}

#[test]
fn call_gate_to_level_0_and_far_return() {
    // call [rip]: the pointer lies behind the code.
    let mut cpu = machine(true, 3, &[0xff, 0x1d, 0, 0, 0, 0, 0, 0, 0, 0, 0x33, 0]);
    let gate = HANDLER | u64::from(KERNEL_CODE) << 16 | 0xec00 << 32;
    cpu.env.put(GDT + 0x30, &gate.to_le_bytes());
    cpu.env.put(HANDLER, &[0x48, 0xcb]);
    assert_eq!(cpu.step(), DONE);
    assert_eq!(
        (cpu.state.rip, cpu.state.cpl(), cpu.state.gpr[RSP]),
        (HANDLER, 0, KERNEL_STACK - 32)
    );
    assert_eq!(cpu.env.number(KERNEL_STACK - 32, 8), CODE + 6);
    assert_eq!(cpu.step(), DONE);
    assert_eq!(
        (cpu.state.rip, cpu.state.cpl(), cpu.state.gpr[RSP]),
        (CODE + 6, 3, STACK)
    );
}

#[test]
fn paging_with_lme_turns_long_mode_on_and_needs_pae() {
    let mut cpu = machine(false, 0, &[0x0f, 0x22, 0xc0]); // mov cr0, eax
    cpu.state.sys.efer = efer::LME;
    cpu.state.gpr[0] = cr0::PE | cr0::PG;
    assert_eq!(cpu.step(), Step::Fault(Exception::gp(0)));
    cpu.state.sys.cr4 = cr4::PAE;
    assert_eq!(cpu.step(), DONE);
    assert!(cpu.state.long_mode() && !cpu.state.long_code());
}

#[test]
fn pdptes_are_loaded_when_paging_controls_change_and_at_no_other_time() {
    const TABLE: u64 = 0x6000;
    const LOADED: [u64; 4] = [0x7001, 0, 0x9009, 0];
    const KEPT: [u64; 4] = [0x1001, 0, 0, 0];
    let (on, kept) = (cr0::PE | cr0::PG | cr0::ET, Some(KEPT));
    // The instruction, CR0 and CR4 before, EAX, and what is loaded: nothing, KEPT; the table, LOADED.
    let cr0 = &[0x0f, 0x22, 0xc0][..];
    let (cr3, cr4) = (&[0x0f, 0x22, 0xd8][..], &[0x0f, 0x22, 0xe0][..]);
    type Case<'a> = (&'a [u8], u64, u64, u64, Option<[u64; 4]>);
    let cases: [Case<'_>; 13] = [
        (cr3, on, cr4::PAE, TABLE, Some(LOADED)),
        (cr3, on, cr4::PSE, TABLE, kept),
        (cr3, cr0::PE, cr4::PAE, TABLE, kept),
        (cr0, cr0::PE, cr4::PAE, on, Some(LOADED)),
        (cr0, cr0::PE, 0, on, kept),
        (cr0, on, cr4::PAE, on | cr0::CD, Some(LOADED)),
        (cr0, on, cr4::PAE, on | cr0::TS, kept),
        (cr4, on, 0, cr4::PAE, Some(LOADED)),
        (cr4, on, cr4::PAE, cr4::PAE | cr4::PGE, Some(LOADED)),
        (cr4, on, cr4::PAE, cr4::PAE | cr4::SMEP, Some(LOADED)),
        (cr4, on, cr4::PAE, cr4::PAE | cr4::TSD, kept),
        (cr4, cr0::PE, 0, cr4::PAE, kept),
        (&[0x0f, 0x06], on, cr4::PAE, 0, kept), // clts
    ];
    for (index, (code, cr0, cr4, eax, expected)) in cases.into_iter().enumerate() {
        for bad in [false, true] {
            let mut cpu = machine(false, 0, code);
            for (place, entry) in (0..).zip(LOADED) {
                // A reserved bit counts in a present entry only.
                let entry: u64 = if bad && place == 2 || entry == 0 {
                    entry | 2
                } else {
                    entry
                };
                cpu.env.put(TABLE + 8 * place, &entry.to_le_bytes());
            }
            (cpu.state.sys.cr0, cpu.state.sys.cr3, cpu.state.sys.cr4) = (cr0, TABLE, cr4);
            (cpu.state.pdptes, cpu.state.gpr[0]) = (KEPT, eax);
            let before = cpu.state.clone();
            let step = cpu.step();
            if bad && expected == Some(LOADED) {
                assert_eq!(step, Step::Fault(Exception::gp(0)), "case {index}");
                assert_eq!(cpu.state, before, "case {index}");
            } else {
                assert_eq!(step, DONE, "case {index}");
                let loaded = cpu.state.pdptes.map(|entry| if entry & 1 == 0 { 0 } else { entry });
                assert_eq!(Some(loaded), expected, "case {index}");
            }
        }
    }
}

#[test]
fn privileged_instructions_fault_at_level_3() {
    for code in [
        &[0xf4][..],         // hlt
        &[0x0f, 0x01, 0x3b], // invlpg [rbx]
        &[0x0f, 0x22, 0xd8], // mov cr3, rax
        &[0x0f, 0x30],       // wrmsr
        &[0x0f, 0x06],       // clts
        &[0x0f, 0x01, 0x13], // lgdt [rbx]
        &[0xfa],             // cli with IOPL 0
        &[0xe4, 0x60],       // in al, 0x60 without a bitmap
        &[0x0f, 0x09],       // wbinvd
        &[0x0f, 0x01, 0xf8], // swapgs
    ] {
        let mut cpu = machine(true, 3, code);
        assert_eq!(cpu.step(), Step::Fault(Exception::gp(0)), "{code:02x?}");
    }
}

#[test]
fn stack_segment_load_and_sti_hold_interrupts_off_for_one_instruction() {
    let mut cpu = machine(true, 0, &[0xfa, 0xfb, 0x90, 0x8e, 0xd0]);
    cpu.state.gpr[0] = u64::from(KERNEL_DATA);
    let shadow: Vec<bool> = (0..4)
        .map(|_| {
            assert_eq!(cpu.step(), DONE);
            cpu.state.interrupt_shadow
        })
        .collect();
    assert_eq!(shadow, [false, true, false, true]);
}

#[test]
fn an_instruction_across_a_page_end_into_nothing_faults_with_the_second_pages_address() {
    let mut cpu = machine(true, 0, &[]);
    cpu.state.rip = 0xffff;
    cpu.env.put(0xffff, &[0x48]);
    assert_eq!(cpu.step(), Step::Fault(Exception::page_fault(2, Gva::new(0x1_0000))));
    // One that ends there does not look further.
    cpu.env.put(0xffff, &[0x90]);
    assert_eq!(cpu.step(), DONE);
}

#[test]
fn too_long_an_instruction_is_a_protection_fault() {
    let mut cpu = machine(true, 0, &[0x66; 15]);
    assert_eq!(cpu.step(), Step::Fault(Exception::gp(0)));
}

#[test]
fn x87_control_instructions_follow_the_control_and_status_words() {
    // fldcw [rbx]; fnstcw [rbx + 2]; fnstsw ax; fnclex; fninit; emms; fwait
    let code = [
        0xd9, 0x2b, 0xd9, 0x7b, 0x02, 0xdf, 0xe0, 0xdb, 0xe2, 0xdb, 0xe3, 0x0f, 0x77, 0x9b,
    ];
    let mut cpu = machine(true, 0, &code);
    cpu.state.gpr[3] = 0x6000;
    cpu.state.fpu.status = 0x3801;
    cpu.env.put(0x6000, &[0x7e, 0x02]);
    assert_eq!((cpu.step(), cpu.step(), cpu.step()), (DONE, DONE, DONE));
    assert_eq!(cpu.env.number(0x6002, 2), 0x027e);
    // The invalid-operation flag has lost its mask: it waits now.
    assert_eq!(cpu.state.gpr[0] & 0xffff, 0xb881);
    assert_eq!(cpu.step(), DONE);
    assert_eq!(cpu.state.fpu.status, 0x3800);
    assert_eq!(cpu.step(), DONE);
    assert_eq!((cpu.state.fpu.status, cpu.state.fpu.control), (0, 0x37f));
    assert_eq!((cpu.step(), cpu.step()), (DONE, DONE));
    cpu.state.sys.cr0 |= cr0::TS;
    cpu.state.rip = CODE;
    assert_eq!(cpu.step(), Step::Fault(Exception::new(exception::NM)));
}

#[test]
fn x87_exception_without_mask_waits_for_the_next_instruction() {
    // fldz; fld1; fdiv st, st(1) (division by zero); fnstsw ax; fld1
    let code = [0xd9, 0xee, 0xd9, 0xe8, 0xd8, 0xf1, 0xdf, 0xe0, 0xd9, 0xe8];
    for (errors, ends) in [(0, DONE), (cr0::NE, Step::Fault(Exception::new(exception::MF)))] {
        let mut cpu = machine(true, 3, &code);
        cpu.state.sys.cr0 |= errors;
        cpu.state.fpu.control = 0x37b;
        for _ in 0..4 {
            assert_eq!(cpu.step(), DONE);
        }
        // ES and B; the top of the stack is 6 and still 1.0.
        assert_eq!(cpu.state.gpr[0] & 0xffff, 0xb084);
        assert_eq!(cpu.state.fpu.x87[6].sign_exponent, 0x3fff);
        assert_eq!(cpu.state.fpu.instruction, CODE + 4);
        assert_eq!(cpu.step(), ends);
    }
}

#[test]
fn x87_environment_is_stored_as_the_mode_says_and_masks_exceptions() {
    // fnstenv [ebx] with 4-byte and with 2-byte fields
    for (code, length) in [(&[0xd9_u8, 0x33][..], 28_u64), (&[0x66, 0xd9, 0x33], 14)] {
        let mut cpu = machine(false, 3, code);
        cpu.state.gpr[3] = 0x6000;
        cpu.env.put(0x6000, &[0x55; 32]);
        let fpu = &mut cpu.state.fpu;
        (fpu.control, fpu.status, fpu.tags) = (0x340, 0x3800, 0x80);
        (fpu.instruction, fpu.data, fpu.opcode) = (0x1_2345, 0x6_789a, 0x123);
        fpu.x87[7].sign_exponent = 0x3fff;
        fpu.x87[7].mantissa = 1 << 63;
        assert_eq!(cpu.step(), DONE);
        let field = |index: u64| cpu.env.number(0x6000 + index * length / 7, (length / 7) as usize);
        let fields: Vec<u64> = (0..7).map(field).collect();
        if length == 28 {
            let pointers = [0x1_2345, 0x123_0000, 0x6_789a, 0xffff_0000];
            assert_eq!(fields[..3], [0xffff_0340, 0xffff_3800, 0xffff_3fff]);
            assert_eq!(fields[3..], pointers);
        } else {
            assert_eq!(fields, [0x340, 0x3800, 0x3fff, 0x2345, 0, 0x789a, 0]);
        }
        assert_eq!(cpu.env.number(0x6000 + length, 1), 0x55);
        assert_eq!(cpu.state.fpu.control, 0x37f);
    }
}

#[test]
fn x87_state_survives_a_save_and_a_restore() {
    // fldpi; fld1; fnsave [rbx]; frstor [rbx]
    let mut cpu = machine(true, 3, &[0xd9, 0xeb, 0xd9, 0xe8, 0xdd, 0x33, 0xdd, 0x23]);
    cpu.state.gpr[3] = 0x6000;
    assert_eq!((cpu.step(), cpu.step()), (DONE, DONE));
    let before = cpu.state.fpu.clone();
    assert_eq!(cpu.step(), DONE);
    let fpu = &cpu.state.fpu;
    assert_eq!((fpu.control, fpu.status, fpu.tags), (0x37f, 0, 0));
    cpu.state.fpu.x87 = Default::default();
    assert_eq!(cpu.step(), DONE);
    assert_eq!(cpu.state.fpu, before);
}

#[test]
fn sse_follows_the_control_registers_and_reports_what_mxcsr_does_not_mask() {
    // divss xmm0, xmm1: 1 / 0
    let divide = |cr0_bits, cr4_bits, mxcsr| {
        let mut cpu = machine(true, 3, &[0xf3, 0x0f, 0x5e, 0xc1]);
        cpu.state.sys.cr0 |= cr0_bits;
        cpu.state.sys.cr4 |= cr4_bits;
        cpu.state.fpu.mxcsr = mxcsr;
        cpu.state.fpu.xmm[0] = 0x3f80_0000;
        (cpu.step(), cpu.state.fpu.xmm[0], cpu.state.fpu.mxcsr)
    };
    let fault = |vector| Step::Fault(Exception::new(vector));
    let all = cr4::OSFXSR | cr4::OSXMMEXCPT;
    assert_eq!(divide(0, 0, 0x1f80).0, fault(exception::UD));
    assert_eq!(divide(cr0::EM, all, 0x1f80).0, fault(exception::UD));
    assert_eq!(divide(cr0::TS, all, 0x1f80).0, fault(exception::NM));
    assert_eq!(divide(0, all, 0x1f80), (DONE, 0x7f80_0000, 0x1f84));
    assert_eq!(divide(0, all, 0x1d80), (fault(exception::XM), 0x3f80_0000, 0x1d84));
    assert_eq!(divide(0, cr4::OSFXSR, 0x1d80).0, fault(exception::UD));
}
