//! Images made for tests, and loading them from memory.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

pub mod fuzz_bodies;

use std::io::Cursor;
use std::process::{Command, Stdio};
use umbra_vmm::acpi::Platform;
use umbra_vmm::boot::{BootError, BootRequest, BootState, Image, load};
use umbra_vmm::layout::MemoryLayout;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub const MIB: u64 = 1 << 20;

/// Guest RAM as `layout` has it.
pub fn memory_of(layout: &MemoryLayout) -> GuestMemoryMmap {
    let ranges: Vec<_> = layout
        .ram()
        .map(|range| {
            (
                GuestAddress::from(range.start().base()),
                usize::try_from(range.bytes().unwrap()).unwrap(),
            )
        })
        .collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

/// What a test boots; fields as in [`BootRequest`].
pub struct Boot<'a> {
    pub kernel: &'a [u8],
    pub initrd: Option<&'a [u8]>,
    pub command_line: &'a str,
    pub memory_bytes: u64,
    pub boot_compressed: bool,
}

impl<'a> Boot<'a> {
    pub fn new(kernel: &'a [u8]) -> Self {
        Self {
            kernel,
            initrd: None,
            command_line: "",
            memory_bytes: 64 * MIB,
            boot_compressed: false,
        }
    }

    pub fn load(&self) -> Result<(GuestMemoryMmap, BootState), BootError> {
        let layout = MemoryLayout::plan(self.memory_bytes, 40).unwrap();
        let memory = memory_of(&layout);
        let platform = Platform {
            cpus: 2,
            com1: true,
            rtc: true,
            virtio_mmio: Vec::new(),
        };
        let image = |name: &str, bytes: &'a [u8]| Image::new(name, Cursor::new(bytes)).unwrap();
        let request = BootRequest {
            kernel: image("vmlinux.bin", self.kernel),
            initrd: self.initrd.map(|bytes| image("initrd.img", bytes)),
            command_line: self.command_line,
            layout: &layout,
            platform: Some(&platform),
            boot_compressed: self.boot_compressed,
        };
        load(&memory, request).map(|state| (memory, state))
    }

    /// The error's text.
    pub fn error(&self) -> String {
        match self.load() {
            Ok((_, state)) => panic!("loaded: {state}"),
            Err(error) => error.to_string(),
        }
    }
}

pub fn read(memory: &GuestMemoryMmap, address: u64, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    memory.read_slice(&mut buffer, GuestAddress(address)).unwrap();
    buffer
}

pub fn u32_at(memory: &GuestMemoryMmap, address: u64) -> u32 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

pub fn u64_at(memory: &GuestMemoryMmap, address: u64) -> u64 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

/// Bytes that are neither constant nor incompressible.
pub fn pattern(bytes: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    (0..bytes)
        .map(|index| {
            if index % 64 == 0 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            }
            state.to_le_bytes()[index % 4] ^ u8::try_from(index % 64 / 8).unwrap()
        })
        .collect()
}

/// A segment of an ELF file under construction.
#[derive(Clone)]
pub struct Segment {
    pub address: u64,
    pub virtual_address: u64,
    pub contents: Vec<u8>,
    pub zeroes: u64,
}

impl Segment {
    pub fn new(address: u64, contents: Vec<u8>) -> Self {
        Self {
            address,
            virtual_address: address,
            contents,
            zeroes: 0,
        }
    }
}

/// An ELF executable of 64 or 32 bits.
pub fn elf(bits: u8, entry: u64, segments: &[Segment], note: Option<&[u8]>) -> Vec<u8> {
    let wide = bits == 64;
    let word = |value: u64| -> Vec<u8> {
        if wide {
            value.to_le_bytes().to_vec()
        } else {
            u32::try_from(value).unwrap().to_le_bytes().to_vec()
        }
    };
    let (header_bytes, entry_bytes) = if wide { (64u64, 56u64) } else { (52, 32) };
    let count = u64::try_from(segments.len() + usize::from(note.is_some())).unwrap();

    let mut file = b"\x7fELF".to_vec();
    file.extend([if wide { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend(2u16.to_le_bytes());
    file.extend(if wide { 62u16 } else { 3 }.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(word(entry));
    file.extend(word(header_bytes));
    file.extend(word(0));
    file.extend(0u32.to_le_bytes());
    for field in [header_bytes, entry_bytes, count, 0, 0, 0] {
        file.extend(u16::try_from(field).unwrap().to_le_bytes());
    }

    let mut offset = header_bytes + count * entry_bytes;
    let mut body: Vec<u8> = Vec::new();
    let parts = segments
        .iter()
        .map(|segment| {
            (
                1u32,
                segment.virtual_address,
                segment.address,
                &segment.contents[..],
                segment.zeroes,
            )
        })
        .chain(note.map(|note| (4, 0, 0, note, 0)));
    for (kind, virtual_address, address, contents, zeroes) in parts {
        let bytes = u64::try_from(contents.len()).unwrap();
        file.extend(kind.to_le_bytes());
        let fields: Vec<Vec<u8>> = [offset, virtual_address, address, bytes, bytes + zeroes]
            .map(word)
            .to_vec();
        if wide {
            file.extend(7u32.to_le_bytes());
            file.extend(fields.concat());
        } else {
            file.extend(fields.concat());
            file.extend(7u32.to_le_bytes());
        }
        file.extend(word(4));
        body.extend(contents);
        offset += bytes;
    }
    file.extend(body);
    file
}

/// The note that offers PVH entry at `entry`.
pub fn pvh_note(entry: u64) -> Vec<u8> {
    let mut note = Vec::new();
    for field in [4u32, 8, 18] {
        note.extend(field.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(entry.to_le_bytes());
    note
}

/// A multiboot1 header with `flags`, then `fields`.
pub fn multiboot_header(flags: u32, fields: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    [magic, flags, checksum]
        .iter()
        .chain(fields)
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

/// A bzImage around `payload`, which must be as the kernel's build makes it (size at its end).
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    const CODE: usize = 1024;
    const PAYLOAD_OFFSET: usize = 0x400;
    let code_bytes = (PAYLOAD_OFFSET + payload.len()).next_multiple_of(16);
    let mut image = vec![0; CODE];
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    let long = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
    put(0x1f1, &[1]);
    put(0x1f4, &long(code_bytes / 16));
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x20e, &0x0180u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &long(0x10_0000));
    put(0x22c, &long(0x7fff_ffff));
    put(0x230, &long(0x20_0000));
    put(0x234, &[1, 21]);
    put(0x236, &3u16.to_le_bytes());
    put(0x238, &long(2047));
    put(0x248, &long(PAYLOAD_OFFSET));
    put(0x24c, &long(payload.len()));
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &long(16 << 20));
    put(0x380, b"6.1.0-test (someone@somewhere) #1\0");
    image.resize(CODE + PAYLOAD_OFFSET, 0x90);
    image.extend(payload);
    image.resize(CODE + code_bytes, 0);
    image
}

/// `input` through a command, or `None` with a line on stderr if there is no such command.
pub fn pipe(command: &str, arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    use std::io::Write;
    let child = Command::new(command)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("skipped: {command} is not installed");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A command that has seen enough closes the pipe.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "{command} {arguments:?}: {}", output.status);
    Some(output.stdout)
}

/// The payload that the kernel's build makes of `kernel` with a compressor's output: its size at the end, but for gzip.
pub fn with_size(mut compressed: Vec<u8>, kernel: &[u8]) -> Vec<u8> {
    compressed.extend(u32::try_from(kernel.len()).unwrap().to_le_bytes());
    compressed
}
