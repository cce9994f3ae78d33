//! What is refused, and in which words: one line with the file, the value and what was expected.

mod boot_support;

use boot_support::{Boot, MIB, Segment, bzimage, elf, multiboot_header, pattern};
use umbra_vmm::boot::{open_initrd, open_kernel};

fn small_elf() -> Vec<u8> {
    elf(64, MIB, &[Segment::new(MIB, pattern(4096, 1))], None)
}

/// `bytes` with others at `offset`.
fn patched(mut bytes: Vec<u8>, offset: usize, patch: &[u8]) -> Vec<u8> {
    bytes[offset..offset + patch.len()].copy_from_slice(patch);
    bytes
}

#[test]
fn files_that_are_no_images_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.bin");
    std::fs::write(&empty, b"").unwrap();
    for (path, expected) in [
        (
            directory.path().join("none"),
            "cannot be opened: No such file or directory",
        ),
        (directory.path().to_path_buf(), "not a regular file"),
        (empty, "the file is empty"),
    ] {
        let error = open_kernel(&path).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("kernel image {}: {expected}", path.display())),
            "{error}"
        );
        let error = open_initrd(&path).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("initrd {}: {expected}", path.display())),
            "{error}"
        );
    }
}

#[test]
fn kernels_with_a_fault_are_refused_with_it() {
    let unsized_bzimage = bzimage(&pattern(4096, 1));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (
            b"#!/bin/sh\necho\n".to_vec(),
            "not a bzImage, ELF or multiboot1 image (starts with 23 21 2f 62 69 6e 2f 73)",
        ),
        (
            b"\x7fEL".to_vec(),
            "not a bzImage, ELF or multiboot1 image (starts with 7f 45 4c)",
        ),
        (
            small_elf()[..100].to_vec(),
            "truncated: the program header table (56 bytes at offset 0x40)",
        ),
        (
            small_elf()[..1000].to_vec(),
            "truncated: a segment (4096 bytes at offset 0x78)",
        ),
        (patched(small_elf(), 4, &[3]), "ELF class 3 is neither"),
        (patched(small_elf(), 5, &[2]), "ELF byte order 2"),
        (patched(small_elf(), 16, &[1]), "ELF type 1"),
        (patched(small_elf(), 18, &[183]), "ELF machine 183"),
        (
            patched(small_elf(), 56, &[0, 0]),
            "0 program headers of 56 bytes: expected 1 to 64 of 56 bytes",
        ),
        (patched(small_elf(), 56, &[255, 255]), "65535 program headers"),
        (patched(small_elf(), 0x40, &[6]), "no segment is loadable"),
        (
            patched(small_elf(), 0x40 + 40, &[1, 0]),
            "0x1000 bytes in the file at 0x78 for 0x1 bytes at 0x100000",
        ),
        (patched(small_elf(), 0x40 + 24, &[0xff; 8]), "segment 0 has"),
        (
            patched(small_elf(), 24, &[0, 0, 0x50, 0]),
            "the entry point 0x500000 is in none",
        ),
        (
            elf(64, 4096, &[Segment::new(4096, vec![0; 0x8_0000])], None),
            "overlaps the boot tables at 0x80000..0x94000",
        ),
        (
            elf(64, 64 * MIB, &[Segment::new(64 * MIB - 1, vec![0; 2])], None),
            "guest RAM, which ends at 0x4000000",
        ),
        (
            elf(
                64,
                MIB,
                &[
                    Segment::new(MIB, vec![0; 8192]),
                    Segment::new(MIB + 4096, vec![0; 8192]),
                ],
                None,
            ),
            "kernel segment 1 at 0x101000..0x103000 overlaps kernel segment 0 at 0x100000..0x102000",
        ),
        (
            elf(32, MIB, &[Segment::new(MIB, vec![0; 64])], None),
            "needs a PVH entry note or a multiboot1 header",
        ),
        (
            unsized_bzimage.clone(),
            "the payload's compression is not known (starts with",
        ),
        (unsized_bzimage[..2000].to_vec(), "truncated: the file has 2000 bytes"),
        (unsized_bzimage[..700].to_vec(), "truncated: the file has 700 bytes"),
        (
            patched(unsized_bzimage.clone(), 0x206, &[7, 2]),
            "boot protocol 2.07, but 2.08 is needed",
        ),
        (
            patched(unsized_bzimage.clone(), 0x24c, &[0xff; 4]),
            "payload of 4294967295 bytes at offset 0x400",
        ),
        (bzimage(b"\x89LZO\0\r\n\x1a\n\0\0\0\0\0\0\0"), "LZO is not supported"),
        (
            multiboot_header(1 << 16, &[1, 2, 3, 4, 5]),
            "contradict each other: header 0x1, load 0x2..0x3",
        ),
        (multiboot_header(1 << 16, &[]), "ends before its address fields"),
    ];
    for (image, expected) in cases {
        let error = Boot::new(&image).error();
        assert!(
            error.starts_with("kernel image vmlinux.bin: ") && error.contains(expected),
            "{error}\n{expected}"
        );
        assert!(!error.contains('\n'));
    }
    let old = patched(unsized_bzimage.clone(), 0x206, &[0x0b, 2]);
    let narrow = patched(unsized_bzimage, 0x236, &[0, 0]);
    for (image, expected) in [
        (old, "2.12 is needed to be entered in 64-bit mode"),
        (narrow, "no 64-bit entry point"),
    ] {
        let error = Boot {
            boot_compressed: true,
            ..Boot::new(&image)
        }
        .error();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn initrd_that_does_not_fit_is_refused_with_the_room_there_is() {
    let kernel = small_elf();
    let initrd = vec![0x5a; 63 << 20];
    let error = Boot {
        initrd: Some(&initrd),
        ..Boot::new(&kernel)
    }
    .error();
    assert!(
        error.starts_with("initrd initrd.img: its 66060288 bytes do not fit"),
        "{error}"
    );
    assert!(error.contains("has 66056192 bytes"), "{error}");
}

#[test]
fn command_line_that_is_too_long_or_has_a_zero_is_refused() {
    let kernel = small_elf();
    let line = "x".repeat(2048);
    let error = Boot {
        command_line: &line,
        ..Boot::new(&kernel)
    }
    .error();
    assert_eq!(
        error,
        "kernel command line: 2048 bytes are too long: this kernel takes at most 2047"
    );
    assert!(
        Boot {
            command_line: &line[1..],
            ..Boot::new(&kernel)
        }
        .load()
        .is_ok()
    );
    let error = Boot {
        command_line: "a\0b",
        ..Boot::new(&kernel)
    }
    .error();
    assert_eq!(
        error,
        "kernel command line: the zero byte at offset 1 would end it there"
    );

    let image = patched(bzimage(&pattern(4096, 1)), 0x238, &[16, 0, 0, 0]);
    let boot = |line| Boot {
        command_line: line,
        boot_compressed: true,
        ..Boot::new(&image)
    };
    assert!(boot("0123456789abcdef").load().is_ok());
    assert!(boot("0123456789abcdefg").error().ends_with("at most 16"));
}

#[test]
fn kernel_larger_than_memory_is_refused() {
    let kernel = elf(64, 16 * MIB, &[Segment::new(16 * MIB, vec![0; 4096])], None);
    let error = Boot {
        memory_bytes: 2 * MIB,
        ..Boot::new(&kernel)
    }
    .error();
    assert!(
        error.contains("does not lie in guest RAM, which ends at 0x200000 (more --memory?)"),
        "{error}"
    );
}
