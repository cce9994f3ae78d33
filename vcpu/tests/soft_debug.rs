//! A guest that debugs itself on the software CPU: watched variables, breakpoints in code, ports, as a debugger in the guest
//! would set them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how tests fail")]
#![allow(clippy::cast_possible_truncation, reason = "small addresses")]

#[path = "support/soft_machine.rs"]
mod soft_machine;

use iced_x86::code_asm::*;
use soft_machine::{IDT, Machine};
use umbra_memslots::{Gpa, GuestMemory};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::soft::SoftVcpu;

const RAM: u64 = 1 << 18;
const CODE: u64 = 0x1000;
const HANDLER: u64 = 0x3000;
/// The variable, and where the handler writes what it is told: RIP and DR6, 4 bytes each.
const VARIABLE: u32 = 0x6000;
const LOG: u32 = 0x7000;
const STACK: u64 = 0x9000;
/// RF in the frame.
const RESUME: i32 = 1 << 16;

type Assemble = fn(&mut CodeAssembler) -> Result<(), IcedError>;

struct Guest {
    machine: Machine,
    vcpu: SoftVcpu,
}

impl Guest {
    fn new(long: bool, code: Assemble) -> Self {
        let bits = if long { 64 } else { 32 };
        let machine = Machine::new(RAM);
        let vcpu = if long {
            machine.long_vcpu(CODE, STACK, 0x1_0000)
        } else {
            machine.vcpu(CODE, STACK)
        };
        let assemble = |at: u64, body: Assemble| {
            let mut code = CodeAssembler::new(bits).unwrap();
            body(&mut code).unwrap();
            machine.ram.write(Gpa::new(at), &code.assemble(at).unwrap()).unwrap();
        };
        assemble(CODE, code);
        assemble(HANDLER, if long { handler_64 } else { handler_32 });
        let gate = HANDLER | 8 << 16 | 0x8e00 << 32;
        let entry = IDT + if long { 16 } else { 8 };
        machine.ram.write(Gpa::new(entry), &gate.to_le_bytes()).unwrap();
        let mut guest = Self { machine, vcpu };
        let mut regs = guest.vcpu.regs().unwrap();
        regs.rbp = u64::from(LOG);
        guest.vcpu.set_regs(&regs).unwrap();
        guest.vcpu.stop_after(100_000);
        guest
    }

    /// RIP less [`CODE`] and the causes of each #DB.
    fn run(&mut self) -> Vec<(u32, u32)> {
        let mut entry = VmEntry::Resume;
        loop {
            match self.vcpu.run(entry).unwrap() {
                VmExit::Hlt => break,
                exit @ VmExit::Pio { .. } => {
                    entry = if exit.wants_value() {
                        VmEntry::Value(0)
                    } else {
                        VmEntry::Resume
                    };
                }
                exit => panic!("{exit:?}"),
            }
        }
        let end = self.vcpu.regs().unwrap().rbp;
        (u64::from(LOG)..end)
            .step_by(8)
            .map(|at| {
                let word = |at| {
                    let mut bytes = [0; 4];
                    self.machine.ram.read(Gpa::new(at), &mut bytes).unwrap();
                    u32::from_le_bytes(bytes)
                };
                (word(at) - CODE as u32, word(at + 4) & 0xe00f)
            })
            .collect()
    }
}

/// Logs RIP and DR6, clears DR6, and sets RF so that a breakpoint is passed.
fn handler_32(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(eax)?;
    a.mov(eax, dword_ptr(esp + 4))?;
    a.mov(dword_ptr(ebp), eax)?;
    a.mov(eax, dr6)?;
    a.mov(dword_ptr(ebp + 4), eax)?;
    a.xor(eax, eax)?;
    a.mov(dr6, eax)?;
    a.add(ebp, 8)?;
    a.pop(eax)?;
    a.or(dword_ptr(esp + 8), RESUME)?;
    a.iretd()
}

fn handler_64(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(rax)?;
    a.mov(rax, qword_ptr(rsp + 8))?;
    a.mov(dword_ptr(rbp), eax)?;
    a.mov(rax, dr6)?;
    a.mov(dword_ptr(rbp + 4), eax)?;
    a.xor(eax, eax)?;
    a.mov(dr6, rax)?;
    a.add(rbp, 8)?;
    a.pop(rax)?;
    a.or(dword_ptr(rsp + 16), RESUME)?;
    a.iretq()
}

/// Four bytes at the variable are watched for writes; a loop writes there in its second round of three.
fn watched_loop(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, VARIABLE)?;
    if a.bitness() == 64 {
        a.mov(dr0, rax)?;
        a.mov(eax, 0xd_0002)?;
        a.mov(dr7, rax)?;
    } else {
        a.mov(dr0, eax)?;
        a.mov(eax, 0xd_0002)?;
        a.mov(dr7, eax)?;
    }
    // At 16.
    a.mov(esi, VARIABLE - 4)?;
    a.mov(ecx, 3)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    if a.bitness() == 64 {
        a.mov(edx, dword_ptr(rsi + 4))?;
        a.mov(dword_ptr(rsi), ecx)?;
    } else {
        a.mov(edx, dword_ptr(esi + 4))?;
        a.mov(dword_ptr(esi), ecx)?;
    }
    // At 31.
    a.add(esi, 4)?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.hlt()
}

#[test]
fn write_to_a_watched_variable_is_reported_behind_it() {
    for long in [false, true] {
        let mut guest = Guest::new(long, watched_loop);
        assert_eq!(guest.run(), [(31, 1)], "64-bit: {long}");
        assert_eq!(guest.vcpu.regs().unwrap().rcx, 0);
    }
}

#[test]
fn copy_over_a_watched_variable_is_reported_in_its_middle() {
    let mut guest = Guest::new(false, |a| {
        a.mov(eax, VARIABLE)?;
        a.mov(dr1, eax)?;
        a.mov(eax, 0x1d0_0008)?;
        a.mov(dr7, eax)?;
        // At 16.
        a.mov(esi, 0x8000)?;
        a.mov(edi, VARIABLE - 0x100)?;
        a.mov(ecx, 0x100)?;
        // At 31.
        a.rep().movsd()?;
        a.hlt()
    });
    let text: Vec<u8> = (0..=255).cycle().take(0x400).collect();
    guest.machine.ram.write(Gpa::new(0x8000), &text).unwrap();
    assert_eq!(guest.run(), [(31, 2)]);
    let regs = guest.vcpu.regs().unwrap();
    assert_eq!((regs.rcx, regs.rdi), (0, u64::from(VARIABLE) + 0x300));
    let mut copied = vec![0; 0x400];
    guest
        .machine
        .ram
        .read(Gpa::new(u64::from(VARIABLE) - 0x100), &mut copied)
        .unwrap();
    assert_eq!(copied, text);
}

/// The instruction at 29 is met in each of three rounds, also once it has run before as part of a block.
fn breakpoint_in_a_loop(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ecx, 3)?;
    a.xor(edx, edx)?;
    a.mov(eax, CODE as u32 + 29)?;
    if a.bitness() == 64 {
        a.mov(dr3, rax)?;
        a.mov(eax, 0x80)?;
        a.mov(dr7, rax)?;
    } else {
        a.mov(dr3, eax)?;
        a.mov(eax, 0x80)?;
        a.mov(dr7, eax)?;
    }
    // At 23.
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.add(edx, 1)?;
    a.add(edx, 16)?;
    // At 29.
    a.add(edx, 32)?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.xor(eax, eax)?;
    if a.bitness() == 64 {
        a.mov(dr7, rax)?;
    } else {
        a.mov(dr7, eax)?;
    }
    a.hlt()
}

#[test]
fn breakpoint_in_code_stops_each_time_and_the_resume_flag_passes_it() {
    for long in [false, true] {
        let mut guest = Guest::new(long, breakpoint_in_a_loop);
        assert_eq!(guest.run(), [(29, 8); 3], "64-bit: {long}");
        assert_eq!(guest.vcpu.regs().unwrap().rdx, 3 * 49);
    }
}

#[test]
fn watched_port_is_reported_behind_the_access() {
    let mut guest = Guest::new(false, |a| {
        a.mov(eax, cr4)?;
        a.or(eax, 8)?;
        a.mov(cr4, eax)?;
        a.mov(eax, 0x71)?;
        a.mov(dr2, eax)?;
        a.mov(eax, 0x200_0020)?;
        a.mov(dr7, eax)?;
        // At 27.
        a.in_(al, 0x70)?;
        a.out(0x71, al)?;
        // At 31.
        a.in_(ax, 0x70)?;
        a.hlt()
    });
    assert_eq!(guest.run(), [(31, 4), (34, 4)]);
}

#[test]
fn step_and_watched_write_are_one_exception() {
    let mut guest = Guest::new(false, |a| {
        a.mov(eax, VARIABLE)?;
        a.mov(dr0, eax)?;
        a.mov(eax, 0xd_0001)?;
        a.mov(dr7, eax)?;
        // At 16.
        a.pushfd()?;
        a.or(dword_ptr(esp), 0x100)?;
        a.popfd()?;
        // At 25.
        a.mov(dword_ptr(VARIABLE), eax)?;
        // At 30.
        a.pushfd()?;
        a.and(dword_ptr(esp), !0x100)?;
        a.popfd()?;
        // At 39: the last step.
        a.hlt()
    });
    let step = 1 << 14;
    assert_eq!(guest.run(), [(30, step | 1), (31, step), (38, step), (39, step)]);
}
