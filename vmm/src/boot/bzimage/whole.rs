//! A bzImage as it is: the guest decompresses it, as every boot loader but ours has it.

use super::super::error::{BzImageProblem, KernelProblem};
use super::super::image::{Image, ImageFile};
use super::super::place::Places;
use super::header::{Setup, VERSION_64BIT};
use umbra_memslots::Gpa;
use vm_memory::GuestMemory;

/// Offset of the 64-bit entry point in the protected-mode code.
const ENTRY_64BIT: u64 = 0x200;

/// Loads the protected-mode code and gives its 64-bit entry point.
pub(in crate::boot) fn load<M: GuestMemory + ?Sized, F: ImageFile>(
    memory: &M,
    image: &mut Image<F>,
    setup: &Setup,
    places: &mut Places<'_>,
) -> Result<Gpa, KernelProblem> {
    setup.need_version(VERSION_64BIT, "to be entered in 64-bit mode")?;
    if !setup.has_64bit_entry() {
        return Err(BzImageProblem::No64BitEntry.into());
    }
    let (offset, bytes) = setup.code();
    let (start, memory_bytes) = setup.load_range();
    places.claim("compressed kernel with its working space", start, memory_bytes)?;
    image.load_at(offset, bytes, "the protected-mode code", memory, start)?;
    Ok(start.wrapping_add(ENTRY_64BIT))
}
