//! What the process's exit status means. One place, so that `--help`, the README and the code cannot disagree.

/// How a run ended, as the shell sees it.
///
/// Our own statuses are even, because the guest's (isa-debug-exit) are always odd: one can tell them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitStatus {
    /// The guest powered off, or the built-in guest did all it was asked.
    Success,
    /// The command line, the configuration or a file named there can't be used.
    Usage,
    /// This host can't run the guest: no usable `/dev/kvm`, not enough memory, a system call failed.
    Host,
    /// The guest triple-faulted.
    TripleFault,
    /// The guest reported that it crashed (its kernel panicked).
    GuestCrash,
    /// The guest did something that the backend can't execute; a report was printed.
    CannotContinue,
    /// The guest asked for a reset and `--no-reboot` was given.
    ResetRefused,
    /// Standard output was closed by its reader while the guest was writing to it.
    OutputClosed,
    /// Left with `Ctrl-a x`.
    Quit,
    /// The built-in guest ran, but what it computed or saw is wrong.
    WrongAnswer,
    /// A bug in the vmm.
    Internal,
    /// The guest wrote this value to the debug-exit port.
    DebugExit(u32),
}

/// The table printed by `--help` and quoted in the README.
pub const TABLE: &str = "\
Exit status:
   0  the guest powered off (or the built-in guest did all it was asked)
   2  the command line, the configuration or a file named there can't be used
   4  this host can't run the guest (try `vmm doctor`)
   6  the guest triple-faulted
   8  the guest reported a crash
  10  the guest did something that the backend can't execute
  12  the guest asked for a reset and --no-reboot was given
  14  standard output was closed while the guest was writing
  16  left with Ctrl-a x
  18  the built-in guest gave a wrong answer
  70  a bug in the vmm
 odd  the guest wrote N to the debug-exit port 0xf4: (N << 1) | 1, as in QEMU
SIGTERM, SIGINT, SIGQUIT and SIGHUP stop the guest, restore the terminal and
then end the vmm by that same signal.";

impl ExitStatus {
    /// The number given to the operating system.
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Usage => 2,
            Self::Host => 4,
            Self::TripleFault => 6,
            Self::GuestCrash => 8,
            Self::CannotContinue => 10,
            Self::ResetRefused => 12,
            Self::OutputClosed => 14,
            Self::Quit => 16,
            Self::WrongAnswer => 18,
            Self::Internal => 70,
            // Only 8 bits reach the parent process, whatever the guest wrote.
            Self::DebugExit(value) => ((value & 0x7f) << 1 | 1).to_le_bytes()[0],
        }
    }
}

impl From<ExitStatus> for std::process::ExitCode {
    fn from(status: ExitStatus) -> Self {
        status.code().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [ExitStatus; 11] = [
        ExitStatus::Success,
        ExitStatus::Usage,
        ExitStatus::Host,
        ExitStatus::TripleFault,
        ExitStatus::GuestCrash,
        ExitStatus::CannotContinue,
        ExitStatus::ResetRefused,
        ExitStatus::OutputClosed,
        ExitStatus::Quit,
        ExitStatus::WrongAnswer,
        ExitStatus::Internal,
    ];

    #[test]
    fn own_codes_are_even_distinct_and_in_the_table() {
        let mut codes: Vec<u8> = OWN.iter().map(|status| status.code()).collect();
        for code in &codes {
            assert_eq!(code % 2, 0);
            assert!(
                TABLE
                    .lines()
                    .any(|line| line.trim_start().starts_with(&format!("{code}  "))),
                "{code}"
            );
        }
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), OWN.len());
    }

    #[test]
    fn debug_exit_code_is_odd_and_as_qemu_has_it() {
        assert_eq!(ExitStatus::DebugExit(0).code(), 1);
        assert_eq!(ExitStatus::DebugExit(0x10).code(), 0x21);
        assert_eq!(ExitStatus::DebugExit(0x7f).code(), 255);
        assert_eq!(ExitStatus::DebugExit(u32::MAX).code(), 255);
    }
}
