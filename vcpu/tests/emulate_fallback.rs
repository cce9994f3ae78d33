//! Guests at CPL 0 that use instructions which the local KVM may not know, carried on by the instruction core. Where KVM
//! knows them all the expectations hold just the same.
#![cfg(target_arch = "x86_64")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code with small numbers"
)]

mod support;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Guest, MMIO};
use umbra_devices::{IoOp, IoSize};
use umbra_memslots::{AddressSpaceId, Gpa};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::fallback::Fallback;
use umbra_vcpu::kvm::{Irqchip, KvmVcpu};
use umbra_vcpu::regs::DescriptorTable;

/// Where the test guest keeps things.
const GDT: usize = 0x4000;
const IDT: usize = 0x5000;
const HANDLER: u64 = 0x6000;
const RESULTS: u64 = 0x2_0000;
const AREA: u64 = 0x2_1000;

fn guest(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Option<(Guest, Fallback<KvmVcpu>)> {
    guest_with(Irqchip::None, code)
}

fn guest_with(
    irqchip: Irqchip,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Option<(Guest, Fallback<KvmVcpu>)> {
    let guest = Guest::new(irqchip, 1)?;
    let mut vcpu = guest.long_mode(0, code);
    // Code and data for CPL 0, and every vector at one handler that notes RAX..., the vector's frame and its size.
    for (index, descriptor) in [(1, 0x00af_9b00_0000_ffff_u64), (2, 0x00cf_9300_0000_ffff)] {
        guest.ram.write(GDT + 8 * index, &descriptor.to_le_bytes());
    }
    for vector in 0..32 {
        let target = HANDLER + 16 * vector;
        let gate = (target & 0xffff) | 8 << 16 | 0x8e00 << 32 | (target >> 16 & 0xffff) << 48;
        guest.ram.write(IDT + 16 * vector as usize, &gate.to_le_bytes());
        let error_code = matches!(vector, 8 | 10..=14 | 17);
        guest.load(64, target, |a| {
            if error_code {
                a.pop(r15)?;
            }
            a.mov(r14d, vector as u32)?;
            // The instruction after: every one that faults in these guests has 5 bytes.
            if vector != 3 {
                a.add(qword_ptr(rsp), 5)?;
            }
            a.iretq()
        });
    }
    let mut system = vcpu.system_regs().unwrap();
    system.gdt = DescriptorTable {
        base: GDT as u64,
        limit: 0x17,
    };
    system.idt = DescriptorTable {
        base: IDT as u64,
        limit: 0x1ff,
    };
    system.cr4 |= 1 << 9 | 1 << 10 | 1 << 18;
    vcpu.set_system_regs(&system).unwrap();
    let reader = guest.table.reader(AddressSpaceId::Normal).unwrap();
    Some((guest, Fallback::new(vcpu, reader)))
}

#[test]
fn instructions_that_kvm_may_not_know_have_their_effect() {
    let Some((guest, mut vcpu)) = guest(|a| {
        a.mov(rbx, RESULTS)?;
        a.mov(rcx, 0xf0f0_u64)?;
        a.popcnt(rax, rcx)?;
        a.mov(qword_ptr(rbx), rax)?;
        // A breakpoint's handler returns behind it.
        a.int3()?;
        a.mov(qword_ptr(rbx + 8), r14)?;
        a.stac()?;
        a.pushfq()?;
        a.pop(qword_ptr(rbx + 16))?;
        a.clac()?;
        a.pushfq()?;
        a.pop(qword_ptr(rbx + 24))?;
        // cmpxchg16b against what is there.
        a.mov(rax, 1u64)?;
        a.mov(rdx, 2u64)?;
        a.mov(qword_ptr(rbx + 32), rax)?;
        a.mov(qword_ptr(rbx + 40), rdx)?;
        a.mov(rcx, 4u64)?;
        a.push(rbx)?;
        a.mov(rsi, rbx)?;
        a.mov(rbx, 3u64)?;
        a.lock().cmpxchg16b(xmmword_ptr(rsi + 32))?;
        a.pop(rbx)?;
        a.sete(byte_ptr(rbx + 48))?;
        a.hlt()
    }) else {
        return;
    };
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
    let result = |offset: usize| guest.ram.read_u64(RESULTS as usize + offset);
    assert_eq!(result(0), 8, "popcnt");
    assert_eq!(result(8), 3, "int3's vector");
    assert_ne!(result(16) & 1 << 18, 0, "stac");
    assert_eq!(result(24) & 1 << 18, 0, "clac");
    assert_eq!((result(32), result(40)), (3, 4), "cmpxchg16b");
    assert_eq!(result(48) & 0xff, 1, "and its flag");
    println!("by the core: {:?}", vcpu.counts().by_mnemonic());
}

/// Where user code is, and where it begins.
const USER: u64 = 0x1_3000;
const USER_STACK: u64 = 0x1_f000;
/// Page directory of the test guests.
const DIRECTORY: usize = 0xa000;

/// A guest whose kernel goes to `user` code at once and is called back by `syscall`, at `entry`.
fn guest_with_user(
    user: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    entry: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Option<(Guest, Fallback<KvmVcpu>)> {
    const ENTRY: u64 = 0x1_4000;
    /// Where the kernel has RAM for itself: the second 2 MiB of linear memory, mapped to the first.
    const KERNEL: u64 = 0x20_0000;
    const TSS: u64 = 0x7000;
    const STAR: u32 = 0xc000_0081;
    const LSTAR: u32 = 0xc000_0082;
    const SFMASK: u32 = 0xc000_0084;
    let (guest, mut vcpu) = guest(|a| {
        for (number, high, low) in [
            (STAR, 0x0018_0008u32, 0u32),
            (LSTAR, 0, (KERNEL + ENTRY) as u32),
            (SFMASK, 0, 0x700),
        ] {
            a.mov(ecx, number)?;
            a.mov(edx, high)?;
            a.mov(eax, low)?;
            a.wrmsr()?;
        }
        // SS, RSP, RFLAGS, CS, RIP of the user.
        a.push(0x23)?;
        a.push(USER_STACK as i32)?;
        a.push(2)?;
        a.push(0x2b)?;
        a.push(USER as i32)?;
        a.iretq()
    })?;
    guest.load(64, USER, user);
    guest.load(64, ENTRY, entry);
    // As Linux begins its handlers.
    guest.load(64, HANDLER + 16 * 14, |a| {
        a.clac()?;
        a.hlt()
    });
    guest.ram.write(DIRECTORY + 8, &0x83u64.to_le_bytes());
    for (index, descriptor) in [(4, 0x00cf_f300_0000_ffff_u64), (5, 0x00af_fb00_0000_ffff)] {
        guest.ram.write(GDT + 8 * index, &descriptor.to_le_bytes());
    }
    guest.ram.write(TSS as usize + 4, &0x1_e000u64.to_le_bytes());
    let mut system = vcpu.system_regs().unwrap();
    system.gdt.limit = 0x2f;
    // SCE, and NXE: without it, the error code does not tell a fetch.
    system.efer |= 1 | 1 << 11;
    system.tr.base = TSS;
    vcpu.set_system_regs(&system).unwrap();
    Some((guest, vcpu))
}

#[test]
fn syscall_from_user_code_arrives_in_the_kernel() {
    let user = |a: &mut CodeAssembler| {
        a.mov(eax, 77)?;
        a.syscall()
    };
    let Some((guest, mut vcpu)) = guest_with_user(user, |a| {
        a.mov(rbx, RESULTS)?;
        a.mov(qword_ptr(rbx), rcx)?;
        a.mov(qword_ptr(rbx + 8), rsp)?;
        a.mov(word_ptr(rbx + 16), cs)?;
        a.mov(word_ptr(rbx + 18), ss)?;
        a.mov(dword_ptr(rbx + 20), eax)?;
        a.hlt()
    }) else {
        return;
    };
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
    let result = |offset: usize| guest.ram.read_u64(RESULTS as usize + offset);
    assert_eq!(result(0), USER + 7, "RIP in RCX");
    assert_eq!(result(8), USER_STACK, "the stack is still the user's");
    assert_eq!(result(16), 77 << 32 | 16 << 16 | 8, "EAX, SS, CS");
    println!("by the core: {:?}", vcpu.counts().by_mnemonic());
}

#[test]
fn page_tables_that_the_core_changes_are_the_ones_user_code_runs_on() {
    const TABLE: u64 = 0xb000;
    const PAGES: [u64; 2] = [0x2_2000, 0x2_3000];
    /// The user's page, in the third 2 MiB.
    const PAGE: u64 = 0x40_0000;
    let user = |a: &mut CodeAssembler| {
        a.mov(rbx, PAGE)?;
        for _ in 0..2 {
            a.mov(rax, qword_ptr(rbx))?;
            a.syscall()?;
        }
        Ok(())
    };
    let Some((guest, mut vcpu)) = guest_with_user(user, |a| {
        let mut done = a.create_label();
        a.stac()?;
        a.mov(rsi, RESULTS)?;
        a.mov(rdx, qword_ptr(rsi))?;
        a.inc(qword_ptr(rsi))?;
        a.mov(qword_ptr(rsi + rdx * 8 + 8), rax)?;
        a.cmp(rdx, 1)?;
        a.je(done)?;
        a.mov(rdi, TABLE)?;
        a.mov(qword_ptr(rdi), (PAGES[1] | 7) as i32)?;
        a.invlpg(byte_ptr(rbx))?;
        a.sysretq()?;
        a.set_label(&mut done)?;
        a.hlt()
    }) else {
        return;
    };
    guest.ram.write(DIRECTORY + 16, &(TABLE | 7).to_le_bytes());
    guest.ram.write(TABLE as usize, &(PAGES[0] | 7).to_le_bytes());
    for (page, content) in PAGES.into_iter().zip([0xaaaa_u64, 0xbbbb]) {
        guest.ram.write(page as usize, &content.to_le_bytes());
    }
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
    let result = |index: usize| guest.ram.read_u64(RESULTS as usize + 8 * index);
    assert_eq!((result(0), result(1), result(2)), (2, 0xaaaa, 0xbbbb));
    println!("{:?}", vcpu.counts().stretches());
}

#[test]
fn breakpoints_that_the_guest_sets_are_met_in_software() {
    /// DR7: number 0 globally for execution, number 1 globally for writes of 8 bytes.
    const ON: u64 = 1 << 10 | 1 << 3 | 1 << 1 | 0b1001 << 20;
    let Some((guest, mut vcpu)) = guest(|a| {
        let mut watched = a.create_label();
        a.mov(rbx, RESULTS)?;
        a.lea(rax, ptr(watched))?;
        a.mov(dr0, rax)?;
        a.mov(rcx, AREA)?;
        a.mov(dr1, rcx)?;
        a.mov(rax, ON)?;
        a.mov(dr7, rax)?;
        a.xor(edx, edx)?;
        a.xor(esi, esi)?;
        a.stac()?;
        a.mov(qword_ptr(rcx), rax)?;
        // The handler of the trap returns behind this.
        a.mov(edx, 1)?;
        a.mov(rax, dr6)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.mov(qword_ptr(rbx + 8), r14)?;
        a.xor(eax, eax)?;
        a.mov(dr6, rax)?;
        a.xor(r14d, r14d)?;
        a.clac()?;
        a.set_label(&mut watched)?;
        a.mov(esi, 1)?;
        a.mov(rax, dr6)?;
        a.mov(qword_ptr(rbx + 16), rax)?;
        a.mov(qword_ptr(rbx + 24), r14)?;
        a.mov(qword_ptr(rbx + 32), rdx)?;
        a.mov(qword_ptr(rbx + 40), rsi)?;
        a.hlt()
    }) else {
        return;
    };
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
    let result = |offset: usize| guest.ram.read_u64(RESULTS as usize + offset);
    assert_eq!((result(0) & 15, result(8)), (2, 1), "a trap behind the write");
    assert_eq!((result(16) & 15, result(24)), (1, 1), "a fault before the instruction");
    assert_eq!((result(32), result(40)), (0, 0), "the handlers came first");
    println!("by the core: {:?}", vcpu.counts().stretches());
}

#[test]
fn thick_failures_keep_the_guest_in_software() {
    const TIMES: u64 = 5000;
    let Some((_guest, mut vcpu)) = guest(|a| {
        let mut again = a.create_label();
        a.mov(rcx, TIMES)?;
        a.xor(eax, eax)?;
        a.set_label(&mut again)?;
        a.popcnt(rdx, rcx)?;
        a.add(rax, rdx)?;
        a.dec(rcx)?;
        a.jne(again)?;
        a.hlt()
    }) else {
        return;
    };
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
    let ones: u64 = (1..=TIMES).map(|n| u64::from(n.count_ones())).sum();
    assert_eq!(vcpu.regs().unwrap().rax, ones);
    let (failed, stretches) = (vcpu.counts().by_mnemonic(), vcpu.counts().stretches());
    println!("{failed:?}, {stretches:?}");
    // Where KVM knows the instruction there is nothing to see.
    if stretches.count > 0 {
        assert!(stretches.count < TIMES / 10, "{stretches:?}");
        assert!(stretches.instructions > 3 * TIMES, "{stretches:?}");
    }
}

#[test]
fn a_device_in_the_middle_of_a_stretch_sees_the_guest_as_it_is() {
    let Some((guest, mut vcpu)) = guest(|a| {
        a.mov(rbx, MMIO)?;
        a.mov(ecx, 0xf0f0)?;
        a.popcnt(rax, rcx)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.mov(r9, rsi)?;
        a.in_(al, 0x42)?;
        a.popcnt(r10, rax)?;
        a.mov(rdx, RESULTS)?;
        a.mov(qword_ptr(rdx), r10)?;
        a.hlt()
    }) else {
        return;
    };
    let write = VmExit::Mmio {
        gpa: Gpa::new(MMIO),
        size: IoSize::B4,
        op: IoOp::Write(8),
    };
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), write);
    let mut regs = vcpu.regs().unwrap();
    assert_eq!((regs.rax, regs.rcx), (8, 0xf0f0));
    regs.rsi = 5;
    vcpu.set_regs(&regs).unwrap();
    let read = vcpu.run(VmEntry::Resume).unwrap();
    assert!(
        matches!(
            read,
            VmExit::Pio {
                port: 0x42,
                op: IoOp::Read,
                ..
            }
        ),
        "{read:?}"
    );
    assert_eq!(vcpu.regs().unwrap().r9, 5, "what was set meanwhile counts");
    assert_eq!(vcpu.run(VmEntry::Value(0x7f)).unwrap(), VmExit::Hlt);
    assert_eq!(guest.ram.read_u64(RESULTS as usize), 7);
}

/// Kicks a vCPU until it is told to stop.
fn kicking<R>(vcpu: &mut Fallback<KvmVcpu>, after: Duration, run: impl FnOnce(&mut Fallback<KvmVcpu>) -> R) -> R {
    let kick = vcpu.kick_handle();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let began = Instant::now();
            while !done.load(Ordering::Relaxed) {
                if began.elapsed() >= after {
                    kick.kick();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let result = run(vcpu);
        done.store(true, Ordering::Relaxed);
        result
    })
}

#[test]
fn a_kick_ends_a_stretch_that_would_never_end() {
    let Some((_guest, mut vcpu)) = guest(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.popcnt(rdx, rcx)?;
        a.inc(rax)?;
        a.jmp(again)
    }) else {
        return;
    };
    let exit = kicking(&mut vcpu, Duration::from_millis(50), |vcpu| {
        vcpu.run(VmEntry::Resume).unwrap()
    });
    assert_eq!(exit, VmExit::Interrupted);
    assert!(vcpu.regs().unwrap().rax > 0, "it ran");
}

#[test]
fn an_interrupt_from_the_kernels_controller_is_taken_in_a_stretch() {
    const APIC_BASE: u32 = 0x1b;
    /// x2APIC registers: spurious vector, timer, its divider and its count.
    const SPURIOUS: u32 = 0x80f;
    const TIMER: u32 = 0x832;
    const DIVIDER: u32 = 0x83e;
    const COUNT: u32 = 0x838;
    const VECTOR: u32 = 31;
    let Some((guest, mut vcpu)) = guest_with(Irqchip::Kernel, |a| {
        let mut again = a.create_label();
        // The stretch begins before the timer is set up, which is KVM's to do.
        a.popcnt(rdx, rcx)?;
        a.mov(ecx, APIC_BASE)?;
        a.rdmsr()?;
        a.or(eax, 0xc00)?;
        a.wrmsr()?;
        a.xor(edx, edx)?;
        for (register, value) in [(SPURIOUS, 0x1ff), (TIMER, VECTOR), (DIVIDER, 0xb), (COUNT, 1_000_000)] {
            a.mov(ecx, register)?;
            a.mov(eax, value)?;
            a.wrmsr()?;
        }
        a.mov(rbx, MMIO)?;
        a.sti()?;
        a.set_label(&mut again)?;
        a.popcnt(rdx, rcx)?;
        a.inc(r12)?;
        a.jmp(again)
    }) else {
        return;
    };
    guest.load(64, HANDLER + 16 * u64::from(VECTOR), |a| a.mov(dword_ptr(rbx), r12d));
    // If the interrupt never came, this would be `Interrupted`.
    let exit = kicking(&mut vcpu, Duration::from_secs(30), |vcpu| {
        vcpu.run(VmEntry::Resume).unwrap()
    });
    assert!(matches!(exit, VmExit::Mmio { op: IoOp::Write(_), .. }), "{exit:?}");
    println!("{:?}, {:?}", vcpu.counts().by_mnemonic(), vcpu.counts().stretches());
}

#[test]
fn xsave_state_goes_through_memory_and_back() {
    let Some((guest, mut vcpu)) = guest(|a| {
        a.xor(ecx, ecx)?;
        a.mov(eax, 3)?;
        a.xor(edx, edx)?;
        a.xsetbv()?;
        a.mov(eax, 3)?;
        a.mov(rbx, AREA)?;
        a.xrstor64(ptr(rbx))?;
        a.xsave64(ptr(rbx + 0x400))?;
        a.xgetbv()?;
        a.hlt()
    }) else {
        return;
    };
    // XSTATE_BV: x87 and SSE; a control word, MXCSR, XMM3 and ST0.
    let at = AREA as usize;
    guest.ram.write(at + 512, &3u64.to_le_bytes());
    guest.ram.write(at, &0x027f_u16.to_le_bytes());
    guest.ram.write(at + 4, &[0x01]);
    guest.ram.write(at + 24, &0x1fa0_u32.to_le_bytes());
    guest.ram.write(at + 32, &[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    guest.ram.write(at + 160 + 48, &[0xab; 16]);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
    let (before, after) = (guest.ram.read(at, 416), guest.ram.read(at + 0x400, 416));
    assert_eq!(after[0..2], before[0..2], "control word");
    assert_eq!(after[24..28], before[24..28], "MXCSR");
    assert_eq!(after[32..42], before[32..42], "ST0");
    assert_eq!(after[160..416], before[160..416], "XMM registers");
    assert_eq!(guest.ram.read_u64(at + 0x400 + 512) & 3, 3, "XSTATE_BV");
    assert_eq!(vcpu.regs().unwrap().rax, 3, "XCR0");
}

#[test]
fn cpuid_says_how_large_the_enabled_state_is() {
    const AVX: u32 = 1 << 2;
    let Some((guest, mut vcpu)) = guest(|a| {
        let mut without = a.create_label();
        a.mov(rdi, RESULTS)?;
        // The stretch begins before anything is enabled.
        a.popcnt(rax, rdi)?;
        a.mov(eax, 0xd)?;
        a.xor(ecx, ecx)?;
        a.cpuid()?;
        a.mov(dword_ptr(rdi), ebx)?;
        a.mov(esi, 3)?;
        a.and(eax, AVX)?;
        a.je(without)?;
        a.or(esi, AVX)?;
        a.mov(eax, 0xd)?;
        a.mov(ecx, 2)?;
        a.cpuid()?;
        a.add(eax, ebx)?;
        a.mov(dword_ptr(rdi + 4), eax)?;
        a.set_label(&mut without)?;
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.mov(eax, esi)?;
        a.xsetbv()?;
        a.mov(eax, 0xd)?;
        a.cpuid()?;
        a.mov(dword_ptr(rdi + 8), ebx)?;
        a.hlt()
    }) else {
        return;
    };
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
    let words = guest.ram.read(RESULTS as usize, 12);
    let word = |index: usize| u32::from_le_bytes(words[4 * index..4 * index + 4].try_into().unwrap());
    assert_eq!(word(0), 576, "x87 alone");
    if word(1) == 0 {
        println!("skipped: AVX");
    }
    assert_eq!(word(2), word(1).max(576));
}

#[test]
fn vector_registers_are_shared_between_kvm_and_the_core() {
    let Some((guest, mut vcpu)) = guest(|a| {
        a.mov(rbx, AREA)?;
        a.movdqu(xmm1, xmmword_ptr(rbx))?;
        a.paddd(xmm1, xmm1)?;
        a.pshufd(xmm2, xmm1, 0x1b)?;
        a.movdqu(xmmword_ptr(rbx + 16), xmm2)?;
        a.hlt()
    }) else {
        return;
    };
    for (index, number) in [1u32, 2, 3, 0x8000_0004].iter().enumerate() {
        guest.ram.write(AREA as usize + 4 * index, &number.to_le_bytes());
    }
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
    let result: Vec<u8> = [8u32, 6, 4, 2].iter().flat_map(|number| number.to_le_bytes()).collect();
    assert_eq!(guest.ram.read(AREA as usize + 16, 16), result);
}

#[test]
fn an_instruction_waits_for_a_device_and_has_its_effect_once() {
    let Some((_guest, mut vcpu)) = guest(|a| {
        a.mov(rbx, MMIO)?;
        a.popcnt(rax, qword_ptr(rbx + 16))?;
        a.stmxcsr(dword_ptr(rbx + 4))?;
        a.hlt()
    }) else {
        return;
    };
    let read = VmExit::Mmio {
        gpa: Gpa::new(MMIO + 16),
        size: IoSize::B8,
        op: IoOp::Read,
    };
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), read);
    let write = VmExit::Mmio {
        gpa: Gpa::new(MMIO + 4),
        size: IoSize::B4,
        op: IoOp::Write(0x1f80),
    };
    assert_eq!(vcpu.run(VmEntry::Value(0xff)).unwrap(), write);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
    assert_eq!(vcpu.regs().unwrap().rax, 8);
}

#[test]
fn complete_finishes_the_instruction_without_running_on() {
    let Some((_guest, mut vcpu)) = guest(|a| {
        a.mov(rbx, MMIO)?;
        a.popcnt(rax, qword_ptr(rbx))?;
        a.inc(rax)?;
        a.hlt()
    }) else {
        return;
    };
    assert!(matches!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Mmio { .. }));
    assert_eq!(vcpu.run(VmEntry::Complete(7)).unwrap(), VmExit::Interrupted);
    assert_eq!(vcpu.regs().unwrap().rax, 3);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
    assert_eq!(vcpu.regs().unwrap().rax, 4);
}

#[test]
fn a_fault_in_the_core_reaches_the_guests_handler() {
    let Some((_guest, mut vcpu)) = guest(|a| {
        a.mov(rbx, AREA)?;
        a.mov(eax, 3)?;
        a.xor(edx, edx)?;
        a.xor(r15, r15)?;
        // Misaligned: #GP(0). Five bytes, as the handler expects.
        a.xrstor64(ptr(rbx + 8))?;
        a.mov(r13, r14)?;
        // An unmapped page: #PF.
        a.mov(rbx, 0x8000_0000_0000u64 - 0x1000)?;
        a.popcnt(rax, qword_ptr(rbx))?;
        a.hlt()
    }) else {
        return;
    };
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
    let regs = vcpu.regs().unwrap();
    assert_eq!((regs.r13, regs.r14), (13, 14));
    assert_eq!(regs.r15, 0, "not present, read, supervisor");
    assert_eq!(vcpu.system_regs().unwrap().cr2, 0x7fff_ffff_f000);
}

#[test]
fn what_the_core_does_not_know_is_still_an_emulation_failure() {
    let Some((_guest, mut vcpu)) = guest(|a| {
        a.vpaddd(ymm0, ymm1, ymm2)?;
        a.hlt()
    }) else {
        return;
    };
    match vcpu.run(VmEntry::Resume).unwrap() {
        VmExit::EmulationFailure { bytes } => assert!(bytes.starts_with(&[0xc5]), "{bytes:?}"),
        // A CPU that runs guests itself raises #UD, as AVX is off.
        VmExit::Hlt => assert_eq!(vcpu.regs().unwrap().r14, 6),
        other => panic!("{other:?}"),
    }
}
