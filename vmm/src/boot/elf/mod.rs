//! ELF kernels: `header` reads what the file says, `note` finds the PVH entry, `file` loads one from a file and
//! `stream` loads one that is being decompressed.

pub(super) mod file;
pub(super) mod header;
pub(super) mod note;
pub(super) mod stream;

pub(super) use header::{Class, MAX_SEGMENTS};
