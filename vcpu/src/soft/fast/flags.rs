//! [`Lazy`]: status flags that nobody has asked for yet.
//!
//! An operation leaves its result and the carry out of each bit; a flag is worked out when something looks at it. Most
//! flags are overwritten unseen.

use crate::emulate::flags::{AF, CF, OF, PF, SF, ZF, when};

/// `Lazy::shift` when RFLAGS itself has the status flags.
const KNOWN: u32 = u32::MAX;

/// What the last operation leaves of its status flags.
#[derive(Clone, Copy, Debug)]
pub(in crate::soft) struct Lazy {
    /// The result, sign-extended.
    result: u64,
    /// The carry (or borrow) out of each bit, the operand's top bit in bit 63.
    carries: u64,
    /// How far `carries` was shifted up.
    shift: u32,
}

impl Default for Lazy {
    fn default() -> Self {
        Self {
            result: 0,
            carries: 0,
            shift: KNOWN,
        }
    }
}

/// `value`, the low `W` bits of which count, with its sign in all bits above.
#[inline(always)]
pub(super) const fn extend<const W: u32>(value: u64) -> u64 {
    (((value << (64 - W)) as i64) >> (64 - W)) as u64
}

impl Lazy {
    /// Whether RFLAGS has the status flags.
    #[inline(always)]
    pub fn is_known(&self) -> bool {
        self.shift == KNOWN
    }

    /// RFLAGS has them from now on.
    #[inline(always)]
    pub fn forget(&mut self) {
        self.shift = KNOWN;
    }

    /// An operation on `W` bits had this result and these carries.
    #[inline(always)]
    pub fn set<const W: u32>(&mut self, result: u64, carries: u64) {
        self.result = extend::<W>(result);
        self.carries = carries << (64 - W);
        self.shift = 64 - W;
    }

    /// An operation on `W` bits had this result and these flags; AF is clear.
    #[inline(always)]
    pub fn set_with<const W: u32>(&mut self, result: u64, carry: bool, overflow: bool) {
        self.result = extend::<W>(result);
        self.carries = top_bits(carry, overflow);
        self.shift = 64 - W;
    }

    /// Puts back the carry that the last operation leaves alone.
    #[inline(always)]
    pub fn keep_carry(&mut self, carry: bool) {
        self.set_carry_and_overflow(carry, self.overflow());
    }

    /// `W` bits were counted up or down from `before`, which leaves the carry as it was.
    #[inline(always)]
    pub fn set_counted<const W: u32>(&mut self, before: u64, result: u64, carry: bool, overflow: bool) {
        self.set_with::<W>(result, carry, overflow);
        // One more or less has no bit 4 of its own: it changes by what comes out of bit 3.
        self.carries |= ((before ^ result) >> 1 & 8) << (64 - W);
    }

    /// Replaces carry and overflow; the other flags stay.
    #[inline(always)]
    pub fn set_carry_and_overflow(&mut self, carry: bool, overflow: bool) {
        self.carries = self.carries << 2 >> 2 | top_bits(carry, overflow);
    }

    #[inline(always)]
    pub fn zero(&self) -> bool {
        self.result == 0
    }

    #[inline(always)]
    pub fn sign(&self) -> bool {
        (self.result as i64) < 0
    }

    #[inline(always)]
    pub fn carry(&self) -> bool {
        (self.carries as i64) < 0
    }

    #[inline(always)]
    pub fn overflow(&self) -> bool {
        ((self.carries ^ self.carries << 1) as i64) < 0
    }

    #[inline(always)]
    pub fn parity(&self) -> bool {
        (self.result as u8).count_ones() & 1 == 0
    }

    /// All six as RFLAGS has them.
    pub fn status(&self) -> u64 {
        let half_carry = self.carries >> ((self.shift & 63) + 3) & 1 != 0;
        when(self.carry(), CF)
            | when(self.parity(), PF)
            | when(half_carry, AF)
            | when(self.zero(), ZF)
            | when(self.sign(), SF)
            | when(self.overflow(), OF)
    }
}

/// Carries of which the top two bits say CF, and OF by being different.
#[inline(always)]
const fn top_bits(carry: bool, overflow: bool) -> u64 {
    (carry as u64) << 63 | ((carry != overflow) as u64) << 62
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::flags;
    use crate::emulate::width::Width;

    #[test]
    fn flags_of_every_byte_sum_and_difference_are_the_cores() {
        for a in 0..256u64 {
            for b in 0..256u64 {
                let mut lazy = Lazy::default();
                let sum = (a + b) & 0xff;
                lazy.set::<8>(sum, (a & b) | ((a | b) & !sum));
                assert_eq!((sum, lazy.status()), flags::add(a, b, 0, Width::B1), "{a} + {b}");
                let difference = a.wrapping_sub(b) & 0xff;
                lazy.set::<8>(difference, (!a & b) | ((!a | b) & difference));
                assert_eq!((difference, lazy.status()), flags::sub(a, b, 0, Width::B1), "{a} - {b}");
                let (status, carry) = (lazy.status(), b & 1 != 0);
                lazy.keep_carry(carry);
                assert_eq!(lazy.status(), status & !CF | when(carry, CF));
                lazy.set_carry_and_overflow(!carry, carry);
                assert_eq!(lazy.status(), status & !(CF | OF) | when(!carry, CF) | when(carry, OF));
            }
        }
    }

    #[test]
    fn flags_of_every_byte_counted_are_the_cores_but_for_the_carry() {
        for a in 0..256u64 {
            for carry in [false, true] {
                for (overflowed, (result, status)) in [
                    (0x80, flags::add(a, 1, 0, Width::B1)),
                    (0x7f, flags::sub(a, 1, 0, Width::B1)),
                ] {
                    let mut lazy = Lazy::default();
                    lazy.set_counted::<8>(a, result, carry, result == overflowed);
                    assert_eq!(lazy.status(), status & !CF | when(carry, CF), "{a} to {result}");
                }
            }
        }
    }
}
