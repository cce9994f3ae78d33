//! Loading by the addresses in the multiboot header, whatever format the file has (section 3.1.3).

use super::super::error::{KernelProblem, MultibootProblem};
use super::super::image::{Image, ImageFile};
use super::super::place::Places;
use super::header::{Addresses, Header};
use umbra_memslots::Gpa;
use vm_memory::GuestMemory;

/// What of the file goes where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Plan {
    file_offset: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

/// Loads the image and gives its entry point.
pub(in crate::boot) fn load<M: GuestMemory + ?Sized, F: ImageFile>(
    memory: &M,
    image: &mut Image<F>,
    header: &Header,
    addresses: &Addresses,
    places: &mut Places<'_>,
) -> Result<Gpa, KernelProblem> {
    let plan = plan(image.bytes(), header, addresses).ok_or(MultibootProblem::Addresses {
        offset: header.offset,
        header: addresses.header,
        load: addresses.load,
        load_end: addresses.load_end,
        bss_end: addresses.bss_end,
        entry: addresses.entry,
    })?;
    let start = Gpa::new(u64::from(addresses.load));
    places.claim("kernel image", start, plan.memory_bytes)?;
    image.load_at(plan.file_offset, plan.file_bytes, "the load range", memory, start)?;
    Ok(Gpa::new(u64::from(addresses.entry)))
}

/// The plan, or `None` if the fields contradict each other.
fn plan(image_bytes: u64, header: &Header, addresses: &Addresses) -> Option<Plan> {
    let load = u64::from(addresses.load);
    let before_header = u64::from(addresses.header).checked_sub(load)?;
    let file_offset = u64::try_from(header.offset).ok()?.checked_sub(before_header)?;
    let file_bytes = match addresses.load_end {
        0 => image_bytes.checked_sub(file_offset)?,
        end => u64::from(end).checked_sub(load)?,
    };
    let memory_bytes = match addresses.bss_end {
        0 => file_bytes,
        end => u64::from(end).checked_sub(load).filter(|&bytes| bytes >= file_bytes)?,
    };
    let entry = u64::from(addresses.entry).checked_sub(load)?;
    (entry < file_bytes).then_some(Plan {
        file_offset,
        file_bytes,
        memory_bytes,
    })
}
