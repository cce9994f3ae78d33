//! The update rules: is this request allowed in this state, and what does it amount to?
//!
//! A pure function of the limits, the present slots and the request. The order of the checks is the kernel's
//! (`kvm_vm_ioctl_set_memory_region`, `kvm_set_memory_region` and its callees in virt/kvm/kvm_main.c,
//! `kvm_arch_prepare_memory_region` on x86), so that for a request that breaks several rules the error number is the
//! kernel's too. Rules 1 to 5 hold for deletions as well.

use crate::addr::{Gpa, PAGE_SHIFT, PAGE_SIZE};
use crate::backing::Backing;
use crate::dirty::DirtyBitmap;
use crate::error::{FlagRule, SlotError};
use crate::limits::{DirtyLogMode, MAX_PAGES_PER_SLOT, SlotLimits};
use crate::range::GfnRange;
use crate::request::{SlotChange, SlotRequest};
use crate::slot::{AddressSpaceId, MemSlot, SlotFlags};
use crate::snapshot::Memslots;
use alloc::sync::Arc;

/// The parts of a request after the checks that need no state.
struct Checked {
    space: AddressSpaceId,
    flags: SlotFlags,
    /// `None`: delete.
    range: Option<GfnRange>,
}

/// The address space of a request, after the checks that come before looking at any slot.
pub(crate) fn space_of(limits: &SlotLimits, request: &SlotRequest) -> Result<AddressSpaceId, SlotError> {
    check_alone(limits, request).map(|checked| checked.space)
}

/// What `request` amounts to when its address space's slots are `slots` and all spaces together have `total_pages`
/// pages; `None` if it describes the present state.
pub(crate) fn plan(
    limits: &SlotLimits,
    slots: &Memslots,
    total_pages: u64,
    request: &SlotRequest,
    backing: Option<Arc<dyn Backing>>,
) -> Result<Option<SlotChange>, SlotError> {
    let Checked { space, flags, range } = check_alone(limits, request)?;
    let id = request.id();
    let old = slots.by_id(id);

    let Some(range) = range else {
        let old = old.ok_or(SlotError::NothingToDelete { slot: request.slot })?;
        return Ok(Some(SlotChange::Delete { old: old.clone() }));
    };
    if let Some(old) = old {
        check_unchangeable(old, request, flags, range)?;
        if old.range() == range && old.flags() == flags {
            return Ok(None);
        }
    } else if total_pages.checked_add(range.pages()).is_none() {
        return Err(SlotError::TotalPagesOverflow { pages: range.pages() });
    }
    let goes_there = old.is_none_or(|old| old.range() != range);
    if goes_there && let Some(other) = slots.overlapping(range).find(|other| other.id() != id) {
        return Err(SlotError::Overlap {
            space,
            id,
            range,
            other: other.id(),
            other_range: other.range(),
        });
    }

    let dirty = dirty_bitmap(limits, old, flags, range).map_err(|source| SlotError::NoMemory { space, id, source })?;
    if goes_there && range.last() > limits.max_gfn {
        return Err(SlotError::AboveMaxGfn {
            space,
            id,
            range,
            max_gfn: limits.max_gfn,
        });
    }
    Ok(Some(match old {
        None => SlotChange::Create {
            new: MemSlot::new(space, id, range, request.userspace_addr)
                .with_flags(flags)
                .with_backing(check_backing(request, backing)?)
                .with_dirty(dirty)
                .with_guest_memfd(request.guest_memfd.filter(|_| flags.contains(SlotFlags::GUEST_MEMFD))),
        },
        Some(old) => {
            let new = old.clone().with_flags(flags).with_dirty(dirty).at(range);
            let old = old.clone();
            if old.range() == range {
                SlotChange::SetFlags { old, new }
            } else {
                SlotChange::Move { old, new }
            }
        }
    }))
}

/// Rules 1 to 5: those that look at nothing but the request and the host.
fn check_alone(limits: &SlotLimits, request: &SlotRequest) -> Result<Checked, SlotError> {
    let slot = request.slot;
    let size = request.memory_size;
    // 1. Number, and the flags that the old ioctl knows.
    let v1_flags = SlotFlags::LOG_DIRTY | SlotFlags::READ_ONLY;
    if request.guest_memfd.is_none() && request.flags & !v1_flags.bits() != 0 {
        return Err(refused_flags(request, v1_flags, FlagRule::OldIoctl));
    }
    if request.id().get() >= limits.slots() {
        return Err(SlotError::IdOutOfRange {
            id: request.id(),
            max_slots: limits.slots(),
        });
    }
    // 2. Flags.
    let flags = check_flags(limits, request)?;
    // 3. Address space.
    let space = AddressSpaceId::from_index(request.space_index())
        .filter(|space| space.index() < limits.spaces())
        .ok_or(SlotError::NoSuchSpace {
            slot,
            index: request.space_index(),
            spaces: limits.spaces(),
        })?;
    // 4. Alignment, and that the host range is user memory.
    if !size.is_multiple_of(PAGE_SIZE) {
        return Err(SlotError::SizeUnaligned { slot, size });
    }
    let gpa = request.guest_phys_addr;
    if !gpa.is_page_aligned() {
        return Err(SlotError::GpaUnaligned { slot, gpa });
    }
    let hva = request.userspace_addr;
    if !hva.is_page_aligned() {
        return Err(SlotError::HvaUnaligned { slot, hva });
    }
    let limit = limits.user_address_limit;
    if hva.checked_add(size).is_none_or(|end| end > limit) {
        return Err(SlotError::HvaNotUserMemory { slot, hva, size, limit });
    }
    if let Some(memfd) = request.guest_memfd.filter(|_| flags.contains(SlotFlags::GUEST_MEMFD)) {
        let offset = memfd.offset;
        if !offset.is_multiple_of(PAGE_SIZE) || offset.checked_add(size).is_none() {
            return Err(SlotError::GuestMemfdOffset { slot, offset, size });
        }
    }
    // 5. The guest range.
    let range = check_range(request, gpa, size)?;
    Ok(Checked { space, flags, range })
}

/// Rule 2 (`check_memory_region_flags`).
fn check_flags(limits: &SlotLimits, request: &SlotRequest) -> Result<SlotFlags, SlotError> {
    let flags = SlotFlags::from_bits_retain(request.flags);
    let allowed = limits.allowed_flags(flags);
    if allowed.contains(flags) {
        return Ok(flags);
    }
    let known = SlotFlags::all() - SlotFlags::INVALID;
    let rule = if !known.contains(flags) {
        FlagRule::Unknown
    } else if flags.contains(SlotFlags::GUEST_MEMFD) && limits.guest_memfd {
        FlagRule::NotWithGuestMemfd
    } else {
        FlagRule::NotOnThisHost
    };
    Err(refused_flags(request, allowed, rule))
}

fn refused_flags(request: &SlotRequest, allowed: SlotFlags, rule: FlagRule) -> SlotError {
    SlotError::Flags {
        slot: request.slot,
        flags: request.flags,
        refused: request.flags & !allowed.bits(),
        rule,
    }
}

/// Rule 5: neither wrapping nor too long. `None` for a size of 0.
fn check_range(request: &SlotRequest, gpa: Gpa, size: u64) -> Result<Option<GfnRange>, SlotError> {
    let slot = request.slot;
    // A range that ends at exactly 2^64 wraps for the kernel as well: it computes one past the end.
    if gpa.checked_add(size).is_none() {
        return Err(SlotError::GpaWraps { slot, gpa, size });
    }
    let pages = size >> PAGE_SHIFT;
    if pages > MAX_PAGES_PER_SLOT {
        return Err(SlotError::TooManyPages { slot, pages });
    }
    Ok(GfnRange::new(gpa.gfn(), pages))
}

/// Rule 8: what cannot change in an existing slot.
fn check_unchangeable(
    old: &MemSlot,
    request: &SlotRequest,
    flags: SlotFlags,
    range: GfnRange,
) -> Result<(), SlotError> {
    let (space, id) = (old.space(), old.id());
    if (flags | old.flags()).contains(SlotFlags::GUEST_MEMFD) {
        return Err(SlotError::GuestMemfdImmutable {
            space,
            id,
            range: old.range(),
        });
    }
    if old.hva() != request.userspace_addr {
        let (present, requested) = (old.hva(), request.userspace_addr);
        return Err(SlotError::HvaChange {
            space,
            id,
            range: old.range(),
            present,
            requested,
        });
    }
    if old.range().pages() != range.pages() {
        return Err(SlotError::SizeChange {
            space,
            id,
            range: old.range(),
            requested: range.pages(),
        });
    }
    if (old.flags() ^ flags).contains(SlotFlags::READ_ONLY) {
        return Err(SlotError::ReadOnlyChange {
            space,
            id,
            range: old.range(),
            present: old.flags(),
        });
    }
    Ok(())
}

/// The dirty bitmap of the new state: none without the flag, the present one if there is one, else a new one
/// (`kvm_prepare_memory_region`).
fn dirty_bitmap(
    limits: &SlotLimits,
    old: Option<&MemSlot>,
    flags: SlotFlags,
    range: GfnRange,
) -> Result<Option<Arc<DirtyBitmap>>, crate::dirty::NoMemory> {
    if !flags.contains(SlotFlags::LOG_DIRTY) || limits.dirty_log == DirtyLogMode::Ring {
        return Ok(None);
    }
    if let Some(present) = old.and_then(MemSlot::dirty) {
        return Ok(Some(Arc::clone(present)));
    }
    let all_dirty = limits.dirty_log == DirtyLogMode::ManualClear { initially_set: true };
    DirtyBitmap::new(range.pages(), all_dirty).map(|bitmap| Some(Arc::new(bitmap)))
}

/// Our own rule: the host range lies in the mapping that vouches for it.
fn check_backing(
    request: &SlotRequest,
    backing: Option<Arc<dyn Backing>>,
) -> Result<Option<Arc<dyn Backing>>, SlotError> {
    if let Some(backing) = &backing {
        let inside = request
            .userspace_addr
            .checked_offset_from(backing.start())
            .and_then(|offset| offset.checked_add(request.memory_size))
            .is_some_and(|end| end <= backing.bytes());
        if !inside {
            return Err(SlotError::OutsideBacking {
                hva: request.userspace_addr,
                size: request.memory_size,
                backing: backing.start(),
                backing_size: backing.bytes(),
            });
        }
    }
    Ok(backing)
}
