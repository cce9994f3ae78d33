//! An ELF kernel from a file: segments are read straight into guest memory, one system call each.

use super::super::error::KernelProblem;
use super::super::image::{Image, ImageFile};
use super::super::place::Places;
use super::header::{Elf, HEADER_BYTES, Header};
use super::note::{self, MAX_NOTE_BYTES};
use umbra_memslots::Gpa;
use vm_memory::GuestMemory;

/// Reads the plan of an ELF file.
pub(in crate::boot) fn plan<F: ImageFile>(image: &mut Image<F>) -> Result<Elf, KernelProblem> {
    let header = Header::parse(&image.prefix(HEADER_BYTES)?)?;
    let mut table = vec![0; header.table_bytes()];
    image.read_at(header.table_offset(), &mut table, "the program header table")?;
    Ok(Elf::parse(&header, &table)?)
}

/// The PVH entry point of an ELF file, if it has one.
pub(in crate::boot) fn pvh_entry<F: ImageFile>(image: &mut Image<F>, elf: &Elf) -> Result<Option<Gpa>, KernelProblem> {
    for (range, alignment) in &elf.notes {
        let bytes = range.bytes.min(MAX_NOTE_BYTES);
        let mut notes = vec![0; usize::try_from(bytes).unwrap_or(0)];
        image.read_at(range.offset, &mut notes, "a note segment")?;
        if let Some(entry) = note::pvh_entry(&notes, *alignment) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Claims the memory of all segments, then reads them. What a segment has in memory beyond the file is zero already.
pub(in crate::boot) fn load<M: GuestMemory + ?Sized, F: ImageFile>(
    memory: &M,
    image: &mut Image<F>,
    elf: &Elf,
    places: &mut Places<'_>,
) -> Result<(), KernelProblem> {
    elf.claim(places)?;
    for segment in &elf.segments {
        image.load_at(
            segment.file.offset,
            segment.file.bytes,
            "a segment",
            memory,
            segment.address,
        )?;
    }
    Ok(())
}
