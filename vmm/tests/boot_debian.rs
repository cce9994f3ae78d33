//! Debian's stock cloud kernel, loaded as a user would, and compared with what the `lz4` tool and the ELF loader of
//! linux-loader make of the same file.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod boot_support;

use boot_support::{MIB, bzimage, memory_of, pipe, read, with_size};
use linux_loader::loader::{KernelLoader, elf::Elf};
use std::io::Cursor;
use std::path::PathBuf;
use umbra_vmm::acpi::Platform;
use umbra_vmm::boot::{BootRequest, BootState, Compression, Image, ImageKind, load, open_kernel};
use umbra_vmm::layout::MemoryLayout;
use vm_memory::GuestMemoryMmap;

/// The newest cloud kernel installed.
fn kernel() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/boot")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().contains("/vmlinuz-") && path.to_string_lossy().ends_with("cloud-amd64"))
        .collect();
    found.sort();
    let newest = found.pop();
    if newest.is_none() {
        eprintln!("skipped: no Debian cloud kernel in /boot");
    }
    newest
}

/// The payload by the header's own fields, without our code.
fn payload(image: &[u8]) -> &[u8] {
    let long = |at: usize| usize::try_from(u32::from_le_bytes(image[at..at + 4].try_into().unwrap())).unwrap();
    let code = (usize::from(image[0x1f1]) + 1) * 512;
    &image[code + long(0x248)..][..long(0x24c)]
}

fn boot<F: umbra_vmm::boot::ImageFile>(kernel: Image<F>, boot_compressed: bool) -> (GuestMemoryMmap, BootState) {
    let layout = MemoryLayout::plan(512 * MIB, 40).unwrap();
    let memory = memory_of(&layout);
    let platform = Platform {
        cpus: 4,
        com1: true,
        rtc: true,
        virtio_mmio: Vec::new(),
    };
    let request = BootRequest {
        kernel,
        initrd: None,
        command_line: "console=ttyS0",
        layout: &layout,
        platform: Some(&platform),
        boot_compressed,
    };
    let state = load(&memory, request).unwrap();
    (memory, state)
}

#[test]
fn stock_kernel_is_in_memory_as_another_loader_puts_it() {
    let Some(path) = kernel() else { return };
    let image = std::fs::read(&path).unwrap();
    let Some(vmlinux) = pipe(
        "lz4",
        &["-d", "-c", "-q"],
        &payload(&image)[..payload(&image).len() - 4],
    ) else {
        return;
    };
    let (memory, state) = boot(open_kernel(&path).unwrap(), false);
    let ImageKind::BzImage {
        version,
        decompressed: Some(Compression::Lz4),
    } = &state.image
    else {
        panic!("{state}");
    };
    assert!(path.to_string_lossy().ends_with(version.as_str()), "{version}");

    let oracle = memory_of(&MemoryLayout::plan(512 * MIB, 40).unwrap());
    let loaded = Elf::load(&oracle, None, &mut Cursor::new(&vmlinux), None).unwrap();
    assert_eq!(state.regs.rip, loaded.kernel_load.0);
    for chunk in (MIB..96 * MIB).step_by(1 << 20) {
        assert!(
            read(&memory, chunk, 1 << 20) == read(&oracle, chunk, 1 << 20),
            "memory differs at {chunk:#x}"
        );
    }

    // The kernel in an ELF file, as distributions' debug packages have it, is entered by its PVH note.
    let (memory, state) = boot(Image::new("vmlinux", Cursor::new(vmlinux)).unwrap(), false);
    assert_eq!(state.protocol, umbra_vmm::boot::Protocol::Pvh);
    assert!(read(&memory, 16 * MIB, 1 << 20) == read(&oracle, 16 * MIB, 1 << 20));
}

#[test]
fn stock_kernel_repacked_is_the_same_kernel() {
    let Some(path) = kernel() else { return };
    let image = std::fs::read(&path).unwrap();
    let Some(vmlinux) = pipe(
        "lz4",
        &["-d", "-c", "-q"],
        &payload(&image)[..payload(&image).len() - 4],
    ) else {
        return;
    };
    let (original, _) = boot(open_kernel(&path).unwrap(), false);
    for (tool, arguments) in [("gzip", ["-n", "-1"]), ("zstd", ["-q", "-1"])] {
        let Some(compressed) = pipe(tool, &arguments, &vmlinux) else {
            continue;
        };
        let packed = if tool == "gzip" {
            compressed
        } else {
            with_size(compressed, &vmlinux)
        };
        let (memory, _) = boot(Image::new(tool, Cursor::new(bzimage(&packed))).unwrap(), false);
        for chunk in (MIB..80 * MIB).step_by(1 << 20) {
            assert!(
                read(&memory, chunk, 1 << 20) == read(&original, chunk, 1 << 20),
                "{tool}: {chunk:#x}"
            );
        }
    }
}

#[test]
fn stock_kernel_as_it_is_has_its_working_space() {
    let Some(path) = kernel() else { return };
    let (memory, state) = boot(open_kernel(&path).unwrap(), true);
    let image = std::fs::read(&path).unwrap();
    let code = (usize::from(image[0x1f1]) + 1) * 512;
    let init_size = u32::from_le_bytes(image[0x260..0x264].try_into().unwrap());
    let placed = state
        .placed
        .iter()
        .find(|placed| placed.what.contains("compressed"))
        .unwrap();
    assert_eq!(placed.bytes, u64::from(init_size));
    assert_eq!(state.regs.rip, placed.start.get() + 0x200);
    assert!(read(&memory, placed.start.get(), 1 << 20) == image[code..code + (1 << 20)]);
}
