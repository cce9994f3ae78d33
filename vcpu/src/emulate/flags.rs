//! RFLAGS (SDM vol. 1 section 3.4.3) and how arithmetic sets its status bits.

use super::width::Width;

/// Carry.
pub const CF: u64 = 1 << 0;
/// Always 1.
pub const FIXED: u64 = 1 << 1;
/// Even parity of the low byte.
pub const PF: u64 = 1 << 2;
/// Carry out of bit 3.
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Single-step trap.
pub const TF: u64 = 1 << 8;
/// Maskable interrupts are taken.
pub const IF: u64 = 1 << 9;
/// String instructions go down.
pub const DF: u64 = 1 << 10;
/// Signed overflow.
pub const OF: u64 = 1 << 11;
/// I/O privilege level, two bits.
pub const IOPL: u64 = 3 << 12;
/// Nested task.
pub const NT: u64 = 1 << 14;
/// Resume: no instruction breakpoint at the next instruction.
pub const RF: u64 = 1 << 16;
/// Virtual-8086 mode.
pub const VM: u64 = 1 << 17;
/// Alignment check, or access to user pages under SMAP.
pub const AC: u64 = 1 << 18;
/// Virtual interrupt flag.
pub const VIF: u64 = 1 << 19;
/// Virtual interrupt pending.
pub const VIP: u64 = 1 << 20;
/// CPUID can be executed.
pub const ID: u64 = 1 << 21;

/// The six flags that arithmetic sets.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// SF, ZF and PF of a result.
#[inline]
pub fn of_result(result: u64, width: Width) -> u64 {
    let result = width.cut(result);
    let mut flags = 0;
    if result == 0 {
        flags |= ZF;
    }
    if result & width.sign() != 0 {
        flags |= SF;
    }
    if (result as u8).count_ones() & 1 == 0 {
        flags |= PF;
    }
    flags
}

/// `flag` if `condition`.
#[inline]
pub const fn when(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// `a + b + carry` (operands already cut to the width) and all six status flags.
#[inline]
pub fn add(a: u64, b: u64, carry: u64, width: Width) -> (u64, u64) {
    let result = width.cut(a.wrapping_add(b).wrapping_add(carry));
    let carries = (a & b) | ((a | b) & !result);
    let overflow = (a ^ result) & (b ^ result);
    let flags = of_result(result, width)
        | when(carries & width.sign() != 0, CF)
        | when(overflow & width.sign() != 0, OF)
        | ((a ^ b ^ result) & AF);
    (result, flags)
}

/// `a - b - borrow` (operands already cut to the width) and all six status flags.
#[inline]
pub fn sub(a: u64, b: u64, borrow: u64, width: Width) -> (u64, u64) {
    let result = width.cut(a.wrapping_sub(b).wrapping_sub(borrow));
    let borrows = (!a & b) | ((!a | b) & result);
    let overflow = (a ^ b) & (a ^ result);
    let flags = of_result(result, width)
        | when(borrows & width.sign() != 0, CF)
        | when(overflow & width.sign() != 0, OF)
        | ((a ^ b ^ result) & AF);
    (result, flags)
}

/// The condition codes 0..=15 of `jcc`, `setcc` and `cmovcc` (SDM vol. 2 appendix B.1.4.7): `o no b ae e ne be a s ns p
/// np l ge le g`.
#[inline]
pub const fn condition(code: u8, flags: u64) -> bool {
    let sign_differs = (flags & SF != 0) != (flags & OF != 0);
    let holds = match code >> 1 {
        0 => flags & OF != 0,
        1 => flags & CF != 0,
        2 => flags & ZF != 0,
        3 => flags & (CF | ZF) != 0,
        4 => flags & SF != 0,
        5 => flags & PF != 0,
        6 => sign_differs,
        _ => flags & ZF != 0 || sign_differs,
    };
    holds != (code & 1 != 0)
}
