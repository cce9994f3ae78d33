//! Small guests: multiboot1 images whose 32-bit code is assembled here.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Where the images are loaded and entered.
const LOAD: u32 = 0x10_0000;
const CODE: u32 = LOAD + HEADER;
/// Bytes of the header: magic, flags, checksum and five addresses.
const HEADER: u32 = 32;
const MAGIC: u32 = 0x1bad_b002;
/// "The address fields are valid": the image is flat, not ELF.
const ADDRESSES: u32 = 1 << 16;

/// A multiboot1 image with this code in it.
pub fn multiboot(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(32).unwrap();
    code(&mut assembler).unwrap();
    let code = assembler.assemble(CODE.into()).unwrap();
    let end = CODE + u32::try_from(code.len()).unwrap();
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(ADDRESSES);
    let header = [MAGIC, ADDRESSES, checksum, LOAD, LOAD, end, end, CODE];
    header.iter().flat_map(|word| word.to_le_bytes()).chain(code).collect()
}

/// Writes a text to the serial port.
pub fn print(a: &mut CodeAssembler, text: &str) -> Result<(), IcedError> {
    a.mov(edx, 0x3f8u32)?;
    for byte in text.bytes() {
        a.mov(al, u32::from(byte))?;
        a.out(dx, al)?;
    }
    Ok(())
}

/// Ends through debug-exit.
pub fn debug_exit(a: &mut CodeAssembler, code: u32) -> Result<(), IcedError> {
    a.mov(eax, code)?;
    a.mov(edx, 0xf4u32)?;
    a.out(dx, eax)
}

/// Says hello and ends with `code`.
pub fn hello(code: u32) -> Vec<u8> {
    multiboot(|a| {
        print(a, "hello\n")?;
        debug_exit(a, code)
    })
}

/// Loads an empty IDT and raises an exception.
pub fn triple_fault() -> Vec<u8> {
    multiboot(|a| {
        a.push(0)?;
        a.push(0)?;
        a.lidt(fword_ptr(esp))?;
        a.ud2()
    })
}

/// Writes to and reads from addresses and ports that nobody answers, `times` times each, checks that reads give all
/// ones, then ends with code 0, or 1 if they did not.
pub fn unclaimed_accesses(times: u32) -> Vec<u8> {
    multiboot(|a| {
        let mut again = a.create_label();
        let mut wrong = a.create_label();
        a.mov(ecx, times)?;
        a.set_label(&mut again)?;
        a.mov(dword_ptr(0xc123_4560u32), ecx)?;
        a.cmp(dword_ptr(0xc123_4560u32), -1)?;
        a.jne(wrong)?;
        a.mov(edx, 0x9999u32)?;
        a.out(dx, al)?;
        a.in_(al, dx)?;
        a.cmp(al, -1)?;
        a.jne(wrong)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        debug_exit(a, 0)?;
        a.set_label(&mut wrong)?;
        debug_exit(a, 1)
    })
}

/// Writes `lines` lines of 64 bytes to the serial port as fast as it can, then ends with code 0.
pub fn serial_flood(lines: u32) -> Vec<u8> {
    multiboot(|a| {
        let mut line = a.create_label();
        let mut byte = a.create_label();
        a.mov(edx, 0x3f8u32)?;
        a.mov(ebx, lines)?;
        a.set_label(&mut line)?;
        a.mov(ecx, 63)?;
        a.mov(al, u32::from(b'#'))?;
        a.set_label(&mut byte)?;
        a.out(dx, al)?;
        a.dec(ecx)?;
        a.jnz(byte)?;
        a.mov(al, u32::from(b'\n'))?;
        a.out(dx, al)?;
        a.dec(ebx)?;
        a.jnz(line)?;
        debug_exit(a, 0)
    })
}

/// Echoes what is typed, in upper case, until a `q`; then ends with code 0.
pub fn echo() -> Vec<u8> {
    multiboot(|a| {
        let mut wait = a.create_label();
        let mut put = a.create_label();
        let mut quit = a.create_label();
        print(a, "ready\n")?;
        a.set_label(&mut wait)?;
        a.mov(edx, 0x3fdu32)?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.jz(wait)?;
        a.mov(edx, 0x3f8u32)?;
        a.in_(al, dx)?;
        a.cmp(al, u32::from(b'q'))?;
        a.je(quit)?;
        a.cmp(al, u32::from(b'a'))?;
        a.jb(put)?;
        a.sub(al, 0x20)?;
        a.set_label(&mut put)?;
        a.out(dx, al)?;
        a.jmp(wait)?;
        a.set_label(&mut quit)?;
        debug_exit(a, 0)
    })
}

/// Spins for ever.
pub fn spin() -> Vec<u8> {
    multiboot(|a| {
        let mut spin = a.create_label();
        print(a, "spinning\n")?;
        a.set_label(&mut spin)?;
        a.jmp(spin)
    })
}

/// Resets the machine through the keyboard controller, for ever.
pub fn reset() -> Vec<u8> {
    multiboot(|a| {
        let mut spin = a.create_label();
        print(a, "up\n")?;
        a.mov(al, 0xfeu32)?;
        a.out(0x64, al)?;
        a.set_label(&mut spin)?;
        a.hlt()?;
        a.jmp(spin)
    })
}

/// Goes to real mode and jumps to the reset vector, as an operating system does that asks the BIOS for a reset.
pub fn bios_reset() -> Vec<u8> {
    multiboot(|a| {
        print(a, "up\n")?;
        // A real-mode code segment has to be in the GDT to get there: one at 0x7000, with code that leaves protected mode
        // at 0x7100.
        let code = [
            0x0f, 0x20, 0xc0, 0x24, 0xfe, 0x0f, 0x22, 0xc0, 0xea, 0x00, 0x00, 0xff, 0xff,
        ];
        for (offset, byte) in (0u32..).zip(code) {
            a.mov(byte_ptr(0x7100 + offset), byte)?;
        }
        a.mov(dword_ptr(0x7008), 0x0000_ffff)?;
        a.mov(dword_ptr(0x700c), 0x0000_9a00)?;
        a.push(0x7000)?;
        a.push(0x000f_0000)?;
        a.lgdt(fword_ptr(esp + 2))?;
        a.push(8)?;
        a.push(0x7100)?;
        a.retf()
    })
}
