//! [`Place`]: bytes of guest RAM at a host address, and the few things that are done with them.
//!
//! Other threads change the memory at any time, so accesses are atomic (aligned ones, with the order that x86 promises)
//! or volatile, values are copied, and no reference into the memory is ever made.

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
        match bytes.len() {
            1 if self.is_aligned(1) => bytes[0] = atomic!(self, AtomicU8).load(Ordering::Acquire),
            2 if self.is_aligned(2) => {
                bytes.copy_from_slice(&atomic!(self, AtomicU16).load(Ordering::Acquire).to_ne_bytes());
            }
            4 if self.is_aligned(4) => {
                bytes.copy_from_slice(&atomic!(self, AtomicU32).load(Ordering::Acquire).to_ne_bytes());
            }
            8 if self.is_aligned(8) => {
                bytes.copy_from_slice(&atomic!(self, AtomicU64).load(Ordering::Acquire).to_ne_bytes());
            }
            _ => self.read_bytes(bytes),
        }
    }

    fn read_bytes(self, bytes: &mut [u8]) {
        for (index, byte) in bytes.iter_mut().take(self.length).enumerate() {
            // SAFETY: mapped as in `atomic!`, and `index` is below the length.
            *byte = unsafe { ptr::read_volatile(self.start.wrapping_add(index)) };
        }
    }

    /// Copies `bytes`, which has the place's length, in.
    #[inline]
    pub fn write(self, bytes: &[u8]) {
        match *bytes {
            [a] if self.is_aligned(1) => atomic!(self, AtomicU8).store(a, Ordering::Release),
            [a, b] if self.is_aligned(2) => {
                atomic!(self, AtomicU16).store(u16::from_ne_bytes([a, b]), Ordering::Release);
            }
            [a, b, c, d] if self.is_aligned(4) => {
                atomic!(self, AtomicU32).store(u32::from_ne_bytes([a, b, c, d]), Ordering::Release);
            }
            [a, b, c, d, e, f, g, h] if self.is_aligned(8) => {
                atomic!(self, AtomicU64).store(u64::from_ne_bytes([a, b, c, d, e, f, g, h]), Ordering::Release);
            }
            _ => self.write_bytes(bytes),
        }
    }

    fn write_bytes(self, bytes: &[u8]) {
        for (index, byte) in bytes.iter().take(self.length).enumerate() {
            // SAFETY: as in `read_bytes`.
            unsafe { ptr::write_volatile(self.start.wrapping_add(index), *byte) };
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

/// An atomic at an address for which the caller of the function promises.
macro_rules! promised {
    ($at:expr, $kind:ty) => {{
        // SAFETY: aligned (checked before), mapped as the caller promises, and no Rust reference points there.
        unsafe { <$kind>::from_ptr($at.cast()) }
    }};
}

/// Reads `W` bits: at once if they are aligned, byte by byte if not.
///
/// # Safety
/// `at` is the address of `W` bits in a page of guest RAM that is mapped.
#[inline(always)]
pub(super) unsafe fn load<const W: u32>(at: *mut u8) -> u64 {
    if at.addr() & (W as usize / 8 - 1) != 0 {
        // SAFETY: as the caller promises.
        return unsafe { load_bytes(at, W as usize / 8) };
    }
    match W {
        8 => u64::from(promised!(at, AtomicU8).load(Ordering::Acquire)),
        16 => u64::from(promised!(at, AtomicU16).load(Ordering::Acquire)),
        32 => u64::from(promised!(at, AtomicU32).load(Ordering::Acquire)),
        _ => promised!(at, AtomicU64).load(Ordering::Acquire),
    }
}

/// # Safety
/// As [`load`].
#[inline(never)]
unsafe fn load_bytes(at: *mut u8, count: usize) -> u64 {
    (0..count).rev().fold(0, |value, index| {
        // SAFETY: as the caller promises.
        value << 8 | u64::from(unsafe { ptr::read_volatile(at.wrapping_add(index)) })
    })
}

/// Writes the low `W` bits of `value`, likewise.
///
/// # Safety
/// As [`load`]; the page may be written.
#[inline(always)]
pub(super) unsafe fn store<const W: u32>(at: *mut u8, value: u64) {
    if at.addr() & (W as usize / 8 - 1) != 0 {
        // SAFETY: as the caller promises.
        return unsafe { store_bytes(at, value, W as usize / 8) };
    }
    match W {
        8 => promised!(at, AtomicU8).store(value as u8, Ordering::Release),
        16 => promised!(at, AtomicU16).store(value as u16, Ordering::Release),
        32 => promised!(at, AtomicU32).store(value as u32, Ordering::Release),
        _ => promised!(at, AtomicU64).store(value, Ordering::Release),
    }
}

/// # Safety
/// As [`store`].
#[inline(never)]
unsafe fn store_bytes(at: *mut u8, value: u64, count: usize) {
    for (index, byte) in value.to_le_bytes().into_iter().take(count).enumerate() {
        // SAFETY: as the caller promises.
        unsafe { ptr::write_volatile(at.wrapping_add(index), byte) };
    }
}

/// Writes the low `W` bits of `value` again and again into `bytes` bytes. Aligned elements of 8 bytes go at once.
///
/// # Safety
/// As [`store`], for all of the bytes; `at` and `bytes` are multiples of the element's size.
pub(super) unsafe fn fill<const W: u32>(at: *mut u8, value: u64, bytes: usize) {
    let value = match W {
        8 => value * 0x0101_0101_0101_0101,
        16 => value * 0x0001_0001_0001_0001,
        32 => value << 32 | value,
        _ => value,
    };
    let mut done = 0;
    while done < bytes {
        let at = at.wrapping_add(done);
        if at.addr() & 7 == 0 && bytes - done >= 8 {
            // SAFETY: 8 of the bytes are left.
            unsafe { store::<64>(at, value) };
            done += 8;
        } else {
            // SAFETY: an element is left.
            unsafe { store::<W>(at, value) };
            done += W as usize / 8;
        }
    }
}

/// Copies `bytes` bytes upwards, as if by elements of `W` bits: what was written is read again where the places overlap.
///
/// # Safety
/// As [`load`] and [`store`], for all of the bytes; addresses and `bytes` are multiples of the element's size.
pub(super) unsafe fn copy<const W: u32>(from: *mut u8, to: *mut u8, bytes: usize) {
    // Eight bytes at once are the same unless they would be read before they are written.
    let apart = to.addr().wrapping_sub(from.addr()) >= 8;
    let mut done = 0;
    while done < bytes {
        let (from, to) = (from.wrapping_add(done), to.wrapping_add(done));
        if apart && (from.addr() | to.addr()) & 7 == 0 && bytes - done >= 8 {
            // SAFETY: 8 of the bytes are left.
            let value = unsafe { load::<64>(from) };
            // SAFETY: likewise.
            unsafe { store::<64>(to, value) };
            done += 8;
        } else {
            // SAFETY: an element is left.
            let value = unsafe { load::<W>(from) };
            // SAFETY: likewise.
            unsafe { store::<W>(to, value) };
            done += W as usize / 8;
        }
    }
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
