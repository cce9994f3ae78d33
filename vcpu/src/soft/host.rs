//! [`Place`]: bytes of guest RAM at a host address, and the few things that are done with them.
//!
//! Other threads change the memory at any time, so accesses are those of `raw` or atomic, values are copied, and no
//! reference into the memory is ever made.

use super::raw;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use umbra_memslots::{Gfn, Memslots, PAGE_SIZE};

/// A page of guest RAM, mapped for as long as `'a`.
#[derive(Clone, Copy)]
pub(super) struct Page<'a> {
    start: *mut u8,
    slots: PhantomData<&'a Memslots>,
}

/// Bytes of one page.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    start: *mut u8,
    length: usize,
    slots: PhantomData<&'a Memslots>,
}

impl<'a> Page<'a> {
    /// The page of a frame, if it has a slot that is backed by memory of this process and is not being removed.
    pub fn find(slots: &'a Memslots, gfn: Gfn) -> Option<Self> {
        let slot = slots.find_visible(gfn)?;
        slot.backing()?;
        let address = usize::try_from(slot.hva_of(gfn)?.get()).ok()?;
        Some(Self {
            start: ptr::with_exposed_provenance_mut(address),
            slots: PhantomData,
        })
    }

    /// The address, to be remembered.
    pub fn start(self) -> *mut u8 {
        self.start
    }

    /// The page of an address that [`Page::start`] gave.
    ///
    /// # Safety
    /// The snapshot in which the page was found must still be alive during `'a`.
    #[inline]
    pub unsafe fn again(start: *mut u8) -> Self {
        Self {
            start,
            slots: PhantomData,
        }
    }

    /// `length` bytes from `offset` on, if they end in this page.
    #[inline]
    pub fn at(self, offset: u64, length: usize) -> Option<Place<'a>> {
        let fits = length as u64 <= PAGE_SIZE && offset <= PAGE_SIZE - length as u64;
        fits.then(|| Place {
            start: self.start.wrapping_add(offset as usize),
            length,
            slots: PhantomData,
        })
    }
}

macro_rules! atomic {
    ($place:expr, $kind:ty) => {{
        // SAFETY: the place lies in a page that is mapped, readable and writable (it has a backing), is as long as the
        // type and aligned to it (checked by the caller of this macro), and no Rust reference points into it.
        unsafe { <$kind>::from_ptr($place.start.cast()) }
    }};
}

impl Place<'_> {
    #[inline]
    fn is_aligned(self, length: usize) -> bool {
        self.length == length && (self.start.addr() & (length - 1)) == 0
    }

    /// Copies the bytes out. `bytes` has the place's length.
    #[inline]
    pub fn read(self, bytes: &mut [u8]) {
        debug_assert_eq!(bytes.len(), self.length);
        macro_rules! at_once {
            ($kind:ty) => {{
                // SAFETY: mapped, as the place lies in a page that has a backing, and as long as the type.
                let value = unsafe { raw::load::<{ <$kind>::BITS }>(self.start) };
                bytes.copy_from_slice(&(value as $kind).to_le_bytes());
            }};
        }
        match self.length {
            1 => at_once!(u8),
            2 => at_once!(u16),
            4 => at_once!(u32),
            8 => at_once!(u64),
            _ => self.read_long(bytes),
        }
    }

    fn read_long(self, bytes: &mut [u8]) {
        let whole = self.length / 8 * 8;
        let (long, rest) = bytes.split_at_mut(whole.min(bytes.len()));
        for (index, part) in long.chunks_exact_mut(8).enumerate() {
            // SAFETY: mapped as in `read`, and eight bytes are left.
            let value = unsafe { raw::load::<64>(self.start.wrapping_add(8 * index)) };
            part.copy_from_slice(&value.to_le_bytes());
        }
        for (index, byte) in rest.iter_mut().take(self.length - whole).enumerate() {
            // SAFETY: mapped as in `read`, and the index is below the length.
            *byte = unsafe { raw::load::<8>(self.start.wrapping_add(whole + index)) } as u8;
        }
    }

    /// Copies `bytes`, which has the place's length, in.
    #[inline]
    pub fn write(self, bytes: &[u8]) {
        debug_assert_eq!(bytes.len(), self.length);
        macro_rules! at_once {
            ($kind:ty, $($byte:ident)*) => {{
                let value = <$kind>::from_le_bytes([$($byte),*]);
                // SAFETY: mapped and writable, as the place lies in a page that has a backing, and as long as the type.
                unsafe { raw::store::<{ <$kind>::BITS }>(self.start, value.into()) };
            }};
        }
        match *bytes {
            [a] if self.length == 1 => at_once!(u8, a),
            [a, b] if self.length == 2 => at_once!(u16, a b),
            [a, b, c, d] if self.length == 4 => at_once!(u32, a b c d),
            [a, b, c, d, e, f, g, h] if self.length == 8 => at_once!(u64, a b c d e f g h),
            _ => self.write_long(bytes),
        }
    }

    /// Copies `words`, which are as long as the place, in.
    #[inline(always)]
    pub fn write_words<const N: usize>(self, words: [u64; N]) {
        debug_assert_eq!(8 * N, self.length);
        for (index, word) in words.into_iter().take(self.length / 8).enumerate() {
            // SAFETY: mapped and writable as in `write`, and eight bytes are left.
            unsafe { raw::store::<64>(self.start.wrapping_add(8 * index), word) };
        }
    }

    fn write_long(self, bytes: &[u8]) {
        let whole = self.length.min(bytes.len()) / 8 * 8;
        let (long, rest) = bytes.split_at(whole);
        for (index, part) in long.as_chunks::<8>().0.iter().enumerate() {
            // SAFETY: as in `read_long`, and the page is writable.
            unsafe { raw::store::<64>(self.start.wrapping_add(8 * index), u64::from_le_bytes(*part)) };
        }
        for (index, byte) in rest.iter().take(self.length - whole).enumerate() {
            // SAFETY: likewise.
            unsafe { raw::store::<8>(self.start.wrapping_add(whole + index), (*byte).into()) };
        }
    }

    /// Whether [`Place::exchange`] does `length` bytes at an address (the offset in the page decides) in one piece.
    #[inline]
    pub fn is_exchanged_at_once(address: usize, length: usize) -> bool {
        match length {
            1 | 2 | 4 | 8 => address & (length - 1) == 0,
            16 => address & 15 == 0 && has_wide_exchange(),
            _ => false,
        }
    }

    /// Replaces `old` by `new`, both of the place's length, and says whether it did: atomically, if
    /// [`Place::is_exchanged_at_once`]. Otherwise it is up to the caller that nobody else writes.
    pub fn exchange(self, old: &[u8], new: &[u8]) -> bool {
        const ORDER: Ordering = Ordering::SeqCst;
        match (old, new) {
            (&[old], &[new]) if self.is_aligned(1) => {
                atomic!(self, AtomicU8).compare_exchange(old, new, ORDER, ORDER).is_ok()
            }
            (&[a, b], &[c, d]) if self.is_aligned(2) => {
                let (old, new) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
                atomic!(self, AtomicU16)
                    .compare_exchange(old, new, ORDER, ORDER)
                    .is_ok()
            }
            (&[a, b, c, d], &[e, f, g, h]) if self.is_aligned(4) => {
                let (old, new) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
                atomic!(self, AtomicU32)
                    .compare_exchange(old, new, ORDER, ORDER)
                    .is_ok()
            }
            _ => self.exchange_long(old, new),
        }
    }

    fn exchange_long(self, old: &[u8], new: &[u8]) -> bool {
        const ORDER: Ordering = Ordering::SeqCst;
        if let (Ok(old), Ok(new)) = (old.try_into(), new.try_into())
            && self.is_aligned(8)
        {
            let (old, new) = (u64::from_ne_bytes(old), u64::from_ne_bytes(new));
            return atomic!(self, AtomicU64)
                .compare_exchange(old, new, ORDER, ORDER)
                .is_ok();
        }
        if let (Ok(old), Ok(new)) = (old.try_into(), new.try_into())
            && self.is_aligned(16)
            && has_wide_exchange()
        {
            let (old, new) = (u128::from_ne_bytes(old), u128::from_ne_bytes(new));
            // SAFETY: as in `atomic!`, and the host has the instruction.
            return unsafe { wide_exchange(self.start.cast(), old, new) } == old;
        }
        let mut present = [0; 16];
        let Some(present) = present.get_mut(..old.len()) else {
            return false;
        };
        self.read(present);
        let equal = present == old;
        if equal {
            self.write(new);
        }
        equal
    }
}

/// Whether the host exchanges 16 bytes in one piece.
#[cfg(target_arch = "x86_64")]
fn has_wide_exchange() -> bool {
    std::arch::is_x86_feature_detected!("cmpxchg16b")
}

/// Whether the host exchanges 16 bytes in one piece: it does, but Rust's standard library has no such atomic.
#[cfg(not(target_arch = "x86_64"))]
fn has_wide_exchange() -> bool {
    false
}

/// Puts `new` where `old` is. Gives what was there.
///
/// # Safety
/// `at` is valid for atomic access, aligned to 16 bytes, and the CPU has CMPXCHG16B.
#[cfg(target_arch = "x86_64")]
unsafe fn wide_exchange(at: *mut u128, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: the caller promises what the instruction wants. RBX, which the compiler keeps for itself, is put back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, rsi",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            in("rdi") at,
            inout("rsi") new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

/// Never called.
///
/// # Safety
/// None.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn wide_exchange(_at: *mut u128, old: u128, _new: u128) -> u128 {
    old
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use umbra_memslots::ram::{GuestRam, HostMapping};
    use umbra_memslots::{Gpa, SlotLimits};

    #[test]
    fn every_width_and_alignment_reads_back_what_was_written() {
        let ram = GuestRam::new(SlotLimits::X86_64);
        ram.map(Gpa::new(0), Arc::new(HostMapping::anonymous(PAGE_SIZE).unwrap()))
            .unwrap();
        let slots = ram.snapshot();
        let page = Page::find(&slots, Gpa::new(0).gfn()).unwrap();
        assert!(Page::find(&slots, Gpa::new(PAGE_SIZE).gfn()).is_none());
        let data: Vec<u8> = (1..=16).collect();
        for length in 1..=16 {
            for offset in [0, 1, 2, 3, 4, 6, 8, 4096 - 16, 4096 - length as u64] {
                let place = page.at(offset, length).unwrap();
                place.write(&data[..length]);
                let mut back = vec![0; length];
                place.read(&mut back);
                assert_eq!(back, &data[..length], "{length} bytes at {offset}");
                assert!(!place.exchange(&vec![0; length], &data[1..1 + length.min(15)].repeat(2)[..length]));
                assert!(place.exchange(&data[..length], &vec![0; length]));
                place.read(&mut back);
                assert_eq!(back, vec![0; length]);
            }
        }
        assert!(page.at(4090, 8).is_none() && page.at(5000, 1).is_none() && page.at(0, 4097).is_none());
    }
}
