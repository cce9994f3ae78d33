//! Each boot protocol: what the kernel finds in registers and memory, read back field by field from its specification.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod boot_support;

use boot_support::{Boot, MIB, Segment, bzimage, elf, multiboot_header, pattern, pvh_note, read, u32_at, u64_at};
use umbra_vmm::boot::{Compression, ImageKind, Protocol};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

fn string_at(memory: &GuestMemoryMmap, address: u64) -> String {
    let bytes = read(memory, address, 4096);
    String::from_utf8(bytes.into_iter().take_while(|&byte| byte != 0).collect()).unwrap()
}

#[test]
fn plain_elf_is_entered_in_long_mode_with_a_zero_page() {
    let code = pattern(10_000, 1);
    let data = pattern(5000, 2);
    let mut second = Segment::new(4 * MIB, data.clone());
    second.zeroes = 3 * MIB;
    let kernel = elf(64, MIB + 0x40, &[Segment::new(MIB, code.clone()), second], None);
    let initrd = pattern(70_001, 3);
    let boot = Boot {
        initrd: Some(&initrd),
        command_line: "console=ttyS0 quiet",
        ..Boot::new(&kernel)
    };
    let (memory, state) = boot.load().unwrap();

    assert_eq!(state.protocol, Protocol::Linux64);
    assert_eq!(state.image, ImageKind::Elf { bits: 64 });
    assert_eq!(read(&memory, MIB, code.len()), code);
    assert_eq!(read(&memory, 4 * MIB, data.len()), data);
    assert_eq!(state.regs.rip, MIB + 0x40);
    // Paging, protection, long mode active; interrupts off; flat segments with the selectors the protocol names.
    assert_eq!(state.system.cr0 & 0x8000_0001, 0x8000_0001);
    assert_eq!(state.system.cr4 & 1 << 5, 1 << 5);
    assert_eq!(state.system.efer & 0x500, 0x500);
    assert_eq!(state.regs.rflags & 1 << 9, 0);
    assert_eq!((state.system.cs.selector, state.system.cs.long), (0x10, true));
    assert_eq!((state.system.ds.selector, state.system.ss.selector), (0x18, 0x18));

    let zero_page = state.regs.rsi;
    assert_eq!(read(&memory, zero_page + 0x202, 4), b"HdrS");
    assert_eq!(read(&memory, zero_page + 0x1fe, 2), [0x55, 0xaa]);
    assert_eq!(read(&memory, zero_page + 0x210, 1), [0xff]);
    assert_eq!(read(&memory, zero_page + 0x1ef, 1), [0]);
    assert_eq!(
        string_at(&memory, u64::from(u32_at(&memory, zero_page + 0x228))),
        "console=ttyS0 quiet"
    );
    let (start, bytes) = (u32_at(&memory, zero_page + 0x218), u32_at(&memory, zero_page + 0x21c));
    assert_eq!(usize::try_from(bytes).unwrap(), initrd.len());
    assert_eq!(start % 4096, 0);
    assert_eq!(read(&memory, u64::from(start), initrd.len()), initrd);
    let rsdp = u64_at(&memory, zero_page + 0x70);
    assert_eq!(read(&memory, rsdp, 8), b"RSD PTR ");

    let entries = read(&memory, zero_page + 0x1e8, 1)[0];
    let e820: Vec<(u64, u64, u32)> = (0..u64::from(entries))
        .map(|index| zero_page + 0x2d0 + index * 20)
        .map(|at| (u64_at(&memory, at), u64_at(&memory, at + 8), u32_at(&memory, at + 16)))
        .collect();
    assert_eq!(
        e820,
        [
            (0, 0x9_fc00, 1),
            (0x9_fc00, 0x400, 2),
            (0xe_0000, 0x2_0000, 2),
            (MIB, 63 * MIB, 1)
        ]
    );
}

#[test]
fn elf_with_a_pvh_note_is_entered_in_protected_mode_with_start_info() {
    for bits in [64, 32] {
        let note = pvh_note(MIB + 0x10);
        let kernel = elf(bits, MIB, &[Segment::new(MIB, pattern(4096, 1))], Some(&note));
        let initrd = pattern(5000, 3);
        let boot = Boot {
            initrd: Some(&initrd),
            command_line: "hello",
            ..Boot::new(&kernel)
        };
        let (memory, state) = boot.load().unwrap();
        assert_eq!((state.protocol, state.regs.rip), (Protocol::Pvh, MIB + 0x10));
        assert_eq!(
            (state.system.cr0 & 0x8000_0001, state.system.cr4, state.system.efer),
            (1, 0, 0)
        );
        assert!(state.system.cs.db && !state.system.cs.long && state.system.cs.limit == u32::MAX);

        let info = state.regs.rbx;
        assert_eq!((u32_at(&memory, info), u32_at(&memory, info + 4)), (0x336e_c578, 1));
        assert_eq!(string_at(&memory, u64_at(&memory, info + 24)), "hello");
        assert_eq!(read(&memory, u64_at(&memory, info + 32), 8), b"RSD PTR ");
        assert_eq!(u32_at(&memory, info + 12), 1);
        let module = u64_at(&memory, info + 16);
        assert_eq!(read(&memory, u64_at(&memory, module), initrd.len()), initrd);
        assert_eq!(u64_at(&memory, module + 8), 5000);
        let (map, count) = (u64_at(&memory, info + 40), u32_at(&memory, info + 48));
        let ram: u64 = (0..u64::from(count))
            .map(|index| map + index * 24)
            .filter(|&at| u32_at(&memory, at + 16) == 1)
            .map(|at| u64_at(&memory, at + 8))
            .sum();
        assert_eq!(ram, 63 * MIB + 0x9_fc00);
    }
}

#[test]
fn multiboot_elf_gets_memory_command_line_and_module() {
    for bits in [32, 64] {
        let mut code = multiboot_header(3, &[]);
        code.extend(pattern(4096, 5));
        let kernel = elf(bits, MIB + 0x20, &[Segment::new(MIB, code)], None);
        let initrd = pattern(5000, 3);
        let boot = Boot {
            initrd: Some(&initrd),
            command_line: "one two",
            ..Boot::new(&kernel)
        };
        let (memory, state) = boot.load().unwrap();
        assert_eq!(
            (state.protocol, state.image),
            (Protocol::Multiboot1, ImageKind::Elf { bits })
        );
        assert_eq!((state.regs.rip, state.regs.rax), (MIB + 0x20, 0x2bad_b002));
        assert_eq!(state.system.cr0 & 0x8000_0001, 1);

        let info = state.regs.rbx;
        assert_eq!(u32_at(&memory, info), 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9);
        assert_eq!((u32_at(&memory, info + 4), u32_at(&memory, info + 8)), (639, 63 * 1024));
        assert_eq!(
            string_at(&memory, u64::from(u32_at(&memory, info + 16))),
            "vmlinux.bin one two"
        );
        assert_eq!(u32_at(&memory, info + 20), 1);
        let module = u64::from(u32_at(&memory, info + 24));
        let (start, end) = (u32_at(&memory, module), u32_at(&memory, module + 4));
        assert_eq!(read(&memory, u64::from(start), initrd.len()), initrd);
        assert_eq!((start % 4096, end - start), (0, 5000));
        assert_eq!(string_at(&memory, u64::from(u32_at(&memory, module + 8))), "initrd.img");
        assert_eq!(string_at(&memory, u64::from(u32_at(&memory, info + 64))), "Umbra");

        let (map, end) = (
            u64::from(u32_at(&memory, info + 48)),
            u64::from(u32_at(&memory, info + 44)),
        );
        let mut at = map;
        let mut seen = Vec::new();
        while at < map + end {
            seen.push((
                u64_at(&memory, at + 4),
                u64_at(&memory, at + 12),
                u32_at(&memory, at + 20),
            ));
            at += u64::from(u32_at(&memory, at)) + 4;
        }
        assert_eq!(seen.last(), Some(&(MIB, 63 * MIB, 1)));
        assert_eq!(at, map + end);
    }
}

#[test]
fn flat_multiboot_image_is_loaded_by_its_address_fields() {
    // The header at 0x30 of the file lies at 2 MiB + 0x10, so loading starts at 0x20 of the file.
    let load = 0x20_0000;
    let mut image = pattern(0x30, 9);
    image.extend(multiboot_header(
        1 << 16,
        &[load + 0x10, load, load + 0x100, load + 0x10_0000, load + 0x40],
    ));
    image.extend(pattern(0x200, 11));
    let (memory, state) = Boot::new(&image).load().unwrap();
    assert_eq!(state.image, ImageKind::Flat);
    assert_eq!(state.regs.rip, u64::from(load + 0x40));
    assert_eq!(read(&memory, load.into(), 0x100), image[0x20..0x120]);
    assert_eq!(read(&memory, u64::from(load) + 0x100, 0x100), [0; 0x100]);
    let kernel = state
        .placed
        .iter()
        .find(|placed| placed.what == "kernel image")
        .unwrap();
    assert_eq!(kernel.bytes, 0x10_0000);
}

#[test]
fn higher_half_entry_is_translated_by_its_segment() {
    let mut segment = Segment::new(MIB, multiboot_header(0, &[]));
    segment.contents.resize(4096, 0);
    segment.virtual_address = 0xffff_ffff_8010_0000;
    let kernel = elf(64, 0xffff_ffff_8010_0800, &[segment], None);
    let (_, state) = Boot::new(&kernel).load().unwrap();
    assert_eq!(state.entry.get(), MIB + 0x800);
}

#[test]
fn video_request_is_remarked_and_unknown_requirement_refused() {
    let kernel = |flags| {
        elf(
            32,
            MIB,
            &[Segment::new(
                MIB,
                [multiboot_header(flags, &[0; 9]), vec![0; 99]].concat(),
            )],
            None,
        )
    };
    let (_, state) = Boot::new(&kernel(4)).load().unwrap();
    assert!(state.remarks[0].contains("video"), "{state}");
    assert!(Boot::new(&kernel(8)).error().contains("0x8"));
}

#[test]
fn boot_compressed_enters_the_image_at_its_64_bit_entry() {
    let image = bzimage(&pattern(40_000, 1));
    let boot = Boot {
        boot_compressed: true,
        command_line: "x",
        ..Boot::new(&image)
    };
    let (memory, state) = boot.load().unwrap();
    assert_eq!(
        state.image,
        ImageKind::BzImage {
            version: "6.1.0-test".to_owned(),
            decompressed: None
        }
    );
    assert_eq!(state.regs.rip, 0x100_0200);
    assert_eq!(read(&memory, 0x100_0000, image.len() - 1024), image[1024..]);
    let zero_page = state.regs.rsi;
    // The image's own header is handed on, with our fields set.
    assert_eq!(read(&memory, zero_page + 0x260, 4), (16u32 << 20).to_le_bytes());
    assert_eq!(read(&memory, zero_page + 0x210, 1), [0xff]);
    assert_eq!(
        memory.read_obj::<u64>(GuestAddress(zero_page + 0x258)).unwrap(),
        0x100_0000
    );
    assert!(state.placed.iter().any(|placed| placed.bytes == 16 * MIB));
}

#[test]
fn uncompressed_payload_is_loaded_as_it_is() {
    let code = pattern(30_000, 4);
    let kernel = elf(64, 16 * MIB, &[Segment::new(16 * MIB, code.clone())], None);
    let (memory, state) = Boot::new(&bzimage(&kernel)).load().unwrap();
    assert_eq!(
        state.image,
        ImageKind::BzImage {
            version: "6.1.0-test".to_owned(),
            decompressed: Some(Compression::None)
        }
    );
    assert_eq!(read(&memory, 16 * MIB, code.len()), code);
    assert_eq!(state.regs.rip, 16 * MIB);
}
