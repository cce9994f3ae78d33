//! Multiboot1 (GNU Multiboot specification 0.6.96): `header` finds and reads the header in the image, `flat` loads
//! an image by the addresses in it, `info` writes what the kernel is told.

pub(super) mod flat;
pub(super) mod header;
pub(super) mod info;

pub(super) use header::Header;
