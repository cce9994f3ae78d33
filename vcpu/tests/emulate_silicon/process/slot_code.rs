//! The harness code of a slot: loads a case's registers, goes to the instruction, stores the registers.

use super::super::layout::{CODE_SLOT, FLAGS, FX, HOLE, OUT, PAD, PAD_16, PAD_64, PADS_END, TAKEN, record, slot};
use super::super::mode::Mode;
use super::super::segments;
use super::{CURRENT, FRAME, SEGMENTS, SEGMENTS_OUT};

/// Bytes of the landing of a pad: note that the branch was taken, go on to the epilogue.
pub(super) const LANDING: u64 = 0x10;

/// An address below 4 GiB, as an instruction has it.
pub(super) fn low(address: u64) -> [u8; 4] {
    (address as u32).to_le_bytes()
}

/// A branch with a 32-bit displacement, which ends at `next`.
pub(super) fn jump(opcode: u8, next: u64, target: u64) -> Vec<u8> {
    let mut bytes = vec![opcode];
    bytes.extend(low(target.wrapping_sub(next)));
    bytes
}

/// `jmp far` from code of the mode to 64-bit code.
pub(super) fn to_64(mode: Mode, target: u64) -> Vec<u8> {
    let mut bytes = match mode {
        Mode::Compat16 => vec![0x66, 0xea],
        _ => vec![0xea],
    };
    bytes.extend(low(target));
    bytes.extend(segments::USER_CODE_64.to_le_bytes());
    bytes
}

/// The fixed part of a slot, from its prologue to its epilogue.
pub(super) fn slot_code(index: usize) -> Vec<u8> {
    let (start, input) = (slot(index), record(index));
    let output = input + OUT;
    let absolute = |opcode: &[u8], register: u8, at: u64| {
        let mut bytes = opcode.to_vec();
        bytes.extend([0x04 | (register & 7) << 3, 0x25]);
        bytes.extend(low(at));
        bytes
    };
    let mov = |opcode: u8, register: u8, at: u64| absolute(&[0x48 | (register >> 3) << 2, opcode], register, at);
    // Number in the encoding and place of ES, SS, DS, FS, GS.
    const SEGMENT_REGISTERS: [u8; 5] = [0, 2, 3, 4, 5];
    let mut code = absolute(&[0xc7], 0, CURRENT); // mov dword [CURRENT], index
    code.extend((index as u32).to_le_bytes());
    code.extend(absolute(&[0x48, 0x0f, 0xae], 1, input + FX)); // fxrstor64
    for register in SEGMENT_REGISTERS.into_iter().filter(|register| *register != 2) {
        code.extend(absolute(&[0x8e], register, input + SEGMENTS + 2 * u64::from(register)));
    }
    for register in (0..16).filter(|register| *register != 4) {
        code.extend(mov(0x8b, register, input + 8 * u64::from(register)));
    }
    code.push(0xbc); // mov esp, the frame
    code.extend(low(input + FRAME));
    code.extend([0x48, 0xcf]); // iretq
    assert!(code.len() <= HOLE as usize);
    let mut place = |at: u64, bytes: &[u8]| {
        code.resize(at as usize, 0xcc);
        code.extend(bytes);
    };
    place(PAD, &to_64(Mode::Compat32, start + PADS_END));
    place(PAD_16, &to_64(Mode::Compat16, start + PADS_END));
    place(PAD_64, &jump(0xe9, start + PAD_64 + 5, start + PADS_END));
    let mut taken = absolute(&[0xc6], 0, output + TAKEN); // mov byte [taken], 1
    taken.push(1);
    place(PADS_END, &taken);
    code.resize((PADS_END + 2 * LANDING) as usize, 0x90);
    for register in 0..16 {
        code.extend(mov(0x89, register, output + 8 * u64::from(register)));
    }
    for register in SEGMENT_REGISTERS {
        code.extend(absolute(
            &[0x8c],
            register,
            input + SEGMENTS_OUT + 2 * u64::from(register),
        ));
    }
    code.push(0xbc); // mov esp, behind the flags
    code.extend(low(output + FLAGS + 8));
    code.push(0x9c); // pushfq
    code.extend(absolute(&[0x48, 0x0f, 0xae], 0, output + FX)); // fxsave64
    // The next `iretq` may not meet NT, nor the harness AC.
    code.push(0xbc); // mov esp, within the frame
    code.extend(low(input + FRAME + 8));
    code.extend([0x6a, 0x02, 0x9d]); // push 2; popfq
    let next = start + code.len() as u64 + 5;
    code.extend(jump(0xe9, next, start + CODE_SLOT));
    assert!(code.len() <= CODE_SLOT as usize);
    code
}
