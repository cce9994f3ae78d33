//! What the fuzz targets in `vmm/fuzz` run, for the ordinary tests to run as well: whatever the bytes, loading ends, in
//! bounded memory, with a state or with an error of one line.

use super::{MIB, bzimage, memory_of};
use std::io::Cursor;
use umbra_vmm::boot::{BootError, BootRequest, BootState, Image, load};
use umbra_vmm::layout::MemoryLayout;

/// RAM of the guest that images are loaded into.
const MEMORY: u64 = 32 * MIB;

/// Loads `kernel` both ways.
pub fn load_kernel(kernel: &[u8]) {
    for boot_compressed in [false, true] {
        check(kernel, None, "console=ttyS0", boot_compressed);
    }
}

/// Loads a bzImage around `payload`: what the decompressors are given.
pub fn load_payload(payload: &[u8]) {
    check(&bzimage(payload), None, "", false);
}

/// Loads `kernel` with an initrd and a command line that come from the same bytes.
pub fn load_with_surroundings(bytes: &[u8]) {
    let (length, rest) = bytes.split_first_chunk::<4>().map_or((0, bytes), |(length, rest)| {
        (usize::try_from(u32::from_le_bytes(*length)).unwrap_or(0), rest)
    });
    let (kernel, initrd) = rest.split_at(length.min(rest.len()));
    let text: String = initrd.iter().take(5000).map(|&byte| char::from(byte)).collect();
    check(kernel, Some(initrd), &text, false);
}

fn check(kernel: &[u8], initrd: Option<&[u8]>, command_line: &str, boot_compressed: bool) {
    let Ok(kernel) = Image::new("kernel", Cursor::new(kernel)) else {
        return;
    };
    let initrd = initrd.and_then(|bytes| Image::new("initrd", Cursor::new(bytes)).ok());
    let layout = MemoryLayout::plan(MEMORY, 40).unwrap();
    let memory = memory_of(&layout);
    let request = BootRequest {
        kernel,
        initrd,
        command_line,
        layout: &layout,
        platform: None,
        boot_compressed,
    };
    match load(&memory, request) {
        Ok(state) => sound(&state),
        Err(error) => one_line(&error),
    }
}

/// What every state must be.
fn sound(state: &BootState) {
    for pair in state.placed.windows(2) {
        assert!(pair[0].start.get() + pair[0].bytes <= pair[1].start.get(), "{state}");
    }
    assert!(
        state
            .placed
            .iter()
            .all(|placed| placed.start.get() + placed.bytes <= MEMORY),
        "{state}"
    );
    assert_eq!(state.regs.rip, state.entry.get());
}

fn one_line(error: &BootError) {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
}
