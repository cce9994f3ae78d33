//! The payload of a bzImage in each compression that Linux's build offers, made by the tools that the build uses.

mod boot_support;

use boot_support::{Boot, MIB, Segment, bzimage, elf, pattern, pipe, read, with_size};
use std::sync::OnceLock;
use umbra_vmm::boot::{Compression, ImageKind};

const TEXT: usize = 600_000;
const DATA: usize = 100_001;

/// Two segments out of order, with a hole between and something behind, as kernels have (their relocations).
fn kernel() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (text, data) = (pattern(TEXT, 7), pattern(DATA, 8));
    let mut first = Segment::new(24 * MIB, data.clone());
    first.zeroes = MIB;
    let mut file = elf(64, 16 * MIB, &[first, Segment::new(16 * MIB, text.clone())], None);
    file.extend(pattern(100_000, 9));
    (file, text, data)
}

/// The commands are those of Linux `scripts/Makefile.lib` and `scripts/xz_wrap.sh`.
const TOOLS: [(Compression, &str, &[&str]); 8] = [
    (Compression::Gzip, "gzip", &["-n", "-f", "-9"]),
    (Compression::Bzip2, "bzip2", &["-9"]),
    (Compression::Lzma, "lzma", &["-9"]),
    (
        Compression::Xz,
        "xz",
        &["--check=crc32", "--x86", "--lzma2=,dict=32MiB"],
    ),
    (Compression::Xz, "xz", &["--check=crc64"]),
    (Compression::Lz4, "lz4", &["-l", "-9", "-c", "-q"]),
    (Compression::Zstd, "zstd", &["-19", "-q"]),
    (Compression::Zstd, "zstd", &["-22", "--ultra", "-q"]),
];

/// The kernel's file as each installed tool packs it.
fn packed() -> &'static [(Compression, &'static str, Vec<u8>)] {
    static PACKED: OnceLock<Vec<(Compression, &'static str, Vec<u8>)>> = OnceLock::new();
    PACKED.get_or_init(|| {
        let (file, ..) = kernel();
        let pack = |&(compression, tool, arguments): &(_, &'static str, _)| {
            Some((compression, tool, pipe(tool, arguments, &file)?))
        };
        TOOLS.iter().filter_map(pack).collect()
    })
}

#[test]
fn each_compression_loads_the_same_kernel() {
    let (file, text, data) = kernel();
    for (compression, tool, compressed) in packed() {
        let payload = match compression {
            Compression::Gzip => compressed.clone(),
            _ => with_size(compressed.clone(), &file),
        };
        let (memory, state) = Boot::new(&bzimage(&payload))
            .load()
            .unwrap_or_else(|error| panic!("{tool}: {error}"));
        assert_eq!(
            state.image,
            ImageKind::BzImage {
                version: "6.1.0-test".to_owned(),
                decompressed: Some(*compression)
            }
        );
        assert_eq!(state.regs.rip, 16 * MIB);
        assert!(read(&memory, 16 * MIB, text.len()) == text, "{tool}: text differs");
        assert!(read(&memory, 24 * MIB, data.len()) == data, "{tool}: data differs");
        // Neither what follows a segment in the file nor the zero part comes with it.
        assert_eq!(read(&memory, 24 * MIB + DATA as u64, 4096), [0; 4096]);
        assert_eq!(read(&memory, 16 * MIB + TEXT as u64, 4096), [0; 4096]);
    }
}

#[test]
fn cut_or_damaged_payload_is_refused() {
    let (file, ..) = kernel();
    for (compression, tool, compressed) in packed() {
        let payload = |compressed: &[u8]| match compression {
            Compression::Gzip => bzimage(compressed),
            _ => bzimage(&with_size(compressed.to_vec(), &file)),
        };
        let expected = format!("kernel image vmlinux.bin: {compression} payload: ");
        let mut half = compressed[..compressed.len() / 2].to_vec();
        if *compression == Compression::Gzip {
            half.extend(u32::try_from(file.len()).unwrap().to_le_bytes());
        }
        let error = Boot::new(&payload(&half)).error();
        assert!(error.starts_with(&expected), "{tool}: {error}");

        let mut damaged = compressed.clone();
        let middle = damaged.len() / 2;
        damaged[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0xff);
        // LZ4's legacy frame has no checksum: literals may change without anybody noticing.
        if *compression != Compression::Lz4 {
            let error = Boot::new(&payload(&damaged)).error();
            assert!(error.starts_with(&expected), "{tool}: {error}");
        }
    }
}

#[test]
fn size_at_the_end_must_be_the_size() {
    let (file, ..) = kernel();
    let Some(compressed) = pipe("zstd", &["-1", "-q"], &file) else {
        return;
    };
    for (size, expected) in [
        (file.len() - 1, "has more than the"),
        (file.len() + 1, "but the image says that it has"),
        (65 << 20, "at most 67108864 can be loaded"),
    ] {
        let mut payload = compressed.clone();
        payload.extend(u32::try_from(size).unwrap().to_le_bytes());
        let error = Boot::new(&bzimage(&payload)).error();
        assert!(error.contains(expected), "{error}");
    }
}
