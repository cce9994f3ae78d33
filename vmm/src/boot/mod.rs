//! Getting a kernel into guest memory, and the state the boot CPU starts in.
//!
//! [`load`] recognises the image by its content, loads it, writes what its boot protocol wants beside it, and returns
//! the registers of the boot CPU with an account of what lies where. Nothing here knows a hypervisor: guest memory is
//! any `vm_memory` guest memory, the image anything that can be read and sought.
//!
//! Read in this order: `image` (a file and where it comes from), `probe` (what kind of kernel it is), `elf` and
//! `bzimage` (the two file formats; the payload of a bzImage is an ELF), `decompress` (the six compressions of
//! Linux), `place` (who lies where, and that nobody lies on anybody), then one file for each protocol: `linux`, `pvh`,
//! `multiboot`; `entry` and `page_tables` are the CPU's side of them, `reset_vector` is the way out. `error` has all that can be wrong.
//!
//! Two facts the loaders rely on: guest memory is zero when [`load`] is called (uninitialised data is not touched), and
//! no vCPU runs yet.

mod bzimage;
mod decompress;
mod elf;
mod entry;
mod error;
mod image;
mod linux;
mod load;
mod multiboot;
mod page_tables;
mod place;
mod probe;
mod pvh;
mod reset_vector;
mod state;

pub use decompress::Compression;
pub use error::{
    BootError, BzImageProblem, CommandLineProblem, ElfProblem, FileProblem, FirstBytes, InitrdProblem, KernelProblem,
    MultibootProblem, PayloadProblem, PlaceProblem,
};
pub use image::{Image, ImageFile, open_initrd, open_kernel};
pub use load::{BootRequest, load};
pub use place::Placed;
pub use state::{BootState, ImageKind, Protocol};
