//! Multiboot1 images, and a kernel small enough to read: says on the serial line what it was told, and ends by debug-exit.
//!
//! GNU Multiboot specification 0.6.96: the header in 3.1, the state at entry in 3.2, the information in 3.3.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, byte_ptr, dword_ptr, dx, eax, ebx, edx, esi};

/// Where an image is linked to: one segment, the file as it is.
pub const BASE: u32 = 0x10_0000;
/// Room for the ELF header and one program header, of either class; the multiboot header stands behind.
const HEADERS: u32 = 0x80;
const MULTIBOOT_HEADER: u32 = 12;
/// Where what is behind all headers begins: see [`container`].
pub const BODY: u32 = BASE + HEADERS + MULTIBOOT_HEADER;
/// What it says, each text ended by a zero byte and in as much space; then the code.
const TEXTS: [&[u8]; 3] = [
    b"multiboot kernel: magic ok, command line: \0",
    b"multiboot kernel: magic WRONG\r\n\0",
    b"\r\n\0",
];
const TEXT_SPACE: u32 = 64;
const GREETING_AT: u32 = BODY;
const COMPLAINT_AT: u32 = GREETING_AT + TEXT_SPACE;
const NEWLINE_AT: u32 = COMPLAINT_AT + TEXT_SPACE;
const ENTRY: u32 = NEWLINE_AT + TEXT_SPACE;

const SERIAL: u32 = 0x3f8;
const DEBUG_EXIT: u32 = 0xf4;
/// In EAX if a multiboot loader has started us.
pub const LOADER_MAGIC: u32 = 0x2bad_b002;
/// `flags` bit 2 of the information: `cmdline` is valid.
const HAS_CMDLINE: u32 = 1 << 2;

/// Word size of the ELF container. The code is 32-bit code in both: that is how multiboot starts a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// ELF32 for i386.
    Elf32,
    /// ELF64 for x86-64.
    Elf64,
}

/// The kernel as a file.
///
/// It prints `multiboot kernel: magic ok, command line: …` and writes 5 to the debug-exit port, or `magic WRONG` and
/// writes 6.
///
/// # Errors
/// None in practice: the code is fixed.
pub fn kernel(class: Class) -> Result<Vec<u8>, IcedError> {
    let mut body = Vec::new();
    for text in TEXTS {
        let end = body.len() + TEXT_SPACE as usize;
        body.extend_from_slice(text);
        body.resize(end, 0);
    }
    body.extend_from_slice(&code()?);
    Ok(container(class, ENTRY, &body))
}

/// An image: the headers, and `body`, which comes to lie at [`BODY`] and is entered at `entry`.
#[must_use]
pub fn container(class: Class, entry: u32, body: &[u8]) -> Vec<u8> {
    let size = BODY - BASE + u32::try_from(body.len()).unwrap_or(u32::MAX - BODY);
    let mut image = match class {
        Class::Elf32 => elf32(entry, size),
        Class::Elf64 => elf64(entry, size),
    };
    image.resize(HEADERS as usize, 0);
    let (magic, flags) = (0x1bad_b002_u32, 0_u32);
    for word in [magic, flags, 0_u32.wrapping_sub(magic).wrapping_sub(flags)] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    image.extend_from_slice(body);
    image
}

fn code() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let mut wrong = a.create_label();
    let mut no_cmdline = a.create_label();

    a.cmp(eax, LOADER_MAGIC)?;
    a.jne(wrong)?;
    a.mov(esi, GREETING_AT)?;
    print(&mut a)?;
    a.test(dword_ptr(ebx), HAS_CMDLINE)?;
    a.jz(no_cmdline)?;
    a.mov(esi, dword_ptr(ebx + 16))?;
    print(&mut a)?;
    a.set_label(&mut no_cmdline)?;
    a.mov(esi, NEWLINE_AT)?;
    print(&mut a)?;
    exit(&mut a, 5)?;

    a.set_label(&mut wrong)?;
    a.mov(esi, COMPLAINT_AT)?;
    print(&mut a)?;
    exit(&mut a, 6)?;

    a.assemble(u64::from(ENTRY))
}

/// Prints the zero-terminated text at ESI. Inline, as there is no stack at entry.
fn print(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut next = a.create_label();
    let mut done = a.create_label();
    a.mov(edx, SERIAL)?;
    a.set_label(&mut next)?;
    a.mov(al, byte_ptr(esi))?;
    a.test(al, al)?;
    a.jz(done)?;
    a.out(dx, al)?;
    a.inc(esi)?;
    a.jmp(next)?;
    a.set_label(&mut done)?;
    // A label needs an instruction of its own.
    a.nop()
}

fn exit(a: &mut CodeAssembler, code: u32) -> Result<(), IcedError> {
    a.mov(edx, DEBUG_EXIT)?;
    a.mov(eax, code)?;
    a.out(dx, eax)?;
    // Without the device nothing has happened: rest.
    a.hlt()
}

/// `e_ident` to `e_version`, the same in both classes: little endian, executable, for this machine.
fn identification(class: u8, machine: u16) -> Vec<u8> {
    let mut out = vec![0x7f, b'E', b'L', b'F', class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    out.extend_from_slice(&2_u16.to_le_bytes());
    out.extend_from_slice(&machine.to_le_bytes());
    out.extend_from_slice(&1_u32.to_le_bytes());
    out
}

fn elf32(entry: u32, size: u32) -> Vec<u8> {
    let mut out = identification(1, 3);
    // e_entry, e_phoff, e_shoff, e_flags
    words(&mut out, &[entry, 52, 0, 0]);
    // e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
    halves(&mut out, &[52, 32, 1, 0, 0, 0]);
    // p_type PT_LOAD, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_flags RWX, p_align
    words(&mut out, &[1, 0, BASE, BASE, size, size, 7, 0x1000]);
    out
}

fn elf64(entry: u32, size: u32) -> Vec<u8> {
    let mut out = identification(2, 62);
    // e_entry, e_phoff, e_shoff in 64 bits, e_flags
    words(&mut out, &[entry, 0, 64, 0, 0, 0, 0]);
    halves(&mut out, &[64, 56, 1, 0, 0, 0]);
    // p_type PT_LOAD, p_flags RWX; then in 64 bits p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
    words(&mut out, &[1, 7, 0, 0, BASE, 0, BASE, 0, size, 0, size, 0, 0x1000, 0]);
    out
}

fn words(out: &mut Vec<u8>, words: &[u32]) {
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

fn halves(out: &mut Vec<u8>, halves: &[u16]) {
    out.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_both_classes_have_the_same_code_at_the_entry() {
        let (narrow, wide) = (kernel(Class::Elf32), kernel(Class::Elf64));
        let (narrow, wide) = (narrow.expect("assembles"), wide.expect("assembles"));
        assert_eq!(narrow[HEADERS as usize..], wide[HEADERS as usize..]);
        // cmp eax, imm32
        assert_eq!(narrow[(ENTRY - BASE) as usize], 0x3d);
        // p_filesz of the program header behind a 52-byte ELF32 header.
        assert_eq!(
            narrow[52 + 16..][..4],
            u32::try_from(narrow.len()).expect("small").to_le_bytes()
        );
    }

    #[test]
    fn kernel_header_adds_up_to_zero() {
        let image = kernel(Class::Elf32).expect("assembles");
        let header = &image[HEADERS as usize..][..MULTIBOOT_HEADER as usize];
        let sum = header
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
            .fold(0_u32, u32::wrapping_add);
        assert_eq!((sum, HEADERS % 4), (0, 0));
    }
}
