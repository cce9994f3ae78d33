//! The identity map a 64-bit entry starts with: the first 4 GiB in 2 MiB pages (SDM vol. 3A section 4.5).
//!
//! 2 MiB and not 1 GiB pages, because a guest CPU need not have those.

use super::error::BootError;
use crate::layout::BootArea;
use umbra_memslots::{Gpa, PAGE_SIZE};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const LARGE_PAGE: u64 = 2 << 20;
const DIRECTORIES: usize = 4;
const ENTRIES: usize = 512;

/// Writes the tables and gives the value of CR3.
pub(super) fn write<M: GuestMemory + ?Sized>(memory: &M) -> Result<Gpa, BootError> {
    let root = BootArea::PAGE_TABLES;
    let pointers = root.wrapping_add(PAGE_SIZE);
    let directories = pointers.wrapping_add(PAGE_SIZE);
    put(memory, root, &[pointers.get() | PRESENT_WRITABLE])?;
    let mut entries = [0; DIRECTORIES];
    for (entry, index) in entries.iter_mut().zip(0u64..) {
        *entry = (directories.get() + index * PAGE_SIZE) | PRESENT_WRITABLE;
    }
    put(memory, pointers, &entries)?;
    let mut entries = [0; ENTRIES * DIRECTORIES];
    for (entry, index) in entries.iter_mut().zip(0u64..) {
        *entry = (index * LARGE_PAGE) | LARGE | PRESENT_WRITABLE;
    }
    put(memory, directories, &entries)?;
    Ok(root)
}

fn put<M: GuestMemory + ?Sized>(memory: &M, at: Gpa, entries: &[u64]) -> Result<(), BootError> {
    let mut bytes = vec![0; size_of_val(entries)];
    for (to, entry) in bytes.chunks_exact_mut(8).zip(entries) {
        to.copy_from_slice(&entry.to_le_bytes());
    }
    memory
        .write_slice(&bytes, GuestAddress::from(at))
        .map_err(|source| BootError::Memory {
            gpa: at,
            what: "page tables",
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryMmap;

    #[test]
    fn every_address_below_four_gibibytes_maps_to_itself() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let root = write(&memory).unwrap();
        let entry = |table: u64, index: u64| memory.read_obj::<u64>(GuestAddress(table + index * 8)).unwrap();
        for address in [0, 0x1000, 0x20_0000, 0x3fff_ffff, 0x4000_0000, 0xc000_0000, 0xffff_ffff] {
            let pointer = entry(root.get(), address >> 39);
            let directory = entry(pointer & !0xfff, address >> 30 & 511);
            let leaf = entry(directory & !0xfff, address >> 21 & 511);
            assert_eq!(pointer & directory & 3, 3);
            assert_eq!(leaf & 0xfff, 0x83);
            assert_eq!((leaf & !0xfff) | address & 0x1f_ffff, address);
        }
        assert_eq!(entry(root.get(), 1), 0);
        assert_eq!(entry(root.get() + PAGE_SIZE, 4), 0);
    }
}
