//! The Xen note by which a kernel says that it can be entered by PVH (Xen `elfnote.h`, `XEN_ELFNOTE_PHYS32_ENTRY`).

use super::header::{u32_at, u64_at};
use umbra_memslots::Gpa;

const PHYS32_ENTRY: u32 = 18;
const OWNER: &[u8] = b"Xen\0";
/// Most of a note segment that is looked at; kernels' have a few hundred bytes.
pub(in crate::boot) const MAX_NOTE_BYTES: u64 = 64 << 10;

/// The PVH entry point in a segment of notes, each padded to `alignment` bytes (4 unless 8).
pub(in crate::boot) fn pvh_entry(notes: &[u8], alignment: u64) -> Option<Gpa> {
    let padded = |bytes: usize| bytes.checked_next_multiple_of(if alignment == 8 { 8 } else { 4 });
    let mut rest = notes;
    while rest.len() >= 12 {
        let name_bytes = usize::try_from(u32_at(rest, 0)).ok()?;
        let value_bytes = usize::try_from(u32_at(rest, 4)).ok()?;
        let kind = u32_at(rest, 8);
        let name_end = 12usize.checked_add(name_bytes)?;
        let value_start = padded(name_end)?;
        let value_end = value_start.checked_add(value_bytes)?;
        let (name, value) = (rest.get(12..name_end)?, rest.get(value_start..value_end)?);
        if kind == PHYS32_ENTRY && name == OWNER {
            return match value_bytes {
                4 => Some(Gpa::new(u64::from(u32_at(value, 0)))),
                8 => Some(Gpa::new(u64_at(value, 0))),
                _ => None,
            };
        }
        rest = rest.get(padded(value_end)?..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn note(name: &[u8], kind: u32, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in [
            u32::try_from(name.len()).unwrap(),
            u32::try_from(value.len()).unwrap(),
            kind,
        ] {
            bytes.extend(field.to_le_bytes());
        }
        for part in [name, value] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn entry_after_other_notes_is_found() {
        let mut notes = note(b"GNU\0", 3, &[7; 20]);
        notes.extend(note(b"Linux\0", PHYS32_ENTRY, &[1; 8]));
        notes.extend(note(b"Xen\0", PHYS32_ENTRY, &0x0100_0300u64.to_le_bytes()));
        assert_eq!(pvh_entry(&notes, 4), Some(Gpa::new(0x0100_0300)));
        assert_eq!(pvh_entry(&notes[..notes.len() - 1], 4), None);
        assert_eq!(
            pvh_entry(&note(b"Xen\0", PHYS32_ENTRY, &[0, 0, 0x10, 0]), 4),
            Some(Gpa::new(0x10_0000))
        );
        assert_eq!(pvh_entry(&note(b"Xen\0", PHYS32_ENTRY, &[1; 5]), 4), None);
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), alignment: u64) {
            let _ = pvh_entry(&bytes, alignment);
        }
    }
}
