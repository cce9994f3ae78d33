//! Where real-mode software goes to restart the machine: F000:FFF0, the CPU's reset vector below 1 MiB (SDM vol. 3A
//! section 10.1.4). There is no firmware, so the code there asks the machine for a reset.
//!
//! This is not for the curious only: a Linux with EFI support that finds hardware-reduced ACPI reboots by EFI, and where
//! there is none by this jump, without a look at the ACPI reset register (Linux `arch/x86/kernel/reboot.c`,
//! `reboot_init` and `native_machine_emergency_restart`).

use super::error::BootError;
use crate::layout::RESET_VECTOR;
use umbra_devices::models::pm::regs::{RESET_PORT, RESET_VALUE};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// `mov dx, RESET_PORT; mov al, RESET_VALUE; out dx, al; hlt; jmp $-1`.
const CODE: [u8; 9] = {
    let [low, high] = RESET_PORT.to_le_bytes();
    [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
};

/// Writes the code.
pub(super) fn write<M: GuestMemory + ?Sized>(memory: &M) -> Result<(), BootError> {
    memory
        .write_slice(&CODE, GuestAddress::from(RESET_VECTOR))
        .map_err(|source| BootError::Memory {
            gpa: RESET_VECTOR,
            what: "reset vector",
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, Decoder, DecoderOptions};

    #[test]
    fn code_is_what_the_comment_says() {
        let mut decoder = Decoder::with_ip(16, &CODE, 0xfff0, DecoderOptions::NONE);
        let code: Vec<_> = decoder.iter().collect();
        let kinds: Vec<_> = code.iter().map(|instruction| instruction.code()).collect();
        assert_eq!(
            kinds,
            [
                Code::Mov_r16_imm16,
                Code::Mov_r8_imm8,
                Code::Out_DX_AL,
                Code::Hlt,
                Code::Jmp_rel8_16
            ]
        );
        assert_eq!((code[0].immediate16(), code[1].immediate8()), (RESET_PORT, RESET_VALUE));
        // The jump goes back to the halt, should an interrupt wake the CPU.
        assert_eq!(code[4].near_branch_target(), code[3].ip());
    }
}
