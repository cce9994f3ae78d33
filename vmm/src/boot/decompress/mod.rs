//! The compressions Linux packs its kernel with, as readers.
//!
//! Which one it is, is told by the first bytes. Memory is bounded before anything is allocated: a dictionary or window
//! by [`MAX_WINDOW`], an LZ4 block by the format's 8 MiB.

mod lz4_legacy;
mod zstd;

use std::fmt;
use std::io::{self, BufReader, Read};

/// The largest dictionary or window of history a payload may ask for. Linux's own builds use 128 MiB at most
/// (`zstd --ultra -22`, `xz --lzma2=dict=128MiB`).
pub(super) const MAX_WINDOW: u32 = 128 << 20;

/// What decoders of the LZMA family may allocate in KiB: the window, and what they keep beside it.
const MAX_LZMA_KIB: u32 = (MAX_WINDOW >> 10) + 1024;

/// Size of the buffer between the file and a decoder in bytes.
const INPUT_BUFFER: usize = 32 << 10;

/// How a payload is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// Not at all: an ELF file.
    None,
    /// DEFLATE in a gzip member.
    Gzip,
    /// LZMA2 in an xz stream, with or without the x86 filter.
    Xz,
    /// LZMA in the "alone" format.
    Lzma,
    /// bzip2.
    Bzip2,
    /// LZ4 in the legacy frame.
    Lz4,
    /// Zstandard.
    Zstd,
    /// LZO: recognised, but not supported.
    Lzo,
}

impl Compression {
    /// Tells it from the first bytes (the magic numbers of Linux `lib/decompress.c`, and its LZ4 and zstd frames).
    pub(super) fn of(start: &[u8]) -> Option<Self> {
        const MAGIC: [(&[u8], Compression); 8] = [
            (b"\x7fELF", Compression::None),
            (b"\x1f\x8b", Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x5d\0\0", Compression::Lzma),
            (b"BZh", Compression::Bzip2),
            (&lz4_legacy::MAGIC, Compression::Lz4),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x89LZO", Compression::Lzo),
        ];
        MAGIC
            .iter()
            .find(|(magic, _)| start.starts_with(magic))
            .map(|&(_, compression)| compression)
    }

    /// Whether the payload ends in four bytes that the kernel's build adds to what the compressor wrote: its size
    /// before compression. A gzip member ends in that size by itself.
    pub(super) fn size_is_appended(self) -> bool {
        !matches!(self, Self::None | Self::Gzip)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Bzip2 => "bzip2",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Lzo => "lzo",
        })
    }
}

/// A reader of what `compressed`, which ends where the payload ends, decompresses to.
pub(super) fn reader<'a, R: Read + 'a>(compression: Compression, compressed: R) -> io::Result<Box<dyn Read + 'a>> {
    let input = BufReader::with_capacity(INPUT_BUFFER, compressed);
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::GzDecoder::new(input)),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(input, false, MAX_LZMA_KIB)),
        Compression::Lzma => Box::new(lzma_rust2::LzmaReader::new_mem_limit(input, MAX_LZMA_KIB, None)?),
        Compression::Bzip2 => Box::new(bzip2::bufread::BzDecoder::new(input)),
        Compression::Lz4 => Box::new(lz4_legacy::Reader::new(input)?),
        Compression::Zstd => Box::new(zstd::Reader::new(input)?),
        Compression::Lzo => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "LZO is not supported; let the guest decompress it (--boot-compressed)",
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_is_told_from_the_first_bytes() {
        assert_eq!(Compression::of(b"\x02\x21\x4c\x18rest"), Some(Compression::Lz4));
        assert_eq!(Compression::of(b"BZh9"), Some(Compression::Bzip2));
        assert_eq!(Compression::of(b"\x28\xb5\x2f"), None);
        assert_eq!(Compression::of(b""), None);
    }

    #[test]
    fn dictionary_over_the_limit_is_refused_before_it_is_allocated() {
        // An lzma header that asks for a dictionary of 4 GiB - 1.
        let mut header = vec![0x5d];
        header.extend(u32::MAX.to_le_bytes());
        header.extend(u64::MAX.to_le_bytes());
        header.extend([0; 16]);
        assert!(reader(Compression::Lzma, &header[..]).is_err());
    }
}
