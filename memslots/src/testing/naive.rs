//! [`NaiveSlots`]: the update rules once more, as plainly as they can be written: a list of slots and no cleverness.
//!
//! Deliberately shares nothing with the real table but the types of the request: two readings of the same rules.

use crate::limits::{DirtyLogMode, SlotLimits};
use crate::request::SlotRequest;
use alloc::vec;
use alloc::vec::Vec;

const EINVAL: i32 = 22;
const EEXIST: i32 = 17;

/// A slot as raw numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NaiveSlot {
    /// Address space index.
    pub space: u32,
    /// Number within the space.
    pub id: u32,
    /// `KVM_MEM_*` bits.
    pub flags: u32,
    /// Guest address in bytes.
    pub gpa: u64,
    /// Size in bytes.
    pub size: u64,
    /// Host address.
    pub hva: u64,
}

impl NaiveSlot {
    /// Whether a guest-physical page lies in the slot.
    pub fn has_page(&self, page: u64) -> bool {
        self.gpa / 4096 <= page && page < (self.gpa + self.size) / 4096
    }
}

/// A table of slots that answers every question by going through the list.
#[derive(Clone, Debug)]
pub struct NaiveSlots {
    limits: SlotLimits,
    slots: Vec<NaiveSlot>,
    /// Per address space, as the kernel counts them.
    generations: Vec<u64>,
}

impl NaiveSlots {
    /// An empty table. The limits are taken as they are: within their documented ranges.
    pub fn new(limits: SlotLimits) -> Self {
        let generations = if limits.address_spaces == 1 {
            vec![0]
        } else {
            vec![0, 1]
        };
        Self {
            limits,
            slots: Vec::new(),
            generations,
        }
    }

    /// The slots of an address space, in no order.
    pub fn slots(&self, space: u32) -> impl Iterator<Item = &NaiveSlot> {
        self.slots.iter().filter(move |slot| slot.space == space)
    }

    /// The generation of an address space.
    pub fn generation(&self, space: usize) -> u64 {
        self.generations[space]
    }

    /// Makes the change, or says the kernel's error number.
    ///
    /// # Errors
    /// The positive error number.
    pub fn apply(&mut self, request: &SlotRequest) -> Result<(), i32> {
        let (space, id) = (request.slot / 0x1_0000, request.slot % 0x1_0000);
        let (flags, size) = (request.flags, request.memory_size);
        let (gpa, hva) = (request.guest_phys_addr.get(), request.userspace_addr.get());
        let private = flags & 4 != 0;

        let mut valid = 1;
        if self.limits.read_only {
            valid |= 2;
        }
        if self.limits.guest_memfd && request.guest_memfd.is_some() {
            valid |= 4;
            if private {
                valid = 4;
            }
        }
        let numbers = [
            size,
            gpa,
            hva,
            request.guest_memfd.filter(|_| private).map_or(0, |memfd| memfd.offset),
        ];
        let misaligned = numbers.iter().any(|number| number % 4096 != 0);
        let wraps = u128::from(gpa) + u128::from(size) > u128::from(u64::MAX)
            || u128::from(numbers[3]) + u128::from(size) > u128::from(u64::MAX);
        let not_user = u128::from(hva) + u128::from(size) > u128::from(self.limits.user_address_limit.get());
        if id >= u32::from(self.limits.max_slots)
            || flags & !valid != 0
            || space >= u32::from(self.limits.address_spaces)
            || misaligned
            || wraps
            || not_user
            || size / 4096 > 0x7fff_ffff
        {
            return Err(EINVAL);
        }

        let present = self.slots.iter().position(|slot| (slot.space, slot.id) == (space, id));
        let wanted = NaiveSlot {
            space,
            id,
            flags,
            gpa,
            size,
            hva,
        };
        let generation = &mut self.generations[space as usize];
        let step = u64::from(self.limits.address_spaces);
        if size == 0 {
            self.slots.remove(present.ok_or(EINVAL)?);
            *generation += 2 * step;
            return Ok(());
        }
        if let Some(present) = present {
            let old = self.slots[present];
            if private || old.flags & 4 != 0 || old.hva != hva || old.size != size || (old.flags ^ flags) & 2 != 0 {
                return Err(EINVAL);
            }
            if old == wanted {
                return Ok(());
            }
            if old.gpa == gpa {
                self.slots[present] = wanted;
                *generation += step;
                return Ok(());
            }
        }
        let in_the_way = |other: &NaiveSlot| {
            other.space == space && other.id != id && other.gpa < gpa + size && gpa < other.gpa + other.size
        };
        if self.slots.iter().any(in_the_way) {
            return Err(EEXIST);
        }
        if (gpa + size) / 4096 - 1 > self.limits.max_gfn.get() {
            return Err(EINVAL);
        }
        match present {
            Some(present) => {
                self.slots[present] = wanted;
                *generation += 2 * step;
            }
            None => {
                self.slots.push(wanted);
                *generation += step;
            }
        }
        Ok(())
    }

    /// Whether a slot has a dirty bitmap.
    pub fn logs(&self, slot: &NaiveSlot) -> bool {
        slot.flags & 1 != 0 && self.limits.dirty_log != DirtyLogMode::Ring
    }
}
