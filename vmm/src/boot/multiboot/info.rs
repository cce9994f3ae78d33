//! The multiboot information structure (section 3.3): memory sizes, memory map, command line, the initrd as the only
//! module.

use super::super::error::BootError;
use super::super::load::Environment;
use crate::layout::{BootArea, EBDA_START, HIGH_MEMORY_START, MapKind};
use umbra_memslots::Gpa;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// In EAX at the entry point.
pub(in crate::boot) const LOADER_MAGIC: u64 = 0x2bad_b002;

const HAS_MEMORY: u32 = 1;
const HAS_COMMAND_LINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MEMORY_MAP: u32 = 1 << 6;
const HAS_LOADER_NAME: u32 = 1 << 9;

/// Offsets on the page of the structure.
const MODULE_OFFSET: u64 = 0x100;
const LOADER_NAME_OFFSET: u64 = 0x140;
const MODULE_NAME_OFFSET: u64 = 0x200;
const MAX_MODULE_NAME: usize = 0xdff;
const LOADER_NAME: &[u8] = b"Umbra\0";
/// Size of a memory map entry without the size field itself.
const MAP_ENTRY_BYTES: u32 = 20;

/// Writes the structure and all it points to but the command line, and gives its address for EBX.
pub(in crate::boot) fn write<M: GuestMemory + ?Sized>(
    memory: &M,
    environment: &Environment<'_>,
) -> Result<Gpa, BootError> {
    let base = BootArea::PARAMETERS;
    let mut map = Vec::new();
    for entry in environment.layout.memory_map() {
        let kind: u32 = match entry.kind {
            MapKind::Usable => 1,
            MapKind::Reserved => 2,
        };
        map.extend(MAP_ENTRY_BYTES.to_le_bytes());
        map.extend(entry.start.get().to_le_bytes());
        map.extend(entry.bytes.to_le_bytes());
        map.extend(kind.to_le_bytes());
    }
    put(memory, BootArea::LISTS, &map)?;

    let mut flags = HAS_MEMORY | HAS_COMMAND_LINE | HAS_MEMORY_MAP | HAS_LOADER_NAME;
    let mut info = [0u32; 29];
    if let Some(initrd) = environment.initrd {
        flags |= HAS_MODULES;
        let name_at = base.wrapping_add(MODULE_NAME_OFFSET);
        let name: Vec<u8> = initrd
            .name
            .bytes()
            .filter(|&byte| byte != 0)
            .take(MAX_MODULE_NAME)
            .chain([0])
            .collect();
        put(memory, name_at, &name)?;
        let module = [
            low(initrd.start.get()),
            low(initrd.start.get() + initrd.bytes),
            low(name_at.get()),
            0,
        ];
        put(memory, base.wrapping_add(MODULE_OFFSET), &words(&module))?;
        set(&mut info, 5, 1);
        set(&mut info, 6, low(base.get() + MODULE_OFFSET));
    }
    let upper = environment
        .layout
        .low_end()
        .get()
        .saturating_sub(HIGH_MEMORY_START.get());
    set(&mut info, 0, flags);
    set(&mut info, 1, low(EBDA_START.get() >> 10));
    set(&mut info, 2, low(upper >> 10));
    set(&mut info, 4, low(BootArea::COMMAND_LINE.get()));
    set(&mut info, 11, u32::try_from(map.len()).unwrap_or(0));
    set(&mut info, 12, low(BootArea::LISTS.get()));
    set(&mut info, 16, low(base.get() + LOADER_NAME_OFFSET));
    put(memory, base.wrapping_add(LOADER_NAME_OFFSET), LOADER_NAME)?;
    put(memory, base, &words(&info))?;
    Ok(base)
}

/// Sets the field at 32-bit word `index`.
fn set(info: &mut [u32; 29], index: usize, value: u32) {
    if let Some(field) = info.get_mut(index) {
        *field = value;
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Everything here lies below 4 GiB.
#[expect(clippy::cast_possible_truncation, reason = "placed below 4 GiB")]
fn low(value: u64) -> u32 {
    debug_assert!(value <= u64::from(u32::MAX));
    value as u32
}

fn put<M: GuestMemory + ?Sized>(memory: &M, at: Gpa, bytes: &[u8]) -> Result<(), BootError> {
    memory
        .write_slice(bytes, GuestAddress::from(at))
        .map_err(|source| BootError::Memory {
            gpa: at,
            what: "multiboot information",
            source,
        })
}
