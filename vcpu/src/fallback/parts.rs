//! [`Parts`]: what of a vCPU's state an instruction needs besides ordinary registers, because each costs system calls.

use iced_x86::{CpuidFeature, Instruction, Mnemonic};

/// Parts of the state that are read and written only for instructions that use them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Parts {
    /// [`crate::emulate::state::CoreMsrs`].
    pub msrs: bool,
    /// x87, SSE, extended state and XCR0.
    pub fpu: bool,
    /// Debug registers 0 to 3, 6 and 7.
    pub debug: bool,
}

impl Parts {
    /// Those of `self` that aren't in `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self {
            msrs: self.msrs && !other.msrs,
            fpu: self.fpu && !other.fpu,
            debug: self.debug && !other.debug,
        }
    }

    /// Those of both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            msrs: self.msrs || other.msrs,
            fpu: self.fpu || other.fpu,
            debug: self.debug || other.debug,
        }
    }

    /// What `insn` needs besides debug registers, which each instruction may need.
    pub fn of(insn: &Instruction) -> Self {
        use Mnemonic as M;
        Self {
            msrs: matches!(
                insn.mnemonic(),
                M::Syscall
                    | M::Sysret
                    | M::Sysretq
                    | M::Sysenter
                    | M::Sysexit
                    | M::Sysexitq
                    | M::Swapgs
                    | M::Rdtscp
                    | M::Rdpid
                    | M::Rdmsr
                    | M::Wrmsr
            ),
            // `cpuid` says how large the enabled state is.
            fpu: insn.mnemonic() == M::Cpuid || insn.cpuid_features().iter().any(|feature| is_fpu(*feature)),
            debug: false,
        }
    }
}

fn is_fpu(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::FPU
            | F::FPU287
            | F::FPU387
            | F::MMX
            | F::FXSR
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::XSAVE
            | F::XSAVEOPT
            | F::XSAVEC
            | F::XSAVES
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn parts(bytes: &[u8]) -> Parts {
        Parts::of(&Decoder::new(64, bytes, DecoderOptions::NONE).decode())
    }

    #[test]
    fn parts_follow_the_instruction() {
        assert_eq!(parts(&[0xf3, 0x0f, 0xb8, 0xc1]), Parts::default(), "popcnt");
        assert!(parts(&[0x48, 0x0f, 0xae, 0x2f]).fpu, "xrstor64");
        assert!(parts(&[0x66, 0x0f, 0xef, 0xc0]).fpu, "pxor");
        assert!(parts(&[0x0f, 0xa2]).fpu, "cpuid");
        assert!(parts(&[0x0f, 0x01, 0xf8]).msrs, "swapgs");
    }
}
