//! CPL 0 in long mode: the set-up, the way to CPL 3, and what `syscall`, `int` and exceptions lead to.

use super::layout::{self, Handlers, selector};
use super::report;
use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, ax, ds, dword_ptr, eax, ebp, ecx, edi, es, fs, gs, ptr, qword_ptr, r8, r12, rax, rdx,
    rsp, ss, tbyte_ptr,
};

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const SFMASK: u32 = 0xc000_0084;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// What `syscall` clears: the flags that a kernel wants clear (TF, IF, DF, NT, AC).
const CLEARED: u32 = 1 << 8 | 1 << 9 | 1 << 10 | 1 << 14 | 1 << 18;
/// Flags of CPL 3: the one that is always set.
const USER_FLAGS: i32 = 2;

/// The code for [`layout::KERNEL`], which begins where 32-bit code jumps to, and its handlers.
pub fn kernel() -> Result<(Vec<u8>, Handlers), IcedError> {
    // Assembled up to each handler to know where that is; the length of what stands before depends on no address.
    let mut a = CodeAssembler::new(64)?;
    let length = |a: &mut CodeAssembler| Ok::<_, IcedError>(a.assemble(u64::from(layout::KERNEL))?.len() as u64);
    start(&mut a, 0)?;
    let system_call = length(&mut a)?;
    let mut a = CodeAssembler::new(64)?;
    start(&mut a, u64::from(layout::KERNEL) + system_call)?;
    serve_system_call(&mut a)?;
    let call = length(&mut a)?;
    serve_call(&mut a)?;
    let done = length(&mut a)?;
    serve_done(&mut a)?;
    let give_up = give_up(&mut a)?;
    let mut exceptions = [0; layout::EXCEPTIONS];
    for (vector, handler) in (0..).zip(&mut exceptions) {
        *handler = length(&mut a)?;
        serve_exception(&mut a, vector, give_up)?;
    }
    Ok((
        a.assemble(u64::from(layout::KERNEL))?,
        Handlers { exceptions, call, done },
    ))
}

fn start(a: &mut CodeAssembler, system_call: u64) -> Result<(), IcedError> {
    a.xor(eax, eax)?;
    for segment in [ds, es, ss, fs, gs] {
        a.mov(segment, ax)?;
    }
    a.mov(rsp, u64::from(layout::KERNEL_STACK))?;
    // The pointer's base has 64 bits here: what stands behind it in the image is zero.
    a.lidt(tbyte_ptr(layout::IDT_POINTER))?;
    a.mov(eax, u32::from(selector::TASK))?;
    a.ltr(ax)?;
    let star = u32::from(selector::KERNEL_CODE) | u32::from(selector::USER_BASE | 3) << 16;
    set_msr(a, STAR, u64::from(star) << 32)?;
    set_msr(a, LSTAR, system_call)?;
    set_msr(a, SFMASK, u64::from(CLEARED))?;
    set_msr(a, KERNEL_GS_BASE, u64::from(layout::PER_CPU))?;
    a.mov(rax, u64::from(layout::KERNEL_STACK))?;
    a.mov(qword_ptr(layout::PER_CPU), rax)?;
    a.jmp(u64::from(layout::PROGRAM))
}

/// Runs `inside` at CPL 3. It finds all registers but rax as they are here, and so does what follows; r12 is taken.
pub fn at_user(
    a: &mut CodeAssembler,
    inside: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut user = a.create_label();
    let mut done = a.create_label();
    a.push(i32::from(selector::USER_DATA))?;
    a.push(layout::USER_STACK.cast_signed())?;
    a.push(USER_FLAGS)?;
    a.push(i32::from(selector::USER_CODE))?;
    a.lea(rax, ptr(user))?;
    a.push(rax)?;
    a.lea(r12, ptr(done))?;
    a.iretq()?;
    a.set_label(&mut user)?;
    inside(a)?;
    a.int3()?;
    a.set_label(&mut done)
}

/// Goes on where [`at_user`] was called: the frame is dropped.
fn serve_done(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.add(rsp, 5 * 8)?;
    a.jmp(r12)
}

fn set_msr(a: &mut CodeAssembler, msr: u32, value: u64) -> Result<(), IcedError> {
    let [low, high] = [value & u64::from(u32::MAX), value >> 32];
    a.mov(ecx, msr)?;
    a.mov(rax, low)?;
    a.mov(rdx, high)?;
    a.wrmsr()
}

/// What a kernel does before and behind its work; the work is to add.
fn serve_system_call(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.swapgs()?;
    a.mov(qword_ptr(8).gs(), rsp)?;
    a.mov(rsp, qword_ptr(0).gs())?;
    a.add(r8, rax)?;
    a.mov(rsp, qword_ptr(8).gs())?;
    a.swapgs()?;
    a.sysretq()
}

fn serve_call(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.add(r8, rax)?;
    a.iretq()
}

/// Exceptions with an error code (SDM vol. 3A table 6-1): #DF, #TS, #NP, #SS, #GP, #PF, #AC, #CP.
const WITH_ERROR_CODE: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21;

/// No exception is expected. Says which one it is, by edi, and where it happened, by ebp; and rests.
fn give_up(a: &mut CodeAssembler) -> Result<CodeLabel, IcedError> {
    let mut here = a.create_label();
    let mut rest = a.create_label();
    a.set_label(&mut here)?;
    report::say(a, b'!')?;
    report::say_two_numbers(a)?;
    a.set_label(&mut rest)?;
    a.hlt()?;
    a.jmp(rest)?;
    Ok(here)
}

fn serve_exception(a: &mut CodeAssembler, vector: u32, give_up: CodeLabel) -> Result<(), IcedError> {
    let error_code = WITH_ERROR_CODE >> vector & 1;
    a.mov(edi, vector)?;
    a.mov(ebp, dword_ptr(rsp + error_code * 8))?;
    a.jmp(give_up)
}
