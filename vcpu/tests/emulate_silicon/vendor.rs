//! Where processors of AMD and Intel differ, and no manual says which is right: what the core does is one of the two
//! (mostly AMD's), and the other one passes.

use super::generate::Case;
use super::machine::{Ended, How};
use iced_x86::{Instruction, Mnemonic as M, OpKind};

/// Whether the two ways of ending are both right.
pub fn same_end(case: &Case, silicon: How, core: How) -> bool {
    let insn = &case.insn;
    match (silicon, core) {
        // A page fault at another byte of an operand that is accessed in parts: the operands of `cmps` are read in no
        // fixed order, nor are the fields of an x87 environment; a far `call` may push its two words one by one; a
        // masked store may look only at the bytes that it stores. `arpl` may or may not announce that it will write.
        (
            How::Fault {
                vector: 14, code: left, ..
            },
            How::Fault {
                vector: 14,
                code: right,
                ..
            },
        ) => {
            let parts = matches!(
                insn.mnemonic(),
                M::Fldenv | M::Frstor | M::Call | M::Maskmovq | M::Maskmovdqu | M::Arpl
            ) || (insn.is_string_instruction() && insn.op_count() == 2);
            const WRITE: u32 = 2;
            let any_code = insn.is_string_instruction() || matches!(insn.mnemonic(), M::Maskmovq | M::Maskmovdqu);
            parts && (left == right || any_code || insn.mnemonic() == M::Arpl && left ^ right == WRITE)
        }
        // `bound` may compare with the lower bound before it reads the upper one.
        (How::Fault { vector: 5, .. }, How::Fault { vector: 12..=14, .. }) => insn.mnemonic() == M::Bound,
        // An operand that is not aligned and also beyond the limit of the stack segment: which is looked at first?
        (
            How::Fault {
                vector: 13, code: 0, ..
            },
            How::Fault {
                vector: 12, code: 0, ..
            },
        ) => insn.memory_size().size() == 16,
        _ => false,
    }
}

/// Intel's processors look for an x87 exception that is not masked before they look at the operand of a store: then the
/// store does not happen, and its operand does not matter.
pub fn store_gave_way(case: &Case, silicon: &Ended, core: &Ended) -> bool {
    const SUMMARY: u8 = 0x80;
    let store = matches!(
        case.insn.mnemonic(),
        M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp
    );
    let waits = silicon.registers.fx[2] & SUMMARY != 0 && case.input.fx[2] & SUMMARY == 0;
    store && waits && silicon.how == How::Next && matches!(core.how, How::Fault { .. })
}

/// Bits of register `number` in which processors agree: with 32-bit addresses in 64-bit mode, a string instruction that
/// does nothing may clear the upper halves of its registers all the same.
pub fn agreed_bits(case: &Case, number: usize, silicon: u64) -> u64 {
    let narrow = (0..case.insn.op_count())
        .any(|operand| matches!(case.insn.op_kind(operand), OpKind::MemorySegESI | OpKind::MemoryESEDI));
    if !case.mode.is_long() || (narrow && matches!(number, 1 | 6 | 7) && silicon >> 32 == 0) {
        // Outside 64-bit mode there are no upper halves.
        0xffff_ffff
    } else {
        u64::MAX
    }
}

/// A repeated comparison that is stopped by a fault may have the flags of the comparison before or those of the
/// beginning.
pub fn flags_of_beginning(case: &Case, silicon: &Ended, mask: u64) -> bool {
    let faulted = matches!(silicon.how, How::Fault { .. });
    let repeated = case.insn.has_rep_prefix() || case.insn.has_repne_prefix();
    faulted && repeated && (silicon.registers.rflags ^ case.input.rflags) & mask == 0
}

/// Which NaN comes out of a dot product depends on the order of its sums.
pub fn same_nans(insn: &Instruction, what: &str, left: &[u8], right: &[u8]) -> bool {
    let bytes = match insn.mnemonic() {
        M::Dpps => 4,
        M::Dppd => 8,
        _ => return false,
    };
    what == "xmm"
        && left.chunks(bytes).zip(right.chunks(bytes)).all(|(left, right)| {
            left == right
                || if bytes == 4 {
                    let single = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
                    single(left).is_nan() && single(right).is_nan()
                } else {
                    let double = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().unwrap());
                    double(left).is_nan() && double(right).is_nan()
                }
        })
}

/// Whether the case leaves something open that would show: `enter`, `fbstp` and a store of 80 bits may have written a
/// part before they fault, a `call` its return address before it finds that there is no code at its target, `popa` may
/// have loaded some of the registers.
pub fn may_have_begun(case: &Case, core: How) -> bool {
    match (case.insn.mnemonic(), core) {
        (M::Enter | M::Fbstp | M::Popa | M::Popad, How::Fault { .. }) => true,
        (M::Fstp, How::Fault { .. }) => case.insn.memory_size().size() == 10,
        (M::Call, How::Fault { vector, code, .. }) => vector == 13 && code == 0,
        _ => false,
    }
}

/// Whether this processor writes only the lower half when it pushes a segment register with a 32-bit operand, as
/// Intel's do (SDM vol. 2, PUSH); the core writes zeros above.
pub fn pushes_half() -> bool {
    is_intel()
}

/// Whether CPUID says GenuineIntel.
pub fn is_intel() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

/// Whether the case pushes a segment register with a 32-bit operand.
pub fn pushes_wide_selector(case: &Case) -> bool {
    case.insn.mnemonic() == M::Push
        && case.insn.op0_kind() == OpKind::Register
        && case.insn.op0_register().is_segment_register()
        && case.insn.stack_pointer_increment() == -4
}
