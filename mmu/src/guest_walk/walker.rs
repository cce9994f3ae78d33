//! [`walk`] and [`translate`]: from a guest-virtual address to a guest-physical one.

use super::accessed_dirty::{Settled, settle};
use super::path::Path;
use super::result::{GuestWalk, WalkFailure};
use super::{bits32, long, pae};
use crate::x86::{Access, PagingMode, PagingState};
use umbra_memslots::{EntrySize, Gpa, GuestMemory, Gva};

/// How often a walk starts again because another CPU changed an entry between its being read and its flags being set. A
/// CPU would go on for ever; here the guest's instruction is begun anew instead, so that the host can't be held up.
const ATTEMPTS: u32 = 16;

/// Translates `gva` for `access` as the CPU does, setting accessed and dirty flags.
///
/// Flags are set only if the access is allowed, which is one of the behaviours that the manuals leave open.
///
/// # Errors
/// [`WalkFailure`]: what is to happen to the guest. Never a failure of the host.
pub fn walk<M: GuestMemory>(
    state: &PagingState,
    memory: &M,
    gva: Gva,
    access: Access,
) -> Result<GuestWalk, WalkFailure> {
    for _ in 0..ATTEMPTS {
        let mut walk = look(state, memory, gva, access)?;
        if settle(&mut walk, memory, access.is_write())? == Settled::Yes {
            return Ok(walk);
        }
    }
    Err(WalkFailure::Retry)
}

/// Translates `gva` for `access` without leaving a trace: for debuggers, dumps and instruction fetches on behalf of the
/// host.
///
/// # Errors
/// As [`walk`].
pub fn translate<M: GuestMemory>(
    state: &PagingState,
    memory: &M,
    gva: Gva,
    access: Access,
) -> Result<Gpa, WalkFailure> {
    look(state, memory, gva, access).map(|walk| walk.gpa)
}

/// Walks without leaving a trace.
pub(crate) fn look<M: GuestMemory>(
    state: &PagingState,
    memory: &M,
    gva: Gva,
    access: Access,
) -> Result<GuestWalk, WalkFailure> {
    if !state.mode.is_canonical(gva) {
        return Err(WalkFailure::NonCanonical(gva));
    }
    let path = |size| Path::new(state, memory, gva, access, size);
    match state.mode {
        PagingMode::None => Ok(path(EntrySize::B8).identity()),
        PagingMode::Bits32 => bits32::walk(path(EntrySize::B4)),
        PagingMode::Pae => pae::walk(path(EntrySize::B8)),
        PagingMode::Level4 | PagingMode::Level5 => long::walk(path(EntrySize::B8), state.mode.levels()),
    }
}
