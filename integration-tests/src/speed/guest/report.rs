//! What the guest says of a loop, in whatever mode it runs: `I<>0123abcd 0000ffff`, the row's letter, a mark just
//! before the loop and one just behind, a checksum of what was computed and the time-stamp counter's low half over the
//! loop. And of an exception, which none of the loops takes: a line with `!`, the vector and the low half of RIP.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, bl, bx, cx, di, dx, eax, ebp, edi};

/// The serial line every PC has.
const DATA: u32 = 0x3f8;
const LINE_CONTROL: u32 = DATA + 3;
const LINE_STATUS: u32 = DATA + 5;
/// Transmitter and holding register empty: what was written is out.
const ALL_OUT: u32 = 0x60;

/// Sets the line to 115200 baud and 8 bits without interrupts.
pub fn set_up(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for (port, value) in [
        (LINE_CONTROL, 0x83),
        (DATA, 1),
        (DATA + 1, 0),
        (LINE_CONTROL, 3),
        (DATA + 1, 0),
    ] {
        a.mov(dx, port)?;
        a.mov(al, value)?;
        a.out(dx, al)?;
    }
    Ok(())
}

/// A row: `run` finds the registers as `prepare` left them but for rax, rdx and rbp, leaves the checksum in edi and
/// doesn't touch rbp.
pub fn row(
    a: &mut CodeAssembler,
    letter: u8,
    prepare: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    run: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    prepare(a)?;
    say(a, letter)?;
    say(a, b'<')?;
    wait(a)?;
    a.rdtsc()?;
    a.mov(ebp, eax)?;
    run(a)?;
    a.rdtsc()?;
    a.sub(eax, ebp)?;
    a.mov(ebp, eax)?;
    say(a, b'>')?;
    say_two_numbers(a)
}

/// Says edi and ebp and ends the line. Changes rax, rbx, rcx, rdx, rdi.
pub fn say_two_numbers(a: &mut CodeAssembler) -> Result<(), IcedError> {
    say_number(a)?;
    say(a, b' ')?;
    a.mov(edi, ebp)?;
    say_number(a)?;
    say(a, b'\n')
}

/// Says a letter. Changes rax and rdx.
pub fn say(a: &mut CodeAssembler, letter: u8) -> Result<(), IcedError> {
    wait(a)?;
    a.mov(dx, DATA)?;
    a.mov(al, u32::from(letter))?;
    a.out(dx, al)
}

/// Waits until all that was said is out. Changes rax and rdx.
fn wait(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(dx, LINE_STATUS)?;
    a.set_label(&mut again)?;
    a.in_(al, dx)?;
    a.and(al, ALL_OUT)?;
    a.cmp(al, ALL_OUT)?;
    a.jne(again)
}

/// Says the eight hexadecimal digits of edi. Changes rax, rbx, rcx, rdx.
fn say_number(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut next = a.create_label();
    let mut digit = a.create_label();
    a.mov(cx, 8)?;
    a.set_label(&mut next)?;
    a.rol(edi, 4)?;
    a.mov(bx, di)?;
    a.and(bx, 15)?;
    a.cmp(bl, 10)?;
    a.jb(digit)?;
    a.add(bl, u32::from(b'a' - b'0' - 10))?;
    a.set_label(&mut digit)?;
    a.add(bl, u32::from(b'0'))?;
    wait(a)?;
    a.mov(dx, DATA)?;
    a.mov(al, bl)?;
    a.out(dx, al)?;
    a.dec(cx)?;
    a.jne(next)
}
