//! Linux's bzImage: `header` reads what it says of itself, `payload` decompresses the kernel in it (the usual way),
//! `whole` loads it as it is and lets the guest decompress.

pub(super) mod header;
pub(super) mod payload;
pub(super) mod whole;

pub(super) use header::Setup;
