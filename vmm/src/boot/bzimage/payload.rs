//! Decompressing the kernel in a bzImage on the host: what the image's own code would do, at a host's speed.
//!
//! The payload is an ELF file, followed by relocations for a kernel that is loaded elsewhere than linked. It goes where
//! it is linked, so those are only counted. The addresses are therefore not randomised; `--boot-compressed` leaves
//! everything to the image's own code.

use super::super::decompress::{self, Compression};
use super::super::elf::header::Elf;
use super::super::elf::stream::ElfStream;
use super::super::error::{BzImageProblem, FirstBytes, KernelProblem, PayloadProblem};
use super::super::image::{Image, ImageFile};
use super::super::place::Places;
use super::header::{Setup, VERSION_PAYLOAD, size_before_compression};
use std::io::{ErrorKind, Read};
use vm_memory::GuestMemory;

/// The most a kernel decompresses to; a larger announcement is refused before any work.
const MAX_KERNEL_BYTES: u64 = 1 << 30;
/// Size of the pieces that go to guest memory.
const PIECE: usize = 32 << 10;

/// Decompresses the payload into guest memory.
pub(in crate::boot) fn load<M: GuestMemory + ?Sized, F: ImageFile>(
    memory: &M,
    image: &mut Image<F>,
    setup: &Setup,
    places: &mut Places<'_>,
) -> Result<(Elf, Compression), KernelProblem> {
    setup.need_version(VERSION_PAYLOAD, "to have its payload decompressed by the host")?;
    let (offset, bytes) = setup.payload()?;
    let mut edge = [0; 8];
    image.read_at(offset, &mut edge, "the start of the payload")?;
    let compression = Compression::of(&edge).ok_or(BzImageProblem::Compression {
        start: FirstBytes::of(&edge),
    })?;
    let (compressed, expected) = if compression == Compression::None {
        (bytes, bytes)
    } else {
        let mut last = [0; 4];
        image.read_at(offset + bytes - 4, &mut last, "the end of the payload")?;
        let appended = if compression.size_is_appended() { 4 } else { 0 };
        (bytes - appended, size_before_compression(&last))
    };

    let payload = |problem| KernelProblem::Payload { compression, problem };
    let max = MAX_KERNEL_BYTES.min(places.ram_bytes());
    if expected > max {
        return Err(payload(PayloadProblem::TooLarge { expected, max }));
    }
    let decode = |done| move |source| payload(PayloadProblem::Decode { done, expected, source });
    let section = image.section(offset, compressed, "the payload")?;
    let mut reader = decompress::reader(compression, section).map_err(decode(0))?;
    let mut kernel = ElfStream::new(memory, places);
    let mut piece = vec![0; PIECE];
    let mut done = 0u64;
    loop {
        let count = match reader.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(decode(done)(error)),
        };
        done += u64::try_from(count).unwrap_or(u64::MAX);
        if done > expected {
            return Err(payload(PayloadProblem::Long { expected }));
        }
        kernel.push(piece.get(..count).unwrap_or_default())?;
    }
    if done < expected {
        return Err(payload(PayloadProblem::Short { done, expected }));
    }
    Ok((kernel.finish()?, compression))
}
