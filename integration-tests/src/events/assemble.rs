//! Steps to bytes.

use super::image::{CALL, CODE_END, ENTRY, HANDLER, Image, STACK, USER, selector};
use super::program::{Program, Step};
use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, al, cr0, cr3, cr4, dword_ptr, eax, ebx, edi, esp, ptr, qword_ptr, rax, rbx, rdi, rsp,
};

/// The port on which a program asks for its next action.
pub const ACTION_PORT: u8 = 0x10;
/// Between the pieces of code at CPL 3.
const USER_PIECE: u64 = 0x10;
/// RFLAGS of code at CPL 3: nothing but the bit that is always set.
const FLAGS: i32 = 2;

/// There is no code for a program.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The assembler refuses.
    #[error(transparent)]
    Iced(#[from] IcedError),
    /// It doesn't fit into its page.
    #[error("{0} has {1} bytes of code, {limit} at most fit", limit = CODE_END - ENTRY)]
    TooLong(&'static str, usize),
}

/// Everything that is in memory when `program` starts.
///
/// # Errors
/// [`AssembleError`].
pub fn assemble(program: &Program) -> Result<Image, AssembleError> {
    let long = program.paging.is_long();
    let mut image = program.image.clone();
    image.descriptors(program.paging);
    image.bytes(HANDLER, &handler(long)?);
    let code = code(program, long)?;
    if ENTRY + code.len() as u64 > CODE_END {
        return Err(AssembleError::TooLong(program.name, code.len()));
    }
    image.bytes(ENTRY, &code);
    for (piece, code) in (0u64..).zip(user_code(long)?) {
        image.bytes(USER + piece * USER_PIECE, &code);
    }
    Ok(image)
}

fn assembler(long: bool) -> Result<CodeAssembler, IcedError> {
    CodeAssembler::new(if long { 64 } else { 32 })
}

/// Where faults and calls end: forget where they came from, go on with the next step.
fn handler(long: bool) -> Result<Vec<u8>, IcedError> {
    let mut a = assembler(long)?;
    if long {
        a.mov(rsp, STACK)?;
        a.jmp(rbx)?;
    } else {
        a.mov(esp, low(STACK))?;
        a.jmp(ebx)?;
    }
    a.assemble(HANDLER)
}

/// What happens at CPL 3: a read, a write, a jump.
fn user_code(long: bool) -> Result<[Vec<u8>; 3], IcedError> {
    let piece = |emit: fn(&mut CodeAssembler, bool) -> Result<(), IcedError>| {
        let mut a = assembler(long)?;
        emit(&mut a, long)?;
        a.int(i32::from(CALL))?;
        a.assemble(USER)
    };
    Ok([piece(read)?, piece(write)?, piece(jump)?])
}

fn read(a: &mut CodeAssembler, long: bool) -> Result<(), IcedError> {
    a.mov(eax, if long { dword_ptr(rdi) } else { dword_ptr(edi) })
}

fn write(a: &mut CodeAssembler, long: bool) -> Result<(), IcedError> {
    a.mov(if long { dword_ptr(rdi) } else { dword_ptr(edi) }, eax)
}

fn jump(a: &mut CodeAssembler, long: bool) -> Result<(), IcedError> {
    if long { a.jmp(rdi) } else { a.jmp(edi) }
}

/// One piece of code for each step. Each begins with noting where the next one lies.
fn code(program: &Program, long: bool) -> Result<Vec<u8>, IcedError> {
    let mut code = Vec::new();
    for &step in &program.steps {
        let at = ENTRY + code.len() as u64;
        // The length doesn't depend on the address, which has two significant bytes anyway.
        let length = piece(long, step, at, at)?.len() as u64;
        code.extend(piece(long, step, at, at + length)?);
    }
    let mut a = assembler(long)?;
    a.hlt()?;
    code.extend(a.assemble(ENTRY + code.len() as u64)?);
    Ok(code)
}

fn piece(long: bool, step: Step, at: u64, next: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = assembler(long)?;
    if long {
        a.mov(rbx, next)?;
    } else {
        a.mov(ebx, low(next))?;
    }
    match step {
        Step::Read(gva) => {
            address(&mut a, long, gva)?;
            read(&mut a, long)?;
        }
        Step::Write(gva, value) => {
            address(&mut a, long, gva)?;
            a.mov(eax, value)?;
            write(&mut a, long)?;
        }
        Step::Write8(gva, value) if long => {
            address(&mut a, long, gva)?;
            a.mov(rax, value)?;
            a.mov(qword_ptr(rdi), rax)?;
        }
        Step::Write8(gva, value) => {
            address(&mut a, long, gva)?;
            a.mov(eax, low(value))?;
            write(&mut a, long)?;
            a.mov(eax, low(value >> 32))?;
            a.mov(dword_ptr(edi + 4), eax)?;
        }
        Step::Execute(gva) => {
            address(&mut a, long, gva)?;
            jump(&mut a, long)?;
        }
        Step::UserRead(gva) => user(&mut a, long, gva, 0, 0)?,
        Step::UserWrite(gva, value) => user(&mut a, long, gva, value, 1)?,
        Step::UserExecute(gva) => user(&mut a, long, gva, 0, 2)?,
        Step::Invlpg(gva) => {
            address(&mut a, long, gva)?;
            a.invlpg(if long { ptr(rdi) } else { ptr(edi) })?;
        }
        Step::Cr3(value) => control(&mut a, long, u64::from(value), 3)?,
        Step::Cr0(value) => control(&mut a, long, u64::from(value), 0)?,
        Step::Cr4(value) => control(&mut a, long, u64::from(value), 4)?,
        Step::Act => a.out(i32::from(ACTION_PORT), al)?,
    }
    a.assemble(at)
}

fn address(a: &mut CodeAssembler, long: bool, gva: u64) -> Result<(), IcedError> {
    if long { a.mov(rdi, gva) } else { a.mov(edi, low(gva)) }
}

fn control(a: &mut CodeAssembler, long: bool, value: u64, number: u8) -> Result<(), IcedError> {
    if long {
        a.mov(rax, value)?;
        match number {
            0 => a.mov(cr0, rax),
            3 => a.mov(cr3, rax),
            _ => a.mov(cr4, rax),
        }
    } else {
        a.mov(eax, low(value))?;
        match number {
            0 => a.mov(cr0, eax),
            3 => a.mov(cr3, eax),
            _ => a.mov(cr4, eax),
        }
    }
}

/// Goes to a piece of the code at CPL 3, with `gva` and `value` for it.
fn user(a: &mut CodeAssembler, long: bool, gva: u64, value: u32, piece: u64) -> Result<(), IcedError> {
    address(a, long, gva)?;
    a.mov(eax, value)?;
    for word in [
        i32::from(selector::DATA),
        low_signed(STACK),
        FLAGS,
        i32::from(selector::USER_CODE),
        low_signed(USER + piece * USER_PIECE),
    ] {
        a.push(word)?;
    }
    if long { a.iretq() } else { a.iretd() }
}

/// The lower half.
fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// The same, for an operand that is extended with its sign.
fn low_signed(value: u64) -> i32 {
    low(value).cast_signed()
}
